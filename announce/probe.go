package announce

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"
)

// A Timing says how often and how long Probe asks. The zero Timing asks
// nothing.
type Timing struct {
	delay    time.Duration // before the first probe, at most; at random
	probes   int
	min, max time.Duration // from one probe to the next; at random
	after    time.Duration // from the last probe to the answer
}

var (
	// Fast answers after 0.45 s. A host on the same segment answers within
	// a millisecond; three probes are for those that get lost.
	Fast = Timing{probes: 3, min: 150 * time.Millisecond, max: 150 * time.Millisecond, after: 150 * time.Millisecond}
	// RFC5227 answers after 4 to 7 s, as RFC 5227 §1.1 asks for: PROBE_WAIT,
	// PROBE_NUM, PROBE_MIN, PROBE_MAX and ANNOUNCE_WAIT. It fits segments
	// on which a switch port needs a while to forward, or a host to answer.
	RFC5227 = Timing{delay: time.Second, probes: 3, min: time.Second, max: 2 * time.Second, after: 2 * time.Second}
)

// probe is a Probe under way.
type probe struct {
	addrs []netip.Addr                    // sorted, each once
	found map[netip.Addr]net.HardwareAddr // guarded by Announcer.mu
	all   chan struct{}                   // closed when all are found
}

// answer notes who has an address, or probes for it at the same time. mu must
// be held.
func (p *probe) answer(addr netip.Addr, m mac) {
	if p.found[addr] != nil {
		return
	}
	p.found[addr] = m[:]
	if len(p.found) == len(p.addrs) {
		close(p.all)
	}
}

// Probe asks the segment of parent whether other hosts have any of addrs, all
// at the same time, and returns who does, by MAC. Who only probes for an
// address at the same time counts too (RFC 5227 §2.1.1, RFC 4862 §5.4.3): of two
// such hosts at least one sees the other, and both do unless one has already
// given up. But who probes doesn't for an address that is announced here: that one is
// to give up; nor do hosts that SetPeer's function knows. This host's own addresses
// are no conflict, unless one of its interfaces that isn't a parent in use answers
// for them on the same segment.
//
// It takes as long as t says; less if all of addrs are found to be taken; no
// time if parent has no neighbours. If ctx ends, or parent goes down, it
// returns who was found so far and an error. It doesn't need Run.
//
// A switch that snoops on multicast listeners may keep the probes of other
// hosts for an IPv6 address from this one, but not the answers of owners.
func (a *Announcer) Probe(ctx context.Context, parent string, addrs []netip.Addr, t Timing) (map[netip.Addr]net.HardwareAddr, error) {
	addrs = slices.Compact(slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare))
	p := &probe{addrs: addrs, found: map[netip.Addr]net.HardwareAddr{}, all: make(chan struct{})}
	var err error
	if len(addrs) > 0 && t.probes > 0 {
		err = a.probe(ctx, parent, p, t)
	}
	if err != nil {
		err = fmt.Errorf("announce: probe on %s: %w", parent, err)
	}
	return p.found, err
}

func (a *Announcer) probe(ctx context.Context, name string, p *probe, t Timing) error {
	l, ok, err := a.locate(name)
	if err != nil || !ok {
		return err
	}
	for _, addr := range p.addrs {
		if err := usable(addr); err != nil {
			return fmt.Errorf("%s: %w", addr, err)
		}
		if addr.Is6() {
			// Not under mu: see join.
			if err := a.ndp.join(l.index, groupOf(addr)); err != nil {
				return fmt.Errorf("join group of %s: %w", addr, err)
			}
			defer a.ndp.leave(l.index, groupOf(addr))
		}
	}
	defer a.endProbe(name, p)
	if err := a.beginProbe(name, l, p); err != nil {
		return err
	}
	wait := upTo(t.delay)
	for left := t.probes; ; left-- {
		select {
		case <-p.all:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		// Nobody answers where nobody hears: a parent that went down, or
		// was made again, must not pass for a free address.
		now, _, err := a.locate(name)
		if err != nil {
			return err
		}
		if now.index != l.index {
			return ErrNoParent
		}
		switch left {
		case 0:
			return nil
		case 1:
			wait = t.after
		default:
			wait = t.min + upTo(t.max-t.min)
		}
		for _, addr := range p.addrs {
			if err := a.ask(now, addr); err != nil {
				return fmt.Errorf("%s: %w", addr, err)
			}
		}
	}
}

// upTo is a random time of up to d.
func upTo(d time.Duration) time.Duration { return rand.N(d + 1) }

// beginProbe has saw tell p what concerns it.
func (a *Announcer) beginProbe(name string, l link, p *probe) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, addr := range p.addrs {
		at, err := a.use(name, l, addr)
		if err != nil {
			return err
		}
		at.probes[addr] = append(at.probes[addr], p)
	}
	return nil
}

// endProbe undoes it, even if only half was done.
func (a *Announcer) endProbe(name string, p *probe) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.parents[name]
	if at == nil {
		return
	}
	for _, addr := range p.addrs {
		rest := slices.DeleteFunc(at.probes[addr], func(q *probe) bool { return q == p })
		if at.probes[addr] = rest; len(rest) == 0 {
			delete(at.probes, addr)
		}
	}
	a.drop(at)
}

// ask sends one probe.
func (a *Announcer) ask(l link, addr netip.Addr) error {
	if addr.Is6() {
		return a.ndp.send(l.index, groupOf(addr), ndpProbe(addr).marshal())
	}
	return a.arp.send(l.index, broadcast, arpProbe(l.mac, addr).marshal())
}
