package nat

import (
	"maps"
	"net/netip"
	"slices"
)

// A Change is what one call of a backend asks for. What is dropped goes before
// what is put.
type Change struct{ Put, Drop State }

// Inverse undoes a change that was effective.
func (c Change) Inverse() Change { return Change{Put: c.Drop, Drop: c.Put} }

// Structural tells whether networks change, not only mappings.
func (c Change) Structural() bool { return len(c.Put.Networks)+len(c.Drop.Networks) > 0 }

// Empty tells whether nothing changes.
func (c Change) Empty() bool {
	return !c.Structural() && len(c.Put.Mappings)+len(c.Drop.Mappings) == 0
}

// Desired is what a backend was told: its memory of what the kernel should hold.
type Desired struct {
	Networks map[string]Network     // by ID
	Mappings map[netip.Addr]Mapping // by external address
}

// NewDesired returns one that holds nothing.
func NewDesired() Desired {
	return Desired{Networks: map[string]Network{}, Mappings: map[netip.Addr]Mapping{}}
}

// Equal tells whether both hold the same.
func (d Desired) Equal(o Desired) bool {
	return maps.EqualFunc(d.Mappings, o.Mappings, Mapping.Equal) && maps.EqualFunc(d.Networks, o.Networks, sameNetwork)
}

func sameNetwork(a, b Network) bool {
	return a.ID == b.ID && a.Bridge == b.Bridge && slices.Equal(a.Uplinks, b.Uplinks) && a.Internal == b.Internal &&
		a.Mark == b.Mark && slices.Equal(a.Subnets, b.Subnets)
}

// Equal tells whether two mappings are the same; == would compare where their
// filters are.
func (m Mapping) Equal(o Mapping) bool {
	same := m.Filter.Equal(o.Filter)
	m.Filter, o.Filter = nil, nil
	return same && m == o
}

// Effective is the part of a change that makes a difference, with what gives
// way to it: the mapping that an external address moves away from, the network
// as it was before. Its Inverse undoes it.
func (d Desired) Effective(c Change) (e Change) {
	for _, n := range c.Drop.Networks {
		if cur, ok := d.Networks[n.ID]; ok {
			e.Drop.Networks = append(e.Drop.Networks, cur)
		}
	}
	for _, m := range c.Drop.Mappings {
		// Whoever has taken over the address meanwhile keeps it.
		cur, ok := d.Mappings[m.External]
		if ok && cur.Internal == m.Internal && cur.Endpoint == m.Endpoint {
			e.Drop.Mappings = append(e.Drop.Mappings, cur)
		}
	}
	for _, n := range c.Put.Networks {
		cur, ok := d.Networks[n.ID]
		if ok && sameNetwork(cur, n) {
			continue
		}
		if ok {
			e.Drop.Networks = append(e.Drop.Networks, cur)
		}
		e.Put.Networks = append(e.Put.Networks, n)
	}
	for _, m := range c.Put.Mappings {
		cur, ok := d.Mappings[m.External]
		if ok && cur.Equal(m) {
			continue
		}
		if ok {
			e.Drop.Mappings = append(e.Drop.Mappings, cur)
		}
		e.Put.Mappings = append(e.Put.Mappings, m)
	}
	return e
}

// Apply makes an effective change.
func (d Desired) Apply(e Change) {
	for _, n := range e.Drop.Networks {
		delete(d.Networks, n.ID)
	}
	for _, m := range e.Drop.Mappings {
		delete(d.Mappings, m.External)
	}
	for _, n := range e.Put.Networks {
		d.Networks[n.ID] = n
	}
	for _, m := range e.Put.Mappings {
		d.Mappings[m.External] = m
	}
}
