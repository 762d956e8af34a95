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
	nat.Desired
	counting
	inside map[netip.Addr][]netip.Addr // internal → external addresses, sorted
	class  map[netip.Addr]string       // external address → name of its filter
	// What each family has.
	subnets, mapped, limited [2]int
	classes                  [2]map[string]*class // filters by name
}

func newModel() *model {
	return &model{
		Desired: nat.NewDesired(),
		inside:  map[netip.Addr][]netip.Addr{},
		class:   map[netip.Addr]string{},
		classes: [2]map[string]*class{{}, {}},
	}
}

func modelOf(s nat.State, c counting) *model {
	m := newModel()
	m.counting = c
	m.apply(m.Effective(nat.Change{Put: s}))
	return m
}

// addrs is the addresses whose elements may change.
func addrs(c nat.Change) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, ms := range [][]nat.Mapping{c.Drop.Mappings, c.Put.Mappings} {
			for _, m := range ms {
				if !yield(m.External) || !yield(m.Internal) {
					return
				}
			}
		}
	}
}

// filters is the names of the filters whose sets and chains may change.
func filters(c nat.Change) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, ms := range [][]nat.Mapping{c.Drop.Mappings, c.Put.Mappings} {
			for _, m := range ms {
				if name := className(m.Filter); name != "" && !yield(name) {
					return
				}
			}
		}
	}
}

// apply makes an effective change.
func (m *model) apply(e nat.Change) {
	m.Apply(e)
	for _, n := range e.Drop.Networks {
		m.countSubnets(n, -1)
	}
	for _, mp := range e.Drop.Mappings {
		m.mapped[familyOf(mp.External).index()]--
		m.dropFilter(mp)
		m.countLimit(mp, -1)
		m.inside[mp.Internal] = slices.DeleteFunc(m.inside[mp.Internal], func(a netip.Addr) bool { return a == mp.External })
		if len(m.inside[mp.Internal]) == 0 {
			delete(m.inside, mp.Internal)
		}
	}
	for _, n := range e.Put.Networks {
		m.countSubnets(n, 1)
	}
	for _, mp := range e.Put.Mappings {
		m.mapped[familyOf(mp.External).index()]++
		m.putFilter(mp)
		m.countLimit(mp, 1)
		at, _ := slices.BinarySearchFunc(m.inside[mp.Internal], mp.External, netip.Addr.Compare)
		m.inside[mp.Internal] = slices.Insert(m.inside[mp.Internal], at, mp.External)
	}
}

func (m *model) putFilter(mp nat.Mapping) {
	name := className(mp.Filter)
	if name == "" {
		return
	}
	m.class[mp.External] = name
	classes := m.classes[familyOf(mp.External).index()]
	if classes[name] == nil {
		classes[name] = &class{filter: mp.Filter.Canonical()}
	}
	classes[name].users++
}

func (m *model) dropFilter(mp nat.Mapping) {
	name := m.class[mp.External]
	if name == "" {
		return
	}
	delete(m.class, mp.External)
	classes := m.classes[familyOf(mp.External).index()]
	if classes[name].users--; classes[name].users == 0 {
		delete(classes, name)
	}
}

func (m *model) countLimit(mp nat.Mapping, by int) {
	if mp.Limit != (nat.Limit{}) {
		m.limited[familyOf(mp.External).index()] += by
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
		for a := range m.Mappings {
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
func (m *model) whole(f family) *table {
	return m.view(f, true, m.all(), maps.Keys(m.classes[f.index()]))
}

// view is the part of the family's table that holds the addresses' elements,
// the filters of those names and, if framed, all that does not come from
// mappings.
func (m *model) view(f family, framed bool, addrs iter.Seq[netip.Addr], filters iter.Seq[string]) *table {
	if !m.active(f) {
		return nil
	}
	t := &table{sets: mappingSets(f, m.counting), chains: map[string]chain{}}
	if framed {
		frame(t, f, m.sorted(f), m.counting)
	}
	classes := m.classes[f.index()]
	if len(classes) > 0 {
		f.frameFilter(t)
	}
	if m.limited[f.index()] > 0 {
		f.frameLimit(t)
	}
	for name := range filters {
		if c := classes[name]; c != nil {
			f.frameClass(t, name, c.filter)
		}
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
	ns := slices.SortedFunc(maps.Values(m.Networks), func(a, b nat.Network) int { return cmp.Compare(a.ID, b.ID) })
	return slices.DeleteFunc(ns, func(n nat.Network) bool { return !f.subnet(n).IsValid() })
}

// fill adds the elements whose key is the address.
func (m *model) fill(t *table, a netip.Addr) {
	key := raw(a)
	if mp, ok := m.Mappings[a]; ok {
		t.sets[setInside].elements[key] = raw(mp.Internal)
		t.sets[setExternal].elements[key] = ""
		for _, name := range []string{setIncoming, setReceived, setSent} {
			t.count(name, key)
		}
		if name := m.class[a]; name != "" {
			fillFilter(t, key, name)
		}
		fillLimit(t, key, mp.Limit, setRateIn, setCountIn)
	}
	if external := m.egress(a); external.IsValid() {
		t.sets[setOutside].elements[key] = raw(external)
		t.count(setOutgoing, key)
	}
	for _, external := range m.inside[a] {
		if m.Mappings[external].Gateway {
			t.sets[setGateway].elements[key] = ""
		}
	}
	if external := m.limiter(a); external.IsValid() {
		fillLimit(t, key, m.Mappings[external].Limit, setRateOut, setCountOut)
	}
}

// egress is the external address that an internal one goes out from; not valid
// if there is none.
func (m *model) egress(internal netip.Addr) netip.Addr {
	for _, external := range m.inside[internal] {
		if m.Mappings[external].Egress {
			return external
		}
	}
	return netip.Addr{}
}

// limiter is the external address whose limit bounds what an internal one opens;
// not valid if there is none.
func (m *model) limiter(internal netip.Addr) netip.Addr {
	for _, external := range m.inside[internal] {
		if m.Mappings[external].Limit != (nat.Limit{}) {
			return external
		}
	}
	return netip.Addr{}
}

// raw is an address as the kernel holds it.
func raw(a netip.Addr) string { return string(a.AsSlice()) }
