package iptables

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/extip/extip/nat"
)

// A model is what one family's rules are made from: the networks with a
// subnet of the family, and the family's mappings.
type model struct {
	family   family
	networks map[string]nat.Network
	mappings map[netip.Addr]nat.Mapping // by external address
	trees    []*tree
}

func newModel(f family) *model {
	m := &model{family: f, networks: map[string]nat.Network{}, mappings: map[netip.Addr]nat.Mapping{}}
	for _, k := range []treeKind{destinationTree(), sourceTree(), gatewayTree()} {
		m.trees = append(m.trees, &tree{treeKind: k, family: f})
	}
	return m
}

func (m *model) active() bool { return len(m.networks) > 0 || len(m.mappings) > 0 }

func (m *model) sorted() []nat.Network {
	return slices.SortedFunc(maps.Values(m.networks), func(a, b nat.Network) int { return cmp.Compare(a.ID, b.ID) })
}

// A change is what one call asks for. What is dropped goes before what is put.
type change struct{ put, drop nat.State }

func (c change) inverse() change { return change{put: c.drop, drop: c.put} }

// concerns tells whether the family has anything to do with the change.
func (m *model) concerns(c change) bool {
	for _, s := range []nat.State{c.put, c.drop} {
		for _, n := range s.Networks {
			if _, known := m.networks[n.ID]; known || m.family.subnet(n).IsValid() {
				return true
			}
		}
		for _, mp := range s.Mappings {
			if familyOf(mp.External) == m.family {
				return true
			}
		}
	}
	return false
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
		if ok && !sameNetwork(cur, n) {
			e.drop.Networks = append(e.drop.Networks, cur)
		}
		if m.family.subnet(n).IsValid() && !(ok && sameNetwork(cur, n)) {
			e.put.Networks = append(e.put.Networks, n)
		}
	}
	for _, mp := range c.put.Mappings {
		cur, ok := m.mappings[mp.External]
		if familyOf(mp.External) != m.family || ok && cur == mp {
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
	}
	for _, mp := range e.drop.Mappings {
		delete(m.mappings, mp.External)
		for _, t := range m.trees {
			t.drop(mp)
		}
	}
	for _, n := range e.put.Networks {
		m.networks[n.ID] = n
	}
	for _, mp := range e.put.Mappings {
		m.mappings[mp.External] = mp
		for _, t := range m.trees {
			t.put(mp)
		}
	}
}

// put adds to the model whatever of a state belongs to its family.
func (m *model) put(s nat.State) { m.apply(m.effective(change{put: s})) }

// A chainName is a chain's table and name.
type chainName struct{ table, chain string }

func (n chainName) compare(o chainName) int {
	return cmp.Or(cmp.Compare(n.table, o.table), cmp.Compare(n.chain, o.chain))
}

// touched is the chains that an effective change may alter.
func (m *model) touched(e change) []chainName {
	var names []chainName
	for _, s := range []nat.State{e.put, e.drop} {
		if len(s.Networks) > 0 {
			names = append(names, chainName{tableNat, chainPost}, chainName{tableMangle, chainIsolate}, chainName{tableFilter, chainForward})
		}
		for _, mp := range s.Mappings {
			for _, t := range m.trees {
				for _, chain := range t.path(mp) {
					names = append(names, chainName{tableNat, chain})
				}
			}
		}
	}
	return names
}

// tables is everything that the kernel should hold of the family.
func (m *model) tables() []table {
	networks := m.sorted()
	natTable := table{name: tableNat, prefix: ourPrefix}
	if m.active() {
		natTable.jumps = natJumps()
		natTable.chains = map[string][]string{}
		for _, chain := range []string{chainPre, chainPost, chainHairpin} {
			natTable.chains[chain] = m.rules(chain)
		}
		for _, t := range m.trees {
			for _, chain := range t.chains() {
				natTable.chains[chain] = m.rules(chain)
			}
		}
	}
	mangle := table{name: tableMangle, prefix: ourPrefix}
	if len(networks) > 0 {
		mangle.jumps = isolateJumps()
		mangle.chains = map[string][]string{chainIsolate: m.rules(chainIsolate)}
	}
	return []table{natTable, mangle, admission(networks)}
}

// rules is what a chain of ours should hold.
func (m *model) rules(chain string) []string {
	switch chain {
	case chainPre:
		return preRules()
	case chainHairpin:
		return hairpinRules()
	case chainPost:
		return postRules(m.family, m.sorted())
	case chainIsolate:
		return isolateRules(m.sorted())
	case chainForward:
		return forwardRules(m.sorted())
	}
	for _, t := range m.trees {
		if suffix, ok := strings.CutPrefix(chain, t.root); ok {
			return t.rules(strings.TrimPrefix(suffix, "-"))
		}
	}
	return nil
}

// permanent tells whether a chain stays while it is empty.
func (m *model) permanent(chain string) bool {
	return !slices.ContainsFunc(m.trees, func(t *tree) bool { return strings.HasPrefix(chain, t.root+"-") })
}
