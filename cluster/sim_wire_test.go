package cluster

import (
	"net/netip"
	"time"

	"github.com/extip/extip/store"
)

// The segment carries questions, which kernels answer, and announcements, which
// programs hear. Frames are late or lost, each for each receiver.

// probeTime is how long announce.Fast asks, three times.
const (
	probeTime    = 450 * time.Millisecond
	probeSpacing = 150 * time.Millisecond
)

func (s *sim) frameDelay() time.Duration {
	if s.odds(0.02) {
		return s.between(10*time.Millisecond, 300*time.Millisecond)
	}
	return s.between(100*time.Microsecond, 2*time.Millisecond)
}

// hears tells whether frames get from one host to another.
func (h *simHost) hears(other *simHost) bool {
	return h != other && !h.dead && !other.dead && h.segment == other.segment
}

// probe asks who else answers for addresses.
func (p *proc) probe(addrs []netip.Addr) map[netip.Addr]*simHost {
	s, from := p.sim, p.life.host
	found := map[netip.Addr]*simHost{}
	asking := true
	for i := range 3 {
		s.after(time.Duration(i)*probeSpacing, func() {
			for _, to := range s.hosts {
				if !to.hears(from) || s.odds(s.loss) {
					continue
				}
				s.after(s.frameDelay(), func() {
					for _, a := range addrs {
						if !asking || !to.hears(from) || !to.answers[a] || s.odds(s.loss) {
							continue
						}
						s.after(s.frameDelay(), func() {
							if asking && found[a] == nil && from.hears(to) {
								found[a] = to
							}
						})
					}
				})
			}
		})
	}
	p.sleep(probeTime)
	asking = false
	for _, a := range addrs {
		s.missed(from, a, found[a] != nil)
	}
	return found
}

// announce tells the segment that an address is here, in two frames.
func (s *sim) announce(from *simHost, a netip.Addr) {
	for _, to := range s.hosts {
		first, second := s.odds(s.loss), s.odds(s.loss)
		if !to.hears(from) || first && second {
			continue
		}
		s.after(s.frameDelay(), func() {
			if p := to.program; p != nil && to.hears(from) {
				p.do(func() { p.driver.sees(a, from) })
			}
		})
	}
}

// A simAnnouncer is package announce.
type simAnnouncer struct {
	entries   map[netip.Addr]*simEntry
	conflicts []simConflict
	came      latch
}

// A simEntry is an address that is announced, or else only listened to.
type simEntry struct {
	announced          bool
	defended, reported time.Duration
}

type simConflict struct {
	a      netip.Addr
	by     *simHost
	defend bool
}

const (
	simSpacing        = 1100 * time.Millisecond // announce.Spacing
	simDefendInterval = 10 * time.Second        // announce.DefendInterval
	simReportInterval = time.Second             // announce.ReportInterval
)

// announce says three times that an address is here, and has it defended.
func (d *simDriver) announce(a netip.Addr) {
	entry := &simEntry{announced: true, defended: -time.Hour, reported: -time.Hour}
	if before := d.announcer.entries[a]; before != nil && before.announced {
		entry.defended, entry.reported = before.defended, before.reported
	}
	d.announcer.entries[a] = entry
	for i := range 3 {
		d.sim.after(time.Duration(i)*simSpacing, d.life.guard(func() {
			if d.announcer.entries[a] == entry {
				d.sim.announce(d.host(), a)
			}
		}))
	}
}

// sees takes an announcement that was heard.
func (d *simDriver) sees(a netip.Addr, by *simHost) {
	e := d.announcer.entries[a]
	if e == nil {
		return
	}
	defend := e.announced && d.sim.now()-e.defended >= simDefendInterval
	if !defend && d.sim.now()-e.reported < simReportInterval {
		return
	}
	e.reported = d.sim.now()
	if defend {
		e.defended = d.sim.now()
	}
	d.announcer.conflicts = append(d.announcer.conflicts, simConflict{a, by, defend})
	d.announcer.came.release(d.sim)
}

// conflictsOf is Announcer.Run with driver.Conflict.
func (n *simAnnouncer) conflictsOf(d *simDriver) func(*proc) {
	return func(p *proc) {
		for {
			for len(n.conflicts) == 0 {
				p.wait(&n.came, 0)
			}
			c := n.conflicts[0]
			n.conflicts = n.conflicts[1:]
			entry := n.entries[c.a]
			if entry == nil {
				continue
			}
			if c.defend && entry.announced && d.mayKeep(c.a) {
				d.sim.defended(d, c.a, c.by)
				d.sim.announce(d.host(), c.a)
			}
			e := d.published[c.a]
			if e == nil {
				d.learn(c.a, true)
				delete(n.entries, c.a)
				continue
			}
			d.with(p, e, func() {
				if e.rec.State == store.Published && e.withheld[c.a] == "" && !d.mayKeep(c.a) {
					d.yield(e, c.a, c.by)
				}
			})
		}
	}
}
