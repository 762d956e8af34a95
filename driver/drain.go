package driver

import (
	"maps"
	"net/netip"
	"time"

	"github.com/extip/extip/link"
	"github.com/extip/extip/store"
)

// An address that moves while it drains leads new connections to its new
// container, and what was connected before stays with the old one: connection
// tracking goes on translating as it began. That is on record with the old
// endpoint, with a time from which on it is over; of a move that doesn't drain,
// that time is its own, so that what a crash leaves is forgotten, too.

// maxDrain is how long connections may drain. An idle one is tracked for five
// days (nf_conntrack_tcp_timeout_established).
const maxDrain = 24 * time.Hour

// insideFor is the container's address that an external one leads to.
func insideFor(e store.Endpoint, a netip.Addr) netip.Addr {
	for _, p := range e.Addresses {
		if p.Addr().Is4() == a.Is4() {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

func pairOf(e store.Endpoint, a netip.Addr) link.Pair {
	return link.Pair{External: a, Internal: insideFor(e, a)}
}

func withoutDrains(e store.Endpoint) store.Endpoint {
	e.Draining = nil
	return e
}

// drainsChange follows a change of what an endpoint's record says of drains;
// e.mu is held.
func (d *Driver) drainsChange(e *endpoint, before store.Endpoint) {
	if len(before.Draining)+len(e.rec.Draining) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for a := range before.Draining {
		delete(d.drains[a], pairOf(before, a))
		if len(d.drains[a]) == 0 {
			delete(d.drains, a)
		}
	}
	for a := range e.rec.Draining {
		if d.drains[a] == nil {
			d.drains[a] = map[link.Pair]*endpoint{}
		}
		d.drains[a][pairOf(e.rec, a)] = e
	}
}

// drainsOf is by which pairs addresses still drain.
func (d *Driver) drainsOf(addrs []netip.Addr) (pairs []link.Pair) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range addrs {
		for p := range d.drains[a] {
			pairs = append(pairs, p)
		}
	}
	return pairs
}

// endDrains ends those that are over.
func (r *repair) endDrains() {
	if r.dry {
		return
	}
	draining := map[link.Pair]*endpoint{}
	r.mu.Lock()
	for _, pairs := range r.drains {
		maps.Copy(draining, pairs)
	}
	r.mu.Unlock()
	if len(draining) == 0 {
		return
	}
	var pairs []link.Pair
	for p := range draining {
		pairs = append(pairs, p)
	}
	left, err := r.kernel.Remaining(pairs)
	if err != nil {
		r.failed(err)
		return
	}
	for p, e := range draining {
		r.failed(r.withEndpoint(e.network, e.id, func(_ *network, e *endpoint) error {
			until, ok := e.rec.Draining[p.External]
			if !ok || left[p] > 0 && r.began.Before(until) {
				return nil
			}
			return r.endDrain(e, p)
		}))
	}
}

// endDrain forgets what is left of a drain, and its record; e.mu is held.
func (d *Driver) endDrain(e *endpoint, p link.Pair) error {
	if err := d.kernel.Forget(link.Flows{Pairs: []link.Pair{p}}); err != nil {
		return err
	}
	rec := e.rec
	rec.Draining = maps.Clone(rec.Draining)
	delete(rec.Draining, p.External)
	if err := d.store.PutEndpoint(rec); err != nil {
		return err
	}
	d.setRecord(e, rec)
	d.tell(EventDrained, e, "", p.External)
	return nil
}
