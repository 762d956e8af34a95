package driver

import (
	"context"
	"net/netip"
	"slices"

	"github.com/extip/extip/store"
)

// A published address may be withheld from its parent, which then is what the
// endpoint waits for: the parent is missing, or somebody else uses the address.
// Its mapping stays, so the host itself never answers.

// withhold keeps an address from its parent until releaseWithheld finds that
// nothing stands against it any more; e.mu is held.
func (d *Driver) withhold(e *endpoint, a netip.Addr, why string) {
	if e.withheld == nil {
		e.withheld = map[netip.Addr]string{}
	}
	if e.withheld[a] != why {
		d.log.WithField("endpoint", short(e.id)).WithField("external", a).Warnf("withheld: it %s", why)
		d.tell(EventWithheld, e, "it "+why, a)
	}
	e.withheld[a] = why
	d.mu.Lock()
	d.waiting[e] = true
	d.mu.Unlock()
}

// notWithheld is those of an endpoint's addresses that are not; e.mu is held.
func (e *endpoint) notWithheld(addrs []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return e.withheld[a] != "" })
}

// askWithheld has it looked soon whether withheld addresses can be had now.
func (d *Driver) askWithheld() { hint(d.withheldAgain, "") }

// releaseWithheld asks again for all withheld addresses, and puts those on
// their parents that nobody else has.
func (d *Driver) releaseWithheld(ctx context.Context) {
	d.mu.Lock()
	var waiting []*endpoint
	for e := range d.waiting {
		waiting = append(waiting, e)
	}
	d.mu.Unlock()
	asked := questions{}
	why := map[netip.Addr]string{} // "" where nothing stands against it
	unclaimed := map[netip.Addr]bool{}
	for _, e := range waiting {
		_ = d.withEndpoint(e.network, e.id, func(n *network, e *endpoint) error {
			how, ok := timing(n.rec)
			for a := range e.withheld {
				bar := d.barred(e, a)
				unclaimed[a] = bar != "" && d.mayRegain(e, a)
				if bar != "" && !unclaimed[a] {
					why[a] = bar
				} else if ok {
					asked.add(n.rec.Parent, how, a)
				} else if _, err := d.kernel.Parent(n.rec.Parent); err != nil {
					why[a] = "waits for " + n.rec.Parent
				} else {
					why[a] = ""
				}
			}
			return nil
		})
	}
	obstacles := d.ask(ctx, asked)
	for _, addrs := range asked {
		for _, a := range addrs {
			why[a] = obstacles[a].why
		}
	}
	d.regain(unclaimed, why)
	for _, e := range waiting {
		_ = d.withEndpoint(e.network, e.id, func(n *network, e *endpoint) error {
			d.letGo(n, e, why)
			if len(e.withheld) == 0 {
				d.mu.Lock()
				delete(d.waiting, e)
				d.mu.Unlock()
			}
			return nil
		})
	}
}

// letGo puts the withheld addresses on the parent that may be there; e.mu is
// held.
func (d *Driver) letGo(n *network, e *endpoint, why map[netip.Addr]string) {
	var freed []netip.Addr
	for a := range e.withheld {
		reason, known := why[a]
		bar := d.barred(e, a)
		if bar == "" {
			delete(e.lost, a)
		} else {
			reason = bar // the ledger may have changed meanwhile
		}
		switch {
		case !known:
		case reason != "":
			d.withhold(e, a, reason)
		default:
			delete(e.withheld, a)
			delete(e.giving, a)
			freed = append(freed, a)
		}
	}
	if len(freed) == 0 || e.rec.State != store.Published {
		return
	}
	log := d.log.WithField("endpoint", short(e.id))
	if err := again(d.publicationSteps(n.rec, e)); err != nil {
		log.WithError(err).Error("not put on its parent")
		d.Hint("withheld address")
		return
	}
	freed = e.notWithheld(freed)
	log.WithField("external", join(freed)).Info("no longer withheld")
	d.tell(EventPublished, e, "no longer withheld", freed...)
}
