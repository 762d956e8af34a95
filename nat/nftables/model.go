package nftables

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/extip/extip/nat"
)

// A model is what the tables are made from.
type model struct {
	networks map[string]nat.Network
	mappings map[netip.Addr]nat.Mapping  // by external address
	inside   map[netip.Addr][]netip.Addr // internal → external addresses, sorted
	// What each family has.
	subnets, mapped [2]int
}

func newModel() *model {
	return &model{networks: map[string]nat.Network{}, mappings: map[netip.Addr]nat.Mapping{}, inside: map[netip.Addr][]netip.Addr{}}
}

func modelOf(s nat.State) *model {
	m := newModel()
	m.apply(m.effective(change{put: s}))
	return m
}

func (m *model) equal(o *model) bool {
	return maps.Equal(m.mappings, o.mappings) && maps.EqualFunc(m.networks, o.networks, sameNetwork)
}

// A change is what one call asks for. What is dropped goes before what is put.
type change struct{ put, drop nat.State }

func (c change) inverse() change { return change{put: c.drop, drop: c.put} }

func (c change) empty() bool {
	return !c.structural() && len(c.put.Mappings)+len(c.drop.Mappings) == 0
}

// structural tells whether chains and rules change, not only elements.
func (c change) structural() bool { return len(c.put.Networks)+len(c.drop.Networks) > 0 }

// addrs is the addresses whose elements may change.
func (c change) addrs() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, ms := range [][]nat.Mapping{c.drop.Mappings, c.put.Mappings} {
			for _, m := range ms {
				if !yield(m.External) || !yield(m.Internal) {
					return
				}
			}
		}
	}
}

// effective is the part of a change that makes a difference, with what gives
// way to it: the mapping that an external address moves away from, the
// network as it was before. Its inverse undoes it.
func (m *model) effective(c change) (e change) {
	for _, n := range c.drop.Networks {
		if cur, ok := m.networks[n.ID]; ok {
			e.drop.Networks = append(e.drop.Networks, cur)
		}
	}
	for _, mp := range c.drop.Mappings {
		// Whoever has taken over the address meanwhile keeps it.
		cur, ok := m.mappings[mp.External]
		if ok && cur.Internal == mp.Internal && cur.Endpoint == mp.Endpoint {
			e.drop.Mappings = append(e.drop.Mappings, cur)
		}
	}
	for _, n := range c.put.Networks {
		cur, ok := m.networks[n.ID]
		if ok && sameNetwork(cur, n) {
			continue
		}
		if ok {
			e.drop.Networks = append(e.drop.Networks, cur)
		}
		e.put.Networks = append(e.put.Networks, n)
	}
	for _, mp := range c.put.Mappings {
		cur, ok := m.mappings[mp.External]
		if ok && cur == mp {
			continue
		}
		if ok {
			e.drop.Mappings = append(e.drop.Mappings, cur)
		}
		e.put.Mappings = append(e.put.Mappings, mp)
	}
	return e
}

func sameNetwork(a, b nat.Network) bool {
	return a.ID == b.ID && a.Bridge == b.Bridge && a.Parent == b.Parent && a.Internal == b.Internal &&
		slices.Equal(a.Subnets, b.Subnets)
}

// apply makes an effective change.
func (m *model) apply(e change) {
	for _, n := range e.drop.Networks {
		delete(m.networks, n.ID)
		m.countSubnets(n, -1)
	}
	for _, mp := range e.drop.Mappings {
		delete(m.mappings, mp.External)
		m.mapped[familyOf(mp.External).index()]--
		m.inside[mp.Internal] = slices.DeleteFunc(m.inside[mp.Internal], func(a netip.Addr) bool { return a == mp.External })
		if len(m.inside[mp.Internal]) == 0 {
			delete(m.inside, mp.Internal)
		}
	}
	for _, n := range e.put.Networks {
		m.networks[n.ID] = n
		m.countSubnets(n, 1)
	}
	for _, mp := range e.put.Mappings {
		m.mappings[mp.External] = mp
		m.mapped[familyOf(mp.External).index()]++
		at, _ := slices.BinarySearchFunc(m.inside[mp.Internal], mp.External, netip.Addr.Compare)
		m.inside[mp.Internal] = slices.Insert(m.inside[mp.Internal], at, mp.External)
	}
}

func (m *model) countSubnets(n nat.Network, by int) {
	for _, f := range families() {
		if f.subnet(n).IsValid() {
			m.subnets[f.index()] += by
		}
	}
}

// active tells whether the family needs its table.
func (m *model) active(f family) bool { return m.subnets[f.index()]+m.mapped[f.index()] > 0 }

// all is every address that has elements.
func (m *model) all() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for a := range m.mappings {
			if !yield(a) {
				return
			}
		}
		for a := range m.inside {
			if !yield(a) {
				return
			}
		}
	}
}

// whole is the family's table, nil if it needs none.
func (m *model) whole(f family) *table { return m.view(f, true, m.all()) }

// view is the part of the family's table that holds the addresses' elements
// and, if framed, all that does not come from mappings.
func (m *model) view(f family, framed bool, addrs iter.Seq[netip.Addr]) *table {
	if !m.active(f) {
		return nil
	}
	t := &table{sets: mappingSets(f)}
	if framed {
		frame(t, f, m.sorted(f))
	}
	for a := range addrs {
		if familyOf(a) == f {
			m.fill(t, a)
		}
	}
	return t
}

// sorted is the networks with a subnet of the family.
func (m *model) sorted(f family) []nat.Network {
	ns := slices.SortedFunc(maps.Values(m.networks), func(a, b nat.Network) int { return cmp.Compare(a.ID, b.ID) })
	return slices.DeleteFunc(ns, func(n nat.Network) bool { return !f.subnet(n).IsValid() })
}

// fill adds the elements whose key is the address.
func (m *model) fill(t *table, a netip.Addr) {
	key := raw(a)
	if mp, ok := m.mappings[a]; ok {
		t.sets[setInside].elements[key] = raw(mp.Internal)
		t.sets[setExternal].elements[key] = ""
	}
	for _, external := range m.inside[a] {
		mp := m.mappings[external]
		if _, taken := t.sets[setOutside].elements[key]; mp.Egress && !taken {
			t.sets[setOutside].elements[key] = raw(external)
		}
		if mp.Gateway {
			t.sets[setGateway].elements[key] = ""
		}
	}
}

// raw is an address as the kernel holds it.
func raw(a netip.Addr) string { return string(a.AsSlice()) }
