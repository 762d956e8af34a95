package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/extip/extip/link"
	"github.com/extip/extip/store"
)

// Attach gives a running endpoint, named by its id or the beginning of that,
// further external addresses; with none, the next of its network's pool, of each
// family. It waits until the neighbours had time to object, or ctx ends.
//
// It fails as docker run would that asks for the addresses; then, nothing is
// changed.
func (d *Driver) Attach(ctx context.Context, id string, addrs []netip.Addr, dryRun bool) (Report, error) {
	return d.attachTo(ctx, id, addrs, false, dryRun)
}

// Adopt is Attach for an address that this host has already: set up by hand for
// the same container. Nobody is asked for it, and that it is the host's own is no
// reason against it.
func (d *Driver) Adopt(ctx context.Context, id string, a netip.Addr) (Report, error) {
	return d.attachTo(ctx, id, []netip.Addr{a}, true, false)
}

func (d *Driver) attachTo(ctx context.Context, id string, addrs []netip.Addr, adopt, dryRun bool) (Report, error) {
	e, err := d.find(id)
	if err != nil {
		return Report{}, err
	}
	for ctx.Err() == nil {
		a := attachment{Report: newReport(), adopt: adopt}
		err := d.withRunning(e, func(n *network, e *endpoint) error { return d.planAttach(n, e, addrs, &a, dryRun) })
		if err != nil || dryRun || len(a.addrs) == 0 {
			return a.Report, err
		}
		select {
		case <-a.probe.done:
		case <-ctx.Done():
			return Report{}, ctx.Err()
		}
		again := false
		err = d.withRunning(e, func(n *network, e *endpoint) (err error) {
			again, err = d.attach(n, e, &a)
			return err
		})
		if err != nil || !again {
			return a.Report, err
		}
	}
	return Report{}, ctx.Err()
}

// An attachment is what an endpoint is to get.
type attachment struct {
	Report
	adopt bool
	want  store.Want
	// addrs are what it would be given now, and probe asks for them.
	addrs []netip.Addr
	probe *probe
}

// planAttach finds out what an endpoint would be given, and begins to ask the
// neighbours for it, or in a dry run reports it; e.mu is held. Nothing is claimed
// yet: what others of this host claim meanwhile is found out then.
func (d *Driver) planAttach(n *network, e *endpoint, addrs []netip.Addr, a *attachment, dryRun bool) (err error) {
	o := endpointOptions{auto: len(addrs) == 0, reservation: e.rec.Reservation, adopt: a.adopt}
	for _, addr := range addrs {
		if slices.Contains(e.rec.External, addr) {
			a.left("%s is had already by %s", addr, title(e.rec))
		} else if !slices.Contains(o.addresses, addr) {
			o.addresses = append(o.addresses, addr)
		}
	}
	if !o.auto && len(o.addresses) == 0 {
		return nil
	}
	if a.want, err = d.want(n, e.rec, o); err != nil {
		return err
	}
	after, err := d.store.AddClaims(e.rec, a.want, true)
	if err != nil {
		return refusal(err)
	}
	a.addrs = after.External[len(e.rec.External):]
	if !dryRun {
		asked := a.addrs
		if a.adopt {
			asked = nil
		}
		a.probe = d.probe(n.rec, asked, insists(a.want))
		return nil
	}
	a.changed(picture(n.rec, e.rec, e.withheld), picture(n.rec, after, e.withheld))
	for _, addr := range a.addrs {
		if _, ok := timing(n.rec); ok && !d.segments.isClear(n.rec.Parent, addr, 0) {
			a.left("%s is asked for on %s first, in case another host has it", addr, n.rec.Parent)
		}
	}
	a.untilStop(e.rec)
	return nil
}

// attach claims and publishes what was planned and probed, and tells whether to
// plan again; e.mu is held.
func (d *Driver) attach(n *network, e *endpoint, a *attachment) (again bool, err error) {
	for addr, mac := range a.probe.owners {
		d.segments.learn(n.rec.Parent, addr, mac.String())
		if len(a.want.Addresses) > 0 {
			return false, fmt.Errorf("extip.address=%s: it %s", addr, d.usedOn(addr, mac, n.rec.Parent))
		}
		d.log.WithField("external", addr).Warnf("passed over: %s uses it on the segment of %s", mac, n.rec.Parent)
		again = true
	}
	if again {
		return true, nil
	}
	want := a.want
	if unusable := want.Unusable; unusable != nil {
		want.Prefer = a.addrs
		want.Unusable = func(addr netip.Addr) string {
			if !slices.Contains(a.addrs, addr) {
				return "was not asked for"
			}
			return unusable(addr)
		}
	}
	after, err := d.store.AddClaims(gaining(e.rec, a.addrs...), want, false)
	if _, ok := errors.AsType[*store.ExhaustedError](err); ok {
		return true, nil // somebody was faster
	}
	if err != nil {
		return false, refusal(err)
	}
	before, withheld := e.rec, maps.Clone(e.withheld)
	if err := d.giveAddresses(n, e, after, a); err != nil {
		return false, err
	}
	a.changed(picture(n.rec, before, withheld), picture(n.rec, after, e.withheld))
	a.withheld(e, a.addrs)
	a.untilStop(after)
	return false, nil
}

// gaining is an endpoint that is about to get addresses.
func gaining(e store.Endpoint, addrs ...netip.Addr) store.Endpoint {
	e.Draining = maps.Clone(e.Draining)
	for _, a := range addrs {
		e.Since = with(e.Since, a, time.Now().UTC())
		delete(e.Draining, a)
	}
	return e
}

// with is a copy of m with one more entry.
func with[K comparable, V any](m map[K]V, key K, value V) map[K]V {
	m = maps.Clone(m)
	if m == nil {
		m = map[K]V{}
	}
	m[key] = value
	return m
}

// giveAddresses publishes what an endpoint has just claimed, or undoes that too;
// e.mu is held.
func (d *Driver) giveAddresses(n *network, e *endpoint, after store.Endpoint, a *attachment) error {
	before := e.rec
	e.changed = time.Now()
	d.setRecord(e, after)
	d.tell(EventClaimed, e, "attached", a.addrs...)
	d.markPublished(e, a.addrs, aliasLink(n.rec))
	if a.probe.err != nil {
		for _, addr := range a.addrs {
			d.withhold(e, addr, cantProbe(a.probe.err))
		}
	}
	steps := append(d.addressSteps(n.rec, e, a.addrs, d.flowsBy(before, a.addrs)), d.noteSteps(n.rec, before, after)...)
	err := up(steps)
	if err == nil {
		d.tell(EventPublished, e, "attached", e.notWithheld(a.addrs)...)
		return nil
	}
	// What would not go stays on record, and reconciling gives it anew.
	undo := down(steps)
	if undo == nil {
		undo = d.store.ChangeClaims(before)
	}
	if undo == nil {
		d.setRecord(e, before)
		d.dropAddresses(e, a.addrs)
	}
	return errors.Join(err, undo)
}

// flowsBy are those by addresses that an endpoint gets or loses, but for those of
// its other addresses.
func (d *Driver) flowsBy(e store.Endpoint, addrs []netip.Addr) link.Flows {
	f := link.Flows{External: addrs, Pairs: d.drainsOf(addrs)}
	for _, a := range addrs {
		f.Pairs = append(f.Pairs, pairOf(e, a))
	}
	return f
}

// noteSteps has an endpoint's link say what is recorded of it now.
func (d *Driver) noteSteps(n store.Network, before, after store.Endpoint) []step {
	return []step{{
		name: "note of the link",
		do:   d.vethStep(n, after).do,
		undo: d.vethStep(n, before).do,
	}}
}

// dropAddresses forgets addresses that an endpoint has no longer, and that are
// free now; e.mu is held.
func (d *Driver) dropAddresses(e *endpoint, addrs []netip.Addr) {
	d.forgetAddresses(e, addrs)
	d.tell(EventReleased, e, "", addrs...)
}

// forgetAddresses forgets addresses that an endpoint has no longer; e.mu is held.
func (d *Driver) forgetAddresses(e *endpoint, addrs []netip.Addr) {
	d.markWithdrawn(e, addrs)
	for _, a := range addrs {
		delete(e.withheld, a)
		delete(e.lost, a)
		delete(e.giving, a)
	}
}
