package driver

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/extip/extip/link"
)

// strays removes what carries our mark without a record.
func (r *repair) strays() {
	names := slices.Sorted(maps.Keys(r.found.Links))
	// Ports go before their bridges.
	slices.SortStableFunc(names, func(a, b string) int {
		if r.found.Links[a].IsBridge == r.found.Links[b].IsBridge {
			return 0
		}
		if r.found.Links[b].IsBridge {
			return -1
		}
		return 1
	})
	for _, name := range names {
		l := r.found.Links[name]
		if r.recorded(l.Owner) {
			continue
		}
		r.note("%s had no record", name)
		r.do(func() error {
			if l.IsBridge {
				return r.kernel.RemoveBridge(link.Bridge{Name: name, Owner: l.Owner})
			}
			return r.kernel.RemoveVeth(link.Veth{Host: name, Owner: l.Owner})
		})
	}
	for a, links := range r.found.Aliases {
		for _, on := range links {
			r.strayAlias(a, on)
		}
	}
}

// strayAlias removes an alias that nobody has published there. Nobody can
// publish it in the meantime: that begins with the lock that is held here.
func (r *repair) strayAlias(a netip.Addr, on string) {
	r.publishing.Lock()
	defer r.publishing.Unlock()
	if r.published[a].on == on {
		return
	}
	r.note("alias %s on %s had no record", a, on)
	r.do(func() error { return r.kernel.RemoveAlias(on, a) })
}

// recorded tells whether an id is that of a network or endpoint, or of one
// that a call is about to make.
func (d *Driver) recorded(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.networks[id] != nil || d.endpoints[id] != nil
}
