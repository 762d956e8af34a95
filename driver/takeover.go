package driver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/extip/extip/store"
)

// Offered is asked by the cluster's member, and says which endpoint can have an address
// that another host would hand over to a container of this one. Nothing is changed
// by that: the address comes, if at all, by the ledger. It waits for calls that are
// under way about the container, and some seconds for its name.
func (d *Driver) Offered(o store.Offer) (store.Acceptance, error) {
	if d.isApart() {
		return store.Acceptance{}, errors.New("it can't reach etcd")
	}
	named := d.awaitNamed(o.Container)
	if len(named) == 0 {
		return store.Acceptance{}, fmt.Errorf("it has no container %q with an endpoint on a network of extip", o.Container)
	}
	var fit []store.Acceptance
	var errs []error
	for _, e := range named {
		err := d.withRunning(e, func(n *network, e *endpoint) error {
			_, err := d.want(n, e.rec, endpointOptions{addresses: []netip.Addr{o.Address}, reservation: e.rec.Reservation})
			if err == nil {
				fit = append(fit, store.Acceptance{Endpoint: e.id, Network: n.rec.ID, Container: e.rec.Name, Reservation: e.rec.Reservation})
			}
			return err
		})
		errs = append(errs, err)
	}
	switch len(fit) {
	case 0:
		return store.Acceptance{}, errors.Join(errs...)
	case 1:
		return fit[0], nil
	default:
		var ids []string
		for _, a := range fit {
			ids = append(ids, short(a.Endpoint))
		}
		return store.Acceptance{}, fmt.Errorf("container %q is on several networks that can have it: name one of its endpoints %s", o.Container, strings.Join(ids, ", "))
	}
}

// awaitNamed is endpointsNamed for a container that may have joined just now: its name
// is asked for auditDelay after that, and auditRest after another's.
func (d *Driver) awaitNamed(name string) []*endpoint {
	for deadline := time.Now().Add(auditRest + 2*auditDelay); ; time.Sleep(auditDelay / 10) {
		list := d.endpointsNamed(name)
		if len(list) > 0 || !d.hasNameless() || time.Now().After(deadline) {
			return list
		}
	}
}

// hasNameless tells whether there are published endpoints whose container's name is
// not known yet.
func (d *Driver) hasNameless() (found bool) {
	d.eachEndpoint(func(_ *network, e *endpoint) {
		found = found || e.rec.Name == "" && e.rec.State == store.Published
	})
	return found
}

// endpointsNamed are the published ones of a container, by its name, or else the
// one with an id that begins so.
func (d *Driver) endpointsNamed(name string) (list []*endpoint) {
	d.eachEndpoint(func(_ *network, e *endpoint) {
		if e.rec.Name == name && e.rec.State == store.Published {
			list = append(list, e)
		}
	})
	if len(list) == 0 {
		if e, err := d.find(name); err == nil {
			list = append(list, e)
		}
	}
	return list
}

// takeOver publishes an address that another host has handed over. What can't be
// done now is tried again, for a minute: then the claim is released.
func (d *Driver) takeOver(a netip.Addr, c store.Claim) {
	err := d.withEndpoint(c.Network, c.Endpoint, func(n *network, e *endpoint) error {
		now, ok := d.store.Holder(a)
		if !ok || now.Host != c.Host || now.Endpoint != e.id || now.From == "" || checkRunning(e) != nil {
			return nil
		}
		before, after := e.rec, e.rec
		if !slices.Contains(before.External, a) {
			after = gaining(before, a)
			after.External = append(slices.Clone(before.External), a)
		}
		if err := d.store.TakeOver(after, a); err != nil {
			return err
		}
		addrs := []netip.Addr{a}
		e.changed = time.Now()
		d.setRecord(e, after)
		d.markPublished(e, addrs, aliasLink(n.rec))
		delete(e.withheld, a)
		delete(e.lost, a)
		d.observer.TakenOver(a)
		d.tell(EventMoved, e, "from host "+c.From, a)
		steps := append(d.addressSteps(n.rec, e, addrs, d.flowsBy(before, addrs)), d.noteSteps(n.rec, before, after)...)
		if err := up(steps); err != nil {
			d.log.WithField("external", a).WithError(err).Warn("not taken over at once")
			if err := again(steps); err != nil {
				return err
			}
		}
		d.log.WithField("endpoint", short(e.id)).WithField("external", a).Infof("taken over from host %s", c.From)
		return nil
	})
	if err != nil {
		d.log.WithField("external", a).WithError(err).Error("not taken over entirely; that is tried again")
		d.Hint("withheld address")
	}
}
