package iptables

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/extip/extip/nat"
)

// A model is what one family's rules are made from: the networks with a
// subnet of the family, and the family's mappings.
type model struct {
	nat.Desired
	family family
	trees  []*tree
}

func newModel(f family) *model {
	m := &model{Desired: nat.NewDesired(), family: f}
	for _, k := range []treeKind{destinationTree(), sourceTree(), gatewayTree()} {
		m.trees = append(m.trees, &tree{treeKind: k, family: f})
	}
	return m
}

func (m *model) active() bool { return len(m.Networks) > 0 || len(m.Mappings) > 0 }

// marks tells whether packets of any network are marked.
func (m *model) marks() bool {
	for _, n := range m.Networks {
		if n.Mark != 0 {
			return true
		}
	}
	return false
}

func (m *model) sorted() []nat.Network {
	return slices.SortedFunc(maps.Values(m.Networks), func(a, b nat.Network) int { return cmp.Compare(a.ID, b.ID) })
}

// concerns tells whether the family has anything to do with the change.
func (m *model) concerns(c nat.Change) bool {
	for _, s := range []nat.State{c.Put, c.Drop} {
		for _, n := range s.Networks {
			if _, known := m.Networks[n.ID]; known || m.family.subnet(n).IsValid() {
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

// effective is the part of a change that makes a difference in this family. A
// network that has no subnet of it, or none any more, goes.
func (m *model) effective(c nat.Change) nat.Change {
	own := nat.Change{Drop: c.Drop}
	own.Drop.Networks = slices.Clone(c.Drop.Networks)
	for _, n := range c.Put.Networks {
		if m.family.subnet(n).IsValid() {
			own.Put.Networks = append(own.Put.Networks, n)
		} else {
			own.Drop.Networks = append(own.Drop.Networks, n)
		}
	}
	for _, mp := range c.Put.Mappings {
		if familyOf(mp.External) == m.family {
			own.Put.Mappings = append(own.Put.Mappings, mp)
		}
	}
	return m.Effective(own)
}

// apply makes an effective change.
func (m *model) apply(e nat.Change) {
	m.Apply(e)
	for _, mp := range e.Drop.Mappings {
		for _, t := range m.trees {
			t.drop(mp)
		}
	}
	for _, mp := range e.Put.Mappings {
		for _, t := range m.trees {
			t.put(mp)
		}
	}
}

// put adds to the model whatever of a state belongs to its family.
func (m *model) put(s nat.State) { m.apply(m.effective(nat.Change{Put: s})) }

// A chainName is a chain's table and name.
type chainName struct{ table, chain string }

func (n chainName) compare(o chainName) int {
	return cmp.Or(cmp.Compare(n.table, o.table), cmp.Compare(n.chain, o.chain))
}

// touched is the chains that an effective change may alter.
func (m *model) touched(e nat.Change) []chainName {
	var names []chainName
	for _, s := range []nat.State{e.Put, e.Drop} {
		if len(s.Networks) > 0 {
			names = append(names, chainName{tableNat, chainPost}, chainName{tableMangle, chainMark}, chainName{tableMangle, chainIsolate},
				chainName{tableFilter, chainForward})
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
	if m.marks() {
		mangle.jumps = append(mangle.jumps, markJumps()...)
		mangle.chains[chainMark] = m.rules(chainMark)
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
	case chainMark:
		return markRules(m.sorted())
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
