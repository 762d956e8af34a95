package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

// Move gives an external address of one running endpoint to another, named by its
// id or the beginning of that, of whatever network where the address can be used:
// in one transaction of the records and one of the rules, so that each connection
// is made with the one or the other. Connections through it break, so that
// clients connect again; with drain they stay where they are until they end, for
// a day at most. If that makes another interface carry the address, it waits
// until the neighbours there had time to object, or ctx ends.
//
// The endpoint may be HOST/CONTAINER, which is a container of another host of the
// cluster; see moveToHost.
//
// After an error nothing is changed.
func (d *Driver) Move(ctx context.Context, a netip.Addr, id string, drain, dryRun bool) (Report, error) {
	if host, container, ok := strings.Cut(id, "/"); ok {
		return d.moveToHost(ctx, a, host, container, drain, dryRun)
	}
	to, err := d.find(id)
	if err != nil {
		return Report{}, err
	}
	from, err := d.ownerOf(a)
	if err != nil {
		return Report{}, err
	}
	r := newReport()
	if from == to {
		r.left("%s is had already by endpoint %s", a, short(to.id))
		return r, nil
	}
	for p := (*probe)(nil); ; {
		wait := false
		err := d.withBoth(from, to, func(nf, nt *network) error {
			t := transfer{from: from, to: to, nf: nf.rec, nt: nt.rec, addr: a, drain: drain}
			if err := d.planTransfer(&t, nt); err != nil {
				return err
			}
			if dryRun {
				after := t.held()
				if t.isElsewhere() {
					delete(after, a)
				}
				t.report(&r, from.rec, to.rec, t.held(), after)
				return nil
			}
			if p == nil {
				p = d.probe(nt.rec, t.unasked(), false)
			}
			select {
			case <-p.done:
				return d.transfer(&t, p, &r)
			default:
				wait = true
				return nil
			}
		})
		if err != nil || !wait {
			return r, err
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			return r, ctx.Err()
		}
	}
}

// A transfer is one address that moves between two endpoints, which are locked.
type transfer struct {
	from, to *endpoint
	nf, nt   store.Network
	addr     netip.Addr
	drain    bool
	// What is recorded of the endpoints afterwards.
	fromAfter, toAfter store.Endpoint
}

// planTransfer says why the address can't move, or what is recorded then.
func (d *Driver) planTransfer(t *transfer, nt *network) error {
	if !slices.Contains(t.from.rec.External, t.addr) {
		return fmt.Errorf("%s is no longer had by %s", t.addr, title(t.from.rec))
	}
	if l, lost := t.from.lost[t.addr]; lost {
		return fmt.Errorf("%s %s", t.addr, l.text)
	}
	if _, err := d.want(nt, t.to.rec, endpointOptions{addresses: []netip.Addr{t.addr}, reservation: t.to.rec.Reservation}); err != nil {
		return err
	}
	now := time.Now().UTC()
	t.fromAfter, t.toAfter = withoutAddress(t.from.rec, t.addr), gaining(t.to.rec, t.addr)
	t.toAfter.External = append(slices.Clone(t.toAfter.External), t.addr)
	t.fromAfter.Draining = with(t.fromAfter.Draining, t.addr, now)
	if t.drain {
		t.fromAfter.Draining[t.addr] = now.Add(maxDrain)
	}
	return nil
}

// isElsewhere tells whether the address is put on another interface, or heard of
// by others.
func (t *transfer) isElsewhere() bool {
	return aliasLink(t.nf) != aliasLink(t.nt) || t.nf.Parent != t.nt.Parent
}

// unasked is the address, if the neighbours that it comes to may have it.
func (t *transfer) unasked() []netip.Addr {
	if t.nf.Parent == t.nt.Parent {
		return nil
	}
	return []netip.Addr{t.addr}
}

// held is the withheld addresses of both.
func (t *transfer) held() map[netip.Addr]string {
	all := map[netip.Addr]string{}
	maps.Copy(all, t.from.withheld)
	maps.Copy(all, t.to.withheld)
	return all
}

// report says what the transfer changes of the endpoints, as they were recorded
// and withheld before.
func (t *transfer) report(r *Report, from, to store.Endpoint, before, after map[netip.Addr]string) {
	old := insideFor(from, t.addr)
	r.changed(slices.Concat(picture(t.nf, from, before), picture(t.nt, to, before)),
		slices.Concat(picture(t.nf, t.fromAfter, after), picture(t.nt, t.toAfter, after)))
	switch {
	case t.drain:
		r.Done = append(r.Done, fmt.Sprintf("+ drain of %s at %s", t.addr, old))
		r.left("what is connected to %s by %s stays there until it ends, for %s at most", old, t.addr, maxDrain)
	default:
		r.Done = append(r.Done, fmt.Sprintf("- connections of %s with %s", t.addr, old))
	}
	if on := aliasLink(t.nt); on != "" && !t.isElsewhere() {
		r.left("address %s/%d stays on %s", t.addr, t.addr.BitLen(), on)
	}
	if t.drain && t.nf.Parent != t.nt.Parent {
		r.left("connections that drain arrive by %s from now on and are answered by %s, which may break them", t.nt.Parent, t.nf.Parent)
	}
	r.untilStop(from)
	r.untilStop(to)
}

// transfer moves the address, or after an error leaves all as it was.
func (d *Driver) transfer(t *transfer, p *probe, r *Report) error {
	if mac, taken := p.owners[t.addr]; taken {
		d.segments.learn(t.nt.Parent, t.addr, mac.String())
		return fmt.Errorf("extip.address=%s: it %s", t.addr, d.usedOn(t.addr, mac, t.nt.Parent))
	}
	from, to := t.from.rec, t.to.rec
	fromWithheld, toWithheld, held := maps.Clone(t.from.withheld), maps.Clone(t.to.withheld), t.held()
	if err := d.store.ChangeClaims(t.fromAfter, t.toAfter); err != nil {
		return refusal(err)
	}
	addrs := []netip.Addr{t.addr}
	t.from.changed, t.to.changed = time.Now(), time.Now()
	d.setRecord(t.from, t.fromAfter)
	d.setRecord(t.to, t.toAfter)
	d.markPublished(t.to, addrs, aliasLink(t.nt))
	delete(t.from.withheld, t.addr)
	if why := fromWithheld[t.addr]; why != "" && !t.isElsewhere() {
		d.withhold(t.to, t.addr, why)
	} else if p.err != nil {
		d.withhold(t.to, t.addr, cantProbe(p.err))
	}
	steps := d.transferSteps(t, from, to)
	if err := up(steps); err != nil {
		t.from.withheld, t.to.withheld = fromWithheld, toWithheld
		undo := down(steps)
		if undo == nil {
			undo = d.store.ChangeClaims(from, to)
		}
		if undo == nil {
			d.setRecord(t.from, from)
			d.setRecord(t.to, to)
			d.markPublished(t.from, addrs, aliasLink(t.nf))
		}
		return errors.Join(err, undo)
	}
	t.report(r, from, to, held, t.held())
	r.withheld(t.to, addrs)
	d.tell(EventMoved, t.to, "from "+title(from), t.addr)
	return nil
}

// transferSteps is what a transfer changes in the kernel, in order. The address
// has a mapping at any time.
func (d *Driver) transferSteps(t *transfer, from, to store.Endpoint) []step {
	before, after := slices.Concat(mappings(from), mappings(to)), slices.Concat(mappings(t.fromAfter), mappings(t.toAfter))
	steps := []step{
		{
			name: "mapping",
			do:   func() error { return d.kernel.NAT.Add(changedMappings(before, after)...) },
			undo: func() error { return d.kernel.NAT.Add(changedMappings(after, before)...) },
		},
		{name: "connections from before", do: func() error {
			if t.drain {
				return nil
			}
			return d.kernel.Forget(link.Flows{Pairs: []link.Pair{pairOf(from, t.addr)}})
		}},
	}
	if t.isElsewhere() {
		steps = append(steps, d.aliasTransfer(t)...)
	}
	return slices.Concat(steps, d.noteSteps(t.nf, from, t.fromAfter), d.noteSteps(t.nt, to, t.toAfter))
}

// aliasTransfer puts the address onto another interface, or has other neighbours
// hear of it.
func (d *Driver) aliasTransfer(t *transfer) []step {
	leave := func(n store.Network) error {
		if aliasLink(t.nf) == aliasLink(t.nt) {
			d.kernel.Unwatch(n.Parent, t.addr)
			return nil
		}
		return d.removeAlias(n, t.addr)
	}
	return []step{
		{
			name: "alias",
			do:   func() error { return d.ensureAlias(t.nt, t.to, t.addr) },
			undo: func() error { return leave(t.nt) },
		},
		{
			name: "alias from before",
			do:   func() error { return leave(t.nf) },
			undo: func() error {
				return errors.Join(d.ensureAlias(t.nf, t.from, t.addr), d.announce(t.nf, t.from, t.addr))
			},
		},
		{name: "announcement", do: func() error { return d.announce(t.nt, t.to, t.addr) }},
	}
}

// changedMappings is those of after that are not, or not so, in before.
func changedMappings(before, after []nat.Mapping) []nat.Mapping {
	return slices.DeleteFunc(slices.Clone(after), func(m nat.Mapping) bool { return slices.ContainsFunc(before, m.Equal) })
}
