package driver

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/extip/extip/announce"
	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
)

const (
	// aheadOf is how many addresses of a pool, of each family, are probed
	// before anybody asks for them. The engine makes the endpoints of a
	// network one after another; in the 0.45 s of a probe it makes fewer.
	aheadOf = 8
	// tendInterval is how often is looked what there is to tend.
	tendInterval = 10 * time.Second
	// renewBefore is how long before its end a belief is renewed.
	renewBefore = 2 * tendInterval
)

// Tend does what no call is to wait for, until ctx ends: it keeps the next
// addresses of each pool probed, asks again for addresses that are withheld, and
// sees to endpoints whose container's default route went elsewhere.
func (d *Driver) Tend(ctx context.Context) error {
	tick := time.NewTicker(tendInterval)
	defer tick.Stop()
	d.tendAll(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			d.tendAll(ctx)
		case id := <-d.untended:
			ids := map[string]bool{id: true}
			for len(d.untended) > 0 {
				ids[<-d.untended] = true
			}
			d.probeAhead(ctx, func(id string) bool { return ids[id] })
		case <-d.withheldAgain:
			d.releaseWithheld(ctx)
		case look := <-d.detours:
			if !wait(ctx, time.Until(look.at)) {
				return nil
			}
			d.detour(look.endpoint)
		}
	}
}

func (d *Driver) tendAll(ctx context.Context) {
	for _, at := range d.segments.expire() {
		if d.publisher(at.addr) == nil {
			d.kernel.Unwatch(at.parent, at.addr)
		}
	}
	d.releaseWithheld(ctx)
	d.probeAhead(ctx, func(string) bool { return true })
}

// tend asks for a network's next addresses to be probed soon.
func (d *Driver) tend(network string) { hint(d.untended, network) }

// ahead is the addresses of a network's pool that are probed already.
func (d *Driver) ahead(n *network) []netip.Addr {
	d.mu.Lock()
	list := n.ahead
	d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool { return !d.segments.isClear(n.rec.Parent, a, 0) })
}

// probeAhead probes the next addresses of networks' pools, side by side.
func (d *Driver) probeAhead(ctx context.Context, chosen func(id string) bool) {
	var wg sync.WaitGroup
	for _, n := range d.networkList() {
		n.mu.RLock()
		rec, known := n.rec, n.known
		n.mu.RUnlock()
		how, ok := timing(rec)
		if known && ok && chosen(rec.ID) && rec.Auto && !rec.Internal && !rec.Pool.Empty() {
			wg.Go(func() { d.probePool(ctx, n, rec, how) })
		}
	}
	wg.Wait()
}

// probePool keeps a network's next addresses probed.
func (d *Driver) probePool(ctx context.Context, n *network, rec store.Network, how announce.Timing) {
	for ctx.Err() == nil {
		next, unknown := d.upcoming(n, rec)
		d.mu.Lock()
		n.ahead = next
		d.mu.Unlock()
		if len(unknown) == 0 {
			return
		}
		// Listened to from before the question, so that nothing is missed.
		for _, a := range unknown {
			if err := d.kernel.Watch(rec.Parent, a); err != nil {
				return // the parent is missing or down: nobody to ask
			}
		}
		owners, err := d.kernel.Probe(ctx, rec.Parent, unknown, how)
		if err != nil {
			return
		}
		d.log.WithField("network", short(rec.ID)).WithField("addresses", join(unknown)).Debug("probed ahead")
		for _, a := range unknown {
			mac := ""
			if owner, taken := owners[a]; taken {
				mac = owner.String()
				d.log.WithField("external", a).Warnf("passed over in the pool: %s uses it on the segment of %s", mac, rec.Parent)
				d.kernel.Unwatch(rec.Parent, a)
			}
			d.segments.learn(rec.Parent, a, mac)
		}
		if len(owners) == 0 {
			return
		}
	}
}

// upcoming is the next addresses of a network's pool, and those of them that
// are to be probed.
func (d *Driver) upcoming(n *network, rec store.Network) (next, unknown []netip.Addr) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	usable := func(a netip.Addr) bool {
		why, err := d.unusable(n, a)
		return err == nil && why == "" && d.segments.ownerOf(rec.Parent, a) == ""
	}
	for _, p := range []pool.Pool{rec.Pool.Of(true), rec.Pool.Of(false)} {
		list, err := d.store.Upcoming(p, aheadOf, usable)
		if err != nil {
			d.log.WithError(err).Error("nothing is probed ahead")
			return nil, nil
		}
		next = append(next, list...)
	}
	for _, a := range next {
		if !d.segments.isClear(rec.Parent, a, renewBefore) {
			unknown = append(unknown, a)
		}
	}
	return next, unknown
}
