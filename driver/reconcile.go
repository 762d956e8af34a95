package driver

import (
	"errors"
	"slices"

	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

// Restore makes the kernel match the store, as after a reboot or a crash: what
// is recorded is there again, and what was to go goes. It is called before the
// first call is served. One thing that can't be restored keeps no other from
// being; all errors are returned.
func (d *Driver) Restore() error {
	errs := []error{d.finishRemovals()}
	state := d.natState()
	repaired, err := d.kernel.NAT.Sync(state)
	for _, what := range repaired {
		d.log.WithField("repaired", what).Info("rule restored")
	}
	if err != nil {
		// Without mappings there must be no aliases; the host would
		// answer on them.
		return errors.Join(append(errs, err, d.withdraw())...)
	}
	for _, n := range d.networkList() {
		n.mu.Lock()
		if n.known {
			n.gateways, err = d.kernel.Gateways()
			errs = append(errs, err, again(d.networkSteps(n.rec)))
		}
		n.mu.Unlock()
	}
	errs = append(errs, d.eachPublished(func(n *network, e *endpoint) error {
		return again(d.publication(n.rec, e.rec))
	}))
	return errors.Join(errs...)
}

// finishRemovals removes what was to go and could not before.
func (d *Driver) finishRemovals() error {
	var errs []error
	for _, n := range d.networkList() {
		n.mu.Lock()
		switch {
		case n.known && n.rec.Leaving:
			errs = append(errs, d.removeNetwork(n))
		case n.known:
			for _, e := range d.endpointsOf(n.rec.ID) {
				e.mu.Lock()
				if e.known && e.rec.State == store.Leaving {
					errs = append(errs, d.removeEndpoint(n, e))
				}
				e.mu.Unlock()
			}
		}
		n.mu.Unlock()
	}
	return errors.Join(errs...)
}

// withdraw takes all aliases off their parents.
func (d *Driver) withdraw() error {
	return d.eachPublished(func(n *network, e *endpoint) error {
		var errs []error
		for _, a := range e.rec.External {
			errs = append(errs, d.kernel.RemoveAlias(n.rec.Parent, a))
		}
		return errors.Join(errs...)
	})
}

// eachPublished calls fn for every published endpoint, locked, and joins the errors.
func (d *Driver) eachPublished(fn func(*network, *endpoint) error) error {
	var errs []error
	for _, n := range d.networkList() {
		n.mu.RLock()
		if n.known {
			for _, e := range d.endpointsOf(n.rec.ID) {
				e.mu.Lock()
				if e.known && e.rec.State == store.Published {
					errs = append(errs, fn(n, e))
				}
				e.mu.Unlock()
			}
		}
		n.mu.RUnlock()
	}
	return errors.Join(errs...)
}

// natState is what the NAT rules should hold.
func (d *Driver) natState() nat.State {
	var state nat.State
	for _, n := range d.networkRecords() {
		state.Networks = append(state.Networks, natNetwork(n))
	}
	_ = d.eachPublished(func(_ *network, e *endpoint) error {
		state.Mappings = append(state.Mappings, mappings(e.rec)...)
		return nil
	})
	state.Sort()
	return state
}

// networkList is every network, in order of its id.
func (d *Driver) networkList() []*network {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ids []string
	for id := range d.networks {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	list := make([]*network, len(ids))
	for i, id := range ids {
		list[i] = d.networks[id]
	}
	return list
}
