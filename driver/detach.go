package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/extip/extip/store"
)

// Detach takes an external address from its endpoint, which goes on running, and
// releases it. What was connected by it ends. If the container's own connections
// left from it, they leave from its next address of that family, or from the
// host's.
func (d *Driver) Detach(ctx context.Context, a netip.Addr, dryRun bool) (Report, error) {
	if err := ctx.Err(); err != nil {
		return Report{}, err
	}
	owner, err := d.ownerOf(a)
	if err != nil {
		return Report{}, err
	}
	r := newReport()
	err = d.withRunning(owner, func(n *network, e *endpoint) error {
		if !slices.Contains(e.rec.External, a) {
			return fmt.Errorf("%s is no longer had by %s", a, title(e.rec))
		}
		before, after := picture(n.rec, e.rec, e.withheld), withoutAddress(e.rec, a)
		r.changed(before, picture(n.rec, after, e.withheld))
		r.untilStop(e.rec)
		if dryRun {
			return nil
		}
		return d.detach(n, e, after, a)
	})
	return r, err
}

// withoutAddress is an endpoint that has lost an address.
func withoutAddress(e store.Endpoint, a netip.Addr) store.Endpoint {
	e.External = slices.DeleteFunc(slices.Clone(e.External), func(o netip.Addr) bool { return o == a })
	e.Since = maps.Clone(e.Since)
	delete(e.Since, a)
	return e
}

// detach takes an address away in the kernel, then from the record; e.mu is held.
// After an error all is as before, as far as it can be; reconciling does the rest.
func (d *Driver) detach(n *network, e *endpoint, after store.Endpoint, a netip.Addr) error {
	before := e.rec
	err := d.takeAway(n, e, after, a, func() error { return d.store.ChangeClaims(after) })
	if err != nil {
		return errors.Join(err, again(append(d.publicationSteps(n.rec, e), d.noteSteps(n.rec, before, before)...)))
	}
	d.tell(EventWithdrawn, e, "detached", a)
	d.keepClear(n.rec, e, []netip.Addr{a})
	d.setRecord(e, after)
	d.dropAddresses(e, []netip.Addr{a})
	return nil
}

// takeAway takes an address away in the kernel, then from the record; e.mu is held.
// After an error it may be half gone.
func (d *Driver) takeAway(n *network, e *endpoint, after store.Endpoint, a netip.Addr, record func() error) error {
	before := e.rec
	e.changed = time.Now()
	err := d.egressFromNext(before, after, a)
	if err == nil {
		err = down(d.addressSteps(n.rec, e, []netip.Addr{a}, d.flowsBy(before, []netip.Addr{a})))
	}
	if err == nil {
		err = up(d.noteSteps(n.rec, before, after))
	}
	if err == nil {
		err = record()
	}
	return err
}

// egressFromNext has the container's own connections leave from its next address, if
// they left from the one that goes, without a moment in which they leave from the
// host's.
func (d *Driver) egressFromNext(before, after store.Endpoint, a netip.Addr) error {
	moved := changedMappings(mappings(before), mappings(after))
	if len(moved) == 0 {
		return nil
	}
	for _, m := range mappings(before) {
		if m.External == a {
			m.Egress = false
			moved = append(moved, m)
		}
	}
	return d.kernel.NAT.Add(moved...)
}
