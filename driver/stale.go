package driver

import (
	"errors"
	"net/netip"
	"time"

	"github.com/extip/extip/link"
	"github.com/extip/extip/store"
)

// After it was killed, the engine knows nothing of the endpoints it had, and
// says nothing of them either; it gives their addresses to new ones. This file
// tells such stale endpoints from others and makes room.

// Patience with the link of a stale endpoint: the kernel takes down a network
// namespace some time after its last process has ended.
const (
	staleWait = time.Second
	stalePoll = 20 * time.Millisecond
)

// claim records a new endpoint, in the place of stale ones that are in its way.
func (d *Driver) claim(n *network, rec store.Endpoint, want store.Want) (store.Endpoint, error) {
	for _, p := range rec.Addresses {
		// The engine gives an address of a network to one endpoint only.
		if err := d.supersede(n, d.insideOf(n.rec.ID, p.Addr()), rec.ID); err != nil {
			return rec, err
		}
	}
	for {
		claimed, err := d.store.CreateEndpoint(rec, want)
		taken, ok := errors.AsType[*store.TakenError](err)
		if !ok || taken.Host != "" || !d.evict(n, taken.Owner) {
			return claimed, err
		}
	}
}

func (d *Driver) insideOf(network string, a netip.Addr) *endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.inside[insideKey{network, a}]
}

// supersede removes an endpoint of n whose container address was given away.
func (d *Driver) supersede(n *network, old *endpoint, by string) error {
	if old == nil || old.id == by {
		return nil
	}
	old.mu.Lock()
	defer old.mu.Unlock()
	if !old.known || old.rec.State == store.Retired {
		return nil
	}
	d.log.WithField("endpoint", short(old.id)).Warnf("superseded by endpoint %s, which has its address", short(by))
	return d.removeEndpoint(n, old)
}

// evict removes the owner of an address if its link is gone, and tells whether
// it is gone now. An owner from before the engine's start may be about to
// lose its link: that is waited for, a moment.
func (d *Driver) evict(n *network, owner store.Endpoint) bool {
	d.mu.Lock()
	old := d.endpoints[owner.ID]
	d.mu.Unlock()
	if old == nil {
		return true // gone in the meantime
	}
	if owner.Network != n.rec.ID {
		// Not waited for: whoever is about to change it may wait for n.
		other := d.tryEnter(owner.Network)
		if other == nil {
			return false
		}
		defer other.mu.RUnlock()
		n = other
	}
	wait := time.Duration(0)
	if owner.Created.UnixNano() < d.activated.Load() {
		wait = staleWait
	}
	if !d.linkGoes(owner.ID, wait) {
		return false
	}
	old.mu.Lock()
	defer old.mu.Unlock()
	if !old.known {
		return true
	}
	d.log.WithField("endpoint", short(old.id)).Warn("evicted: its link is gone")
	return d.removeEndpoint(n, old) == nil
}

// linkGoes tells whether an endpoint's link is gone, at the latest after wait; it
// looks once more then, as the time may have passed at a standstill.
func (d *Driver) linkGoes(endpoint string, wait time.Duration) bool {
	host, _ := link.VethNames(endpoint)
	deadline := time.After(wait)
	tick := time.NewTicker(stalePoll)
	defer tick.Stop()
	for over := false; ; {
		exists, err := d.kernel.HasLink(host)
		if err == nil && !exists {
			return true
		}
		if over {
			return false
		}
		select {
		case <-deadline:
			over = true
		case <-tick.C:
		}
	}
}
