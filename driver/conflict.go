package driver

import (
	"github.com/extip/extip/announce"
	"github.com/extip/extip/store"
)

// defendAll has the addresses defended that are published since before the
// start. On a parent that is down they are once it comes up.
func (d *Driver) defendAll() {
	d.eachEndpoint(func(n *network, e *endpoint) {
		if e.rec.State != store.Published || aliasLink(n.rec) == "" {
			return
		}
		for _, a := range e.rec.External {
			if e.withheld[a] != "" {
				continue
			}
			if err := d.kernel.Defend(n.rec.Parent, a); err != nil {
				d.log.WithField("external", a).WithError(err).Warn("not defended")
			}
		}
	})
}

// Conflict takes what was heard of another host that uses an address which is
// ours, or was to be.
func (d *Driver) Conflict(c announce.Conflict) {
	mac := c.MAC.String()
	e := d.publisher(c.Address)
	if e == nil {
		// Probed ahead, or ours until a moment ago.
		d.segments.learn(c.Parent, c.Address, mac)
		d.kernel.Unwatch(c.Parent, c.Address)
		return
	}
	clash := d.segments.clash(c.Address, mac)
	d.observer.Conflict(c.Address)
	log := d.log.WithField("external", c.Address).WithField("mac", mac).WithField("conflicts", clash.Count)
	_ = d.withEndpoint(e.network, e.id, func(n *network, e *endpoint) error {
		d.tell(EventConflict, e, mac+" uses it", c.Address)
		switch {
		case e.rec.State != store.Published || e.withheld[c.Address] != "":
		case !d.mayKeep(c.Address):
			d.fenced(c.Address, d.yield(n, e, c.Address, c.MAC))
		case c.Defended:
			log.Warn("conflict: another host uses the address; it was told that it is ours")
		case n.rec.Conflict == store.ConflictYield:
			log.Error("conflict: another host goes on using the address; it is left to it")
			d.withhold(e, c.Address, "is used by "+mac)
			return d.removeAlias(n.rec, c.Address)
		default:
			log.Error("conflict: another host goes on using the address; it is kept")
		}
		return nil
	})
}
