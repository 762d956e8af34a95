package driver

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/extip/extip/announce"
	"github.com/extip/extip/store"
)

// Of several hosts that share claims, one that is cut off from the ledger goes on
// serving what it has. It gives an address up, and doesn't defend it, as soon as
// the wire or the ledger shows that another host has it. Such an address is lost:
// it is withheld, keeps its mapping, and comes back only when the ledger says that
// it is this endpoint's.

const (
	// While apart, published addresses are asked for each confirmInterval, or
	// if there are many, one after another as fast as that allows:
	// confirmBatch of them in the 0.45 s of a probe, which makes some 1,500
	// packets a second.
	confirmInterval = 10 * time.Second
	confirmBatch    = 250
)

// barred says why an address that an endpoint has on record can't be put on its
// parent, as the end of a sentence about it; "" if the ledger has nothing against
// it. e.mu is held.
func (d *Driver) barred(e *endpoint, a netip.Addr) string {
	if d.cluster == nil {
		return ""
	}
	why, lost := e.lost[a]
	switch c, ok := d.store.Holder(a); {
	case ok && c.Host != d.cluster.Host():
		return heldBy(c.Host)
	case d.isApart() && lost:
		return why.text
	case d.isApart() || ok && c.Endpoint == e.id:
		return ""
	case lost:
		return why.text
	default:
		return "has no claim in the ledger yet"
	}
}

// A loss is why an address is lost, as the end of a sentence about it, and the
// host that has it, "" if that isn't known.
type loss struct{ text, host string }

// loseUnserved has addresses that are not on their parent at the start, and by the
// ledger are not this host's, be lost: another host may serve them by now. It returns
// them.
func (d *Driver) loseUnserved() (list []netip.Addr, err error) {
	found, err := d.kernel.Survey()
	if err != nil {
		return nil, err
	}
	d.eachEndpoint(func(n *network, e *endpoint) {
		for _, a := range e.rec.External {
			on := aliasLink(n.rec)
			if e.rec.State != store.Published || on == "" || slices.Contains(found.Aliases[a], on) || d.holds(a) {
				continue
			}
			l := loss{text: "has no claim in the ledger yet"}
			e.lost = with(e.lost, a, l)
			d.withhold(e, a, l.text)
			list = append(list, a)
		}
	})
	return list, nil
}

// mayRegain tells whether an address that is lost is nobody's by the ledger, so that
// it may be claimed again, if nobody serves it: after a time without etcd, who does
// may be slower to claim it. e.mu is held.
func (d *Driver) mayRegain(e *endpoint, a netip.Addr) bool {
	_, lost := e.lost[a]
	_, held := d.store.Holder(a)
	return lost && !held && !d.isApart() && d.isSettled()
}

// regain claims addresses that nobody has by the ledger, nor answers for.
func (d *Driver) regain(unclaimed map[netip.Addr]bool, why map[netip.Addr]string) {
	leave := d.lostAddresses()
	kept := len(leave)
	leave = slices.DeleteFunc(leave, func(a netip.Addr) bool { return unclaimed[a] && why[a] == "" })
	if len(leave) < kept {
		d.reclaimBut(leave)
	}
}

func heldBy(host string) string { return "is held by host " + host }

// lose gives up an address that another host has by the ledger, or that is kept
// for a reservation of another name; by says which.
func (d *Driver) lose(a netip.Addr, by string) {
	e := d.publisher(a)
	if e == nil {
		return
	}
	d.fenced(a, d.withEndpoint(e.network, e.id, func(n *network, e *endpoint) error {
		if !slices.Contains(e.rec.External, a) {
			return nil
		}
		if strings.HasPrefix(by, "reserved as ") {
			return d.giveUp(n, e, a, loss{text: "is " + by})
		}
		c, ok := d.store.Holder(a)
		switch to, giving := e.giving[a]; {
		case !ok || c.Host == d.cluster.Host():
			return nil // it has changed again
		case giving && to.Host == c.Host && to.Endpoint == c.Endpoint:
			return d.handedOver(n, e, a, to)
		default:
			return d.giveUp(n, e, a, loss{heldBy(c.Host), c.Host})
		}
	}))
}

// fenced takes an error of giving an address up.
func (d *Driver) fenced(a netip.Addr, err error) {
	if err != nil {
		d.log.WithField("external", a).WithError(err).Error("not given up entirely; reconciling tries again")
		d.Hint("withheld address")
	}
}

// yield gives an address up to who was heard to use it; e.mu is held.
func (d *Driver) yield(n *network, e *endpoint, a netip.Addr, mac net.HardwareAddr) error {
	l := loss{"is used by " + mac.String(), d.memberOf(mac)}
	if l.host != "" {
		l.text += " (host " + l.host + ")"
	}
	if d.isApart() {
		l.text += "; this host can't reach etcd to prove its claim"
	}
	if host := d.holder(a); host != "" {
		l = loss{heldBy(host), host}
	}
	return d.giveUp(n, e, a, l)
}

// giveUp takes an address off its parent until the ledger gives it back, and ends
// what was connected by it; e.mu is held.
func (d *Driver) giveUp(n *network, e *endpoint, a netip.Addr, l loss) error {
	if !d.markLost(e, a, l) {
		return nil
	}
	return d.takeOff(n, e, a)
}

// takeOff takes a lost address off its parent; e.mu is held.
func (d *Driver) takeOff(n *network, e *endpoint, a netip.Addr) error {
	if err := d.removeAlias(n.rec, a); err != nil {
		return err
	}
	return d.kernel.Forget(d.flowsBy(e.rec, []netip.Addr{a}))
}

// markLost withholds an address as lost, and tells whether that is news; e.mu is
// held.
func (d *Driver) markLost(e *endpoint, a netip.Addr, l loss) bool {
	before, already := e.lost[a]
	if before == l {
		return false
	}
	if !already {
		d.observer.Lost(a)
		d.tell(EventTaken, e, "it "+l.text, a)
	}
	e.lost = with(e.lost, a, l)
	d.withhold(e, a, l.text)
	return true
}

// followWire asks, while this host is apart, for the addresses that it has
// published, until ctx ends.
func (d *Driver) followWire(ctx context.Context) {
	tick := time.NewTicker(confirmInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if d.isApart() {
				d.confirm(ctx, "", false)
			}
		case parent := <-d.confirms:
			d.confirm(ctx, parent, true)
		}
	}
}

// confirm asks the segment of a parent, or all if it is "", for addresses that are
// published there. Those that another host answers for are given up to it, unless
// this one can prove its claim; the others are announced if that is asked for.
func (d *Driver) confirm(ctx context.Context, parent string, announced bool) {
	asked := map[string][]netip.Addr{}
	d.eachEndpoint(func(n *network, e *endpoint) {
		if _, ok := timing(n.rec); ok && e.rec.State == store.Published && (parent == "" || parent == n.rec.Parent) {
			asked[n.rec.Parent] = append(asked[n.rec.Parent], e.notWithheld(e.rec.External)...)
		}
	})
	for parent, addrs := range asked {
		for batch := range slices.Chunk(addrs, confirmBatch) {
			owners, err := d.kernel.Probe(ctx, parent, batch, announce.Fast)
			if err != nil {
				break // it is down: there is nobody to be heard by
			}
			for _, a := range batch {
				d.confirmed(a, owners[a], announced)
			}
		}
	}
}

// confirmed takes what was heard of an address; no MAC is nothing.
func (d *Driver) confirmed(a netip.Addr, mac net.HardwareAddr, announced bool) {
	e := d.publisher(a)
	if e == nil || mac == nil && !announced {
		return
	}
	d.fenced(a, d.withEndpoint(e.network, e.id, func(n *network, e *endpoint) error {
		switch {
		case e.rec.State != store.Published || e.withheld[a] != "":
			return nil
		case mac == nil || d.mayKeep(a):
			return d.announce(n.rec, e, a)
		}
		d.segments.clash(a, mac.String())
		d.observer.Conflict(a)
		return d.yield(n, e, a, mac)
	}))
}

// askFirst keeps addresses that have gone from their parent off it until the
// neighbours are asked for them, if this host can't prove that they are its own;
// e.mu is held.
func (r *repair) askFirst(e *endpoint, addrs []netip.Addr) {
	if r.dry || !r.isApart() {
		return
	}
	for _, a := range addrs {
		r.withhold(e, a, "is asked for first, as etcd can't be reached")
	}
	r.askWithheld()
}
