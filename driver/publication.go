package driver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

// publicationSteps is what an endpoint needs from Join to Leave, in order. An alias
// without its mapping would have the host itself answer on the external
// address, so it comes after it and goes before it. e.mu is held.
func (d *Driver) publicationSteps(n store.Network, e *endpoint) []step {
	return d.addressSteps(n, e, e.rec.External, d.flows(e.rec))
}

// addressSteps is publicationSteps for some of the addresses, with their flows.
func (d *Driver) addressSteps(n store.Network, e *endpoint, addrs []netip.Addr, gone link.Flows) []step {
	forget := func() error { return d.kernel.Forget(gone) }
	released := step{name: "flows", undo: forget}
	if len(addrs) == 0 {
		return []step{released}
	}
	maps := slices.DeleteFunc(mappings(e.rec), func(m nat.Mapping) bool { return !slices.Contains(addrs, m.External) })
	var stuck []netip.Addr // aliases that would not go
	steps := []step{
		released,
		d.barrierStep(n, addrs),
		{
			name: "mapping",
			do:   func() error { return d.kernel.NAT.Add(maps...) },
			undo: func() error {
				if len(stuck) > 0 {
					return fmt.Errorf("kept, while %s is on %s", join(stuck), aliasLink(n))
				}
				return d.kernel.NAT.Remove(maps...)
			},
		},
		{name: "flows from before", do: forget, once: true},
	}
	if aliasLink(n) == "" {
		return steps
	}
	for _, a := range addrs {
		steps = append(steps,
			step{
				name: "alias " + a.String(),
				do:   func() error { return d.ensureAlias(n, e, a) },
				undo: func() error {
					err := d.removeAlias(n, a)
					if err != nil {
						stuck = append(stuck, a)
					}
					return err
				},
			},
			step{name: "announcement of " + a.String(), do: func() error { return d.announce(n, e, a) }},
		)
	}
	return steps
}

// aliasLink is the interface that a network's external addresses are put on;
// "" if they are not put anywhere.
func aliasLink(n store.Network) string {
	switch n.Alias {
	case store.AliasLo:
		return "lo"
	case store.AliasNone:
		return ""
	default:
		return n.Parent
	}
}

// ensureAlias puts an address where its network puts it, unless it is withheld;
// e.mu is held.
func (d *Driver) ensureAlias(n store.Network, e *endpoint, a netip.Addr) error {
	if aliasLink(n) == "" || e.withheld[a] != "" {
		return nil
	}
	err := d.kernel.EnsureAlias(aliasLink(n), a)
	if errors.Is(err, link.ErrNoLink) {
		d.withhold(e, a, "waits for "+n.Parent)
		return nil
	}
	return err
}

// removeAlias takes an address away from where its network puts it; what the
// neighbours say of it is heard no more.
func (d *Driver) removeAlias(n store.Network, a netip.Addr) error {
	if aliasLink(n) == "" {
		return nil
	}
	d.kernel.Unwatch(n.Parent, a)
	return d.kernel.RemoveAlias(aliasLink(n), a)
}

// announce tells the neighbours where an address is, unless it is withheld; e.mu
// is held. A parent that is down has none, so nothing fails for it.
func (d *Driver) announce(n store.Network, e *endpoint, a netip.Addr) error {
	if aliasLink(n) == "" || e.withheld[a] != "" {
		return nil
	}
	if err := d.kernel.Announce(n.Parent, a); err != nil {
		d.log.WithField("external", a).WithError(err).Warn("not announced")
		return nil
	}
	d.observer.Announced(a)
	return nil
}

// publish records the endpoint as published and does the steps; e.mu is held.
func (d *Driver) publish(n *network, e *endpoint) error {
	e.changed = time.Now()
	if err := d.setState(e, store.Published); err != nil {
		return err
	}
	d.markPublished(e, e.rec.External, aliasLink(n.rec))
	for _, a := range e.rec.External {
		if host := d.holder(a); host != "" {
			d.markLost(e, a, loss{heldBy(host), host})
		} else if why := d.barred(e, a); why != "" {
			d.withhold(e, a, why)
		}
	}
	if err := up(d.publicationSteps(n.rec, e)); err != nil {
		return errors.Join(err, d.unpublish(n, e))
	}
	d.tell(EventPublished, e, "", e.notWithheld(e.rec.External)...)
	return nil
}

// unpublish undoes publish; e.mu is held. Until everything is gone, the record
// stays as it was.
func (d *Driver) unpublish(n *network, e *endpoint) error {
	if e.rec.State == store.Plumbed || e.rec.State == store.Retired {
		return nil
	}
	e.changed = time.Now()
	if err := down(d.publicationSteps(n.rec, e)); err != nil {
		return err
	}
	d.markWithdrawn(e, e.rec.External)
	d.keepClear(n.rec, e, e.rec.External)
	d.tell(EventWithdrawn, e, "", e.rec.External...)
	e.withheld, e.lost, e.giving = nil, nil, nil
	return d.setState(e, store.Plumbed)
}

// setState records how far the endpoint has come; e.mu is held.
func (d *Driver) setState(e *endpoint, s store.State) error {
	if e.rec.State == s {
		return nil
	}
	rec := e.rec
	rec.State = s
	if s != store.Published {
		rec.Draining = nil // its flows go with it
	}
	if err := d.store.PutEndpoint(rec); err != nil {
		return err
	}
	d.setRecord(e, rec)
	return nil
}

// setRecord takes over what was recorded of an endpoint; e.mu is held.
func (d *Driver) setRecord(e *endpoint, rec store.Endpoint) {
	before := e.rec
	e.rec = rec
	d.drainsChange(e, before)
}
