package driver

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/extip/extip/announce"
	"github.com/extip/extip/link"
	"github.com/extip/extip/store"
)

// An address is taken only if nobody else on its parent's segment has it. The
// neighbours are asked from CreateEndpoint on and their answers awaited in
// Join: the engine makes the endpoints of a network one after another, but joins
// them side by side, so that many containers wait together.

// A probe asks for addresses that an endpoint has claimed.
type probe struct {
	done chan struct{}
	// Set before done is closed: who has which address, and why that could
	// not be found out.
	owners map[netip.Addr]net.HardwareAddr
	err    error
}

// timing is that of a network's probes; ok is false if it makes none.
func timing(n store.Network) (t announce.Timing, ok bool) {
	switch {
	case n.DAD == store.DADOff || aliasLink(n) == "":
		return t, false
	case n.DAD == store.DADRFC5227:
		return announce.RFC5227, true
	default:
		return announce.Fast, true
	}
}

// probe begins to ask for the addresses that are not known to be clear. It insists
// on those that another host of the cluster has lost by the ledger, if it is told to.
func (d *Driver) probe(n store.Network, addrs []netip.Addr, insist bool) *probe {
	p := &probe{done: make(chan struct{})}
	how, ok := timing(n)
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return d.segments.isClear(n.Parent, a, 0) })
	if !ok || len(addrs) == 0 {
		close(p.done)
		return p
	}
	go func() {
		defer close(p.done)
		p.owners, p.err = d.kernel.Probe(context.Background(), n.Parent, addrs, how)
		if insist {
			p.owners = d.challenge(context.Background(), n.Parent, p.owners)
		}
	}()
	return p
}

// insists tells whether it has to be the wanted addresses: one of a pool is as good
// as another, which no host still serves.
func insists(want store.Want) bool { return want.Reservation != "" || len(want.Addresses) > 0 }

// settle waits until it is known that nobody else has an endpoint's addresses.
// If somebody has, one of the pool is exchanged for another. No lock is held
// meanwhile.
func (d *Driver) settle(networkID, endpointID string) error {
	for {
		var p *probe
		err := d.withEndpoint(networkID, endpointID, func(n *network, e *endpoint) error {
			if e.rec.State != store.Plumbed {
				return nil // it has joined, and has what it was to have
			}
			if e.probe == nil {
				e.probe = d.probe(n.rec, e.rec.External, false) // begun by a plugin that is no more
			}
			p = e.probe
			return nil
		})
		if err != nil || p == nil {
			return err
		}
		<-p.done
		again := false
		err = d.withEndpoint(networkID, endpointID, func(n *network, e *endpoint) (err error) {
			if e.probe == p {
				again, err = d.judge(n, e)
			}
			return err
		})
		if err != nil || !again {
			return err
		}
	}
}

func cantProbe(err error) string { return fmt.Sprintf("can't be probed: %s", err) }

// judge takes what an endpoint's probe has found, and tells whether there is
// another to wait for; e.mu is held.
func (d *Driver) judge(n *network, e *endpoint) (again bool, err error) {
	if e.probe.err != nil {
		for _, a := range e.rec.External {
			d.withhold(e, a, cantProbe(e.probe.err))
		}
		return false, nil
	}
	for a, mac := range e.probe.owners {
		d.segments.learn(n.rec.Parent, a, mac.String())
	}
	for _, a := range e.rec.External {
		mac, taken := e.probe.owners[a]
		if !taken {
			continue
		}
		if slices.Contains(e.want.Addresses, a) {
			return false, fmt.Errorf("extip.address=%s: it %s", a, d.usedOn(a, mac, n.rec.Parent))
		}
		if err := d.exchange(n, e); err != nil {
			return false, err
		}
		if slices.Contains(e.rec.External, a) {
			return false, fmt.Errorf("extip.reservation=%s: %s %s", e.rec.Reservation, a, d.usedOn(a, mac, n.rec.Parent))
		}
		d.log.WithField("external", a).Warnf("passed over: %s uses it on the segment of %s", mac, n.rec.Parent)
		return true, nil
	}
	return false, nil
}

// exchange claims other addresses for an endpoint that has not joined yet;
// e.mu is held.
func (d *Driver) exchange(n *network, e *endpoint) error {
	rec, err := d.store.CreateEndpoint(e.rec, e.want)
	if err != nil {
		return refusal(err)
	}
	d.tell(EventReleased, e, "exchanged", e.rec.External...)
	e.rec, e.probe = rec, d.probe(n.rec, rec.External, insists(e.want))
	d.tell(EventClaimed, e, "exchanged", rec.External...)
	return up(d.plumbing(n.rec, rec)) // its link carries what is recorded
}

// keepClear goes on listening to addresses that were an endpoint's until now:
// whoever gets them next has not to wait. e.mu is held.
func (d *Driver) keepClear(n store.Network, e *endpoint, addrs []netip.Addr) {
	if _, ok := timing(n); !ok {
		return
	}
	for _, a := range addrs {
		if e.withheld[a] == "" && d.kernel.Watch(n.Parent, a) == nil {
			d.segments.learn(n.Parent, a, "")
		}
	}
}

// probeMissing asks, before anything is repaired at the start, for addresses
// that should be on their parent and are not: who knows for how long. Those of
// containers that are gone don't matter.
func (d *Driver) probeMissing() error {
	found, err := d.kernel.Survey()
	if err != nil {
		return err
	}
	type claim struct {
		e  *endpoint
		a  netip.Addr
		on string
	}
	var missing []claim
	asked := questions{}
	d.eachEndpoint(func(n *network, e *endpoint) {
		host, _ := link.VethNames(e.id)
		_, there := found.Links[host]
		how, ok := timing(n.rec)
		if !there || !ok || e.rec.State != store.Published {
			return
		}
		for _, a := range e.rec.External {
			if !slices.Contains(found.Aliases[a], aliasLink(n.rec)) {
				asked.add(n.rec.Parent, how, a)
				missing = append(missing, claim{e, a, aliasLink(n.rec)})
			}
		}
	})
	obstacles := d.ask(context.Background(), asked)
	for _, c := range missing {
		o := obstacles[c.a]
		if o.mac != "" {
			d.segments.clash(c.a, o.mac)
		}
		c.e.mu.Lock()
		if o.why != "" {
			d.withhold(c.e, c.a, o.why)
		} else if d.isApart() {
			// It may have been given up before this program began.
			d.markLost(c.e, c.a, loss{text: "is not on " + c.on + ", and etcd can't be reached to ask whose it is"})
		}
		c.e.mu.Unlock()
	}
	return nil
}

// questions are addresses to be asked for, by where and how.
type questions map[question][]netip.Addr

type question struct {
	parent string
	how    announce.Timing
}

func (q questions) add(parent string, how announce.Timing, a netip.Addr) {
	at := question{parent, how}
	q[at] = append(q[at], a)
}

// An obstacle is what stands against an address, as the end of a sentence about
// it, and who else has it, if anybody.
type obstacle struct{ why, mac string }

// ask asks all segments side by side, and returns what stands against the
// addresses of which something does.
func (d *Driver) ask(ctx context.Context, asked questions) map[netip.Addr]obstacle {
	var wg sync.WaitGroup
	var mu sync.Mutex
	found := map[netip.Addr]obstacle{}
	for q, addrs := range asked {
		wg.Go(func() {
			owners, err := d.kernel.Probe(ctx, q.parent, addrs, q.how)
			unclaimed := maps.Clone(owners) // not to be insisted on
			maps.DeleteFunc(unclaimed, func(a netip.Addr, _ net.HardwareAddr) bool { return d.holds(a) })
			maps.DeleteFunc(owners, func(a netip.Addr, _ net.HardwareAddr) bool { return unclaimed[a] != nil })
			owners = d.challenge(ctx, q.parent, owners)
			maps.Copy(owners, unclaimed)
			mu.Lock()
			defer mu.Unlock()
			for _, a := range addrs {
				if mac, taken := owners[a]; taken {
					found[a] = obstacle{d.usedBy(a, mac), mac.String()}
				} else if err != nil {
					found[a] = obstacle{why: cantProbe(err)}
				}
			}
		})
	}
	wg.Wait()
	return found
}
