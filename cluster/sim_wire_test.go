package cluster

import (
	"net/netip"
	"time"
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
		if !to.hears(from) || s.odds(s.loss) && s.odds(s.loss) {
			continue
		}
		s.after(s.frameDelay(), func() {
			if p := to.program; p != nil && to.hears(from) {
				p.do(func() { p.driver.sees(a, from) })
			}
		})
	}
}
