package driver

import (
	"maps"
	"slices"

	"github.com/extip/extip/link"
	"github.com/extip/extip/store"
)

// uplinkOf is the interface by which a network's packets have to leave; "" if
// the host's routes decide, as for addresses that are not those of a segment.
func uplinkOf(n store.Network) string {
	if n.Internal || n.Alias != store.AliasParent || n.Parent == "lo" {
		return ""
	}
	return n.Parent
}

// syncUplinks finds out by which interfaces containers go out, and has packets
// of networks leave by their parents where the host has several. It tells
// whether any of that has changed; the rules of the networks are to follow.
func (d *Driver) syncUplinks() (changed bool, err error) {
	d.uplinking.Lock()
	defer d.uplinking.Unlock()
	d.mu.Lock()
	parents := slices.Compact(slices.Sorted(maps.Values(d.parents)))
	d.mu.Unlock()
	parents = slices.DeleteFunc(parents, func(p string) bool { return p == "" })
	uplinks, err := d.kernel.DefaultLinks()
	if err != nil {
		return false, err
	}
	uplinks = slices.Compact(slices.Sorted(slices.Values(slices.Concat(uplinks, parents))))
	needs, settings, err := d.kernel.SyncUplinks(parents)
	if err := d.settings(settings, err); err != nil {
		return false, err
	}
	d.mu.Lock()
	before := d.needs
	changed = !maps.Equal(before, needs) || !slices.Equal(d.uplinks, uplinks)
	d.needs, d.uplinks = needs, uplinks
	d.mu.Unlock()
	for name, u := range needs {
		if u.Without != (link.Families{}) && u != before[name] {
			d.log.WithField("parent", name).Warn("the host has no default route through it, but others: what containers send far away leaves elsewhere. " +
				"Add one, with a higher metric than the others'")
		}
	}
	return changed, nil
}
