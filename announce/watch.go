package announce

import (
	"fmt"
	"net"
	"net/netip"
	"time"
)

// DefendInterval is how long after a defence an address isn't defended again
// (RFC 5227 §2.4, DEFEND_INTERVAL): two hosts that defend must not fight.
const DefendInterval = 10 * time.Second

// ReportInterval is how often an undefended conflict of one address is
// reported at most.
const ReportInterval = time.Second

// A Conflict is a sign that another host has an address that is announced or
// watched here, or would like to have one that is watched.
//
// A host that only asks whether it may have an announced address (an ARP probe,
// duplicate address detection) is none: the kernel answers it, and it desists.
// If it doesn't, it is heard of by its own announcement.
type Conflict struct {
	Parent  string
	Address netip.Addr
	MAC     net.HardwareAddr // the other's
	// Defended says that Address was announced again, once. It isn't if it
	// is only watched, was defended within DefendInterval, or if SetPermit's
	// function doesn't permit it.
	Defended bool
}

// Watch has others who use or probe for addr on parent reported as conflicts,
// until Unwatch. An address that was announced is no longer repeated, refreshed
// or defended: of Announce and Watch, the last counts. A Watch that is begun
// before a Probe misses nothing after it.
func (a *Announcer) Watch(parent string, addr netip.Addr) error {
	if err := a.watch(parent, addr); err != nil {
		return fmt.Errorf("announce: watch %s on %s: %w", addr, parent, err)
	}
	return nil
}

func (a *Announcer) watch(name string, addr netip.Addr) error {
	if err := usable(addr); err != nil {
		return err
	}
	l, ok, err := a.locate(name)
	if err != nil || !ok {
		return err
	}
	e := entry{}
	if addr.Is6() {
		// Others' probes go to the group. Whether the kernel belongs to
		// it depends on its own addresses. Not under mu: see join.
		if err := a.ndp.join(l.index, groupOf(addr)); err != nil {
			return fmt.Errorf("join group: %w", err)
		}
		e.joined = int32(l.index)
	}
	a.mu.Lock()
	p, err := a.use(name, l, addr)
	old := e // what is no longer needed
	if err == nil {
		old = p.addrs[addr]
		e.defended, e.reported = old.defended, old.reported
		p.addrs[addr] = e
	}
	a.mu.Unlock()
	a.leave(old, addr)
	return err
}

// Unwatch ends what Announce and Watch began: when it has returned, addr is
// not announced any more. Run may just be reporting a last conflict.
func (a *Announcer) Unwatch(parent string, addr netip.Addr) {
	a.mu.Lock()
	var old entry
	if p := a.parents[parent]; p != nil {
		old = p.addrs[addr]
		delete(p.addrs, addr)
		a.drop(p)
	}
	a.mu.Unlock()
	a.leave(old, addr)
}

// leave leaves the group that an entry joined. mu must not be held.
func (a *Announcer) leave(e entry, addr netip.Addr) {
	if e.joined != 0 {
		a.ndp.leave(int(e.joined), groupOf(addr))
	}
}

// read receives until the socket is closed.
func (a *Announcer) read(s *socket) {
	buf := make([]byte, 2048) // a longer packet is cut, and then isn't valid
	for {
		packet, index, sender, err := s.receive(buf)
		if err != nil {
			a.failures <- err
			return
		}
		if seen, ok := s.sight(packet, sender); ok {
			a.saw(seen, index)
		}
	}
}

// saw tells probes and Run of a sighting that concerns them.
func (a *Announcer) saw(s sighting, index int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.byIndex[index]
	if p == nil {
		return
	}
	e, kept := p.addrs[s.addr]
	probes := p.probes[s.addr]
	if !kept && len(probes) == 0 || a.ours(p, s.mac) || s.claim && (e.announced || a.isPeer(s.mac)) {
		return
	}
	for _, pr := range probes {
		pr.answer(s.addr, s.mac)
	}
	if kept {
		a.clash(p, e, s)
	}
}

// ours says whether a MAC is that of an interface in use. Another one than p
// may be on the same segment, and the kernel answers there for all its
// addresses. One that isn't in use passes for another host.
func (a *Announcer) ours(p *parent, m mac) bool {
	// What is a parent's MAC may have changed since: a bond failed over,
	// a bridge has another port.
	if l, ok, err := a.find(p.name); err == nil && ok && l.index == p.index {
		p.mac = l.mac
	}
	for _, other := range a.parents {
		if other.mac == m {
			return true
		}
	}
	return false
}

// clash has Run report a conflict and defend the address, each not too often.
func (a *Announcer) clash(p *parent, e entry, s sighting) {
	now := a.now()
	c := Conflict{Parent: p.name, Address: s.addr, MAC: s.mac[:], Defended: e.announced && now-e.defended >= a.defendInterval}
	if !c.Defended && now-e.reported < a.reportInterval {
		return
	}
	select {
	case a.conflicts <- c:
	default:
		return // Run has enough to do
	}
	e.reported = now
	if c.Defended {
		e.defended = now
	}
	p.addrs[s.addr] = e
}

// defend announces an address of a conflict that is to be defended, and says
// whether the conflict is still one.
func (a *Announcer) defend(c *Conflict) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.parents[c.Parent]
	if p == nil {
		return false
	}
	e, kept := p.addrs[c.Address]
	if c.Defended {
		c.Defended = e.announced && a.permits(c.Address) && a.again(place{p, c.Address}, a.claim) == nil
	}
	return kept
}
