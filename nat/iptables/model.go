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
	for _, k := range append(limitTrees(), destinationTree(), sourceTree(), gatewayTree(), filterTree(), rejectTree()) {
		m.trees = append(m.trees, &tree{treeKind: k, family: f, own: map[string]nat.Mapping{}})
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

// filters, rejects and limits tell whether any mapping has a filter, one that
// rejects, or a limit.
func (m *model) filters() bool { return m.has(chainFilter) }
func (m *model) rejects() bool { return len(m.Networks) > 0 && m.has(chainReject) }

func (m *model) limits() bool { return m.has(chainLimitIn) }

func (m *model) has(root string) bool {
	return slices.ContainsFunc(m.trees, func(t *tree) bool { return t.root == root && !t.empty() })
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

// compare puts drops before accepts, and both before translations: a table's
// rules come into force before the next one's.
func (n chainName) compare(o chainName) int {
	order := []string{tableMangle, tableFilter, tableNat}
	return cmp.Or(cmp.Compare(slices.Index(order, n.table), slices.Index(order, o.table)), cmp.Compare(n.chain, o.chain))
}

// touched is the chains that an effective change may alter.
func (m *model) touched(e nat.Change) []chainName {
	var names []chainName
	for _, s := range []nat.State{e.Put, e.Drop} {
		if len(s.Networks) > 0 {
			names = append(names, chainName{tableNat, chainPost}, chainName{tableMangle, chainEarly}, chainName{tableMangle, chainIsolate},
				chainName{tableFilter, chainForward})
		}
		for _, mp := range s.Mappings {
			for _, t := range m.trees {
				for _, chain := range t.path(mp) {
					names = append(names, chainName{t.table, chain})
				}
			}
		}
	}
	return names
}

// tables is everything that the kernel should hold of the family, in the order
// of chainName.compare.
func (m *model) tables() []table {
	networks := m.sorted()
	natTable := table{name: tableNat, prefix: ourPrefix}
	if m.active() {
		natTable.jumps = natJumps()
		natTable.chains = m.chains(chainPre, chainPost, chainHairpin)
		m.grow(natTable)
	}
	mangle := table{name: tableMangle, prefix: ourPrefix, chains: map[string][]string{}}
	if len(networks) > 0 {
		mangle.jumps = isolateJumps()
		mangle.chains = m.chains(chainIsolate)
	}
	if m.marks() || m.filters() || m.limits() {
		mangle.jumps = append(mangle.jumps, earlyJumps()...)
		mangle.chains[chainEarly] = m.rules(chainEarly)
	}
	m.grow(mangle)
	filter := admission(networks)
	if m.rejects() {
		filter.chains[chainForward] = m.rules(chainForward)
		m.grow(filter)
	}
	return []table{mangle, filter, natTable}
}

func (m *model) chains(names ...string) map[string][]string {
	chains := map[string][]string{}
	for _, name := range names {
		chains[name] = m.rules(name)
	}
	return chains
}

// grow adds the chains of a table's trees, of those that have any rule, or
// whose root is there in any case.
func (m *model) grow(to table) {
	for _, t := range m.trees {
		if t.table == to.name && (!t.empty() || t.table == tableNat) {
			for _, chain := range t.chains() {
				to.chains[chain] = m.rules(chain)
			}
		}
	}
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
	case chainEarly:
		rules := markRules(m.sorted())
		if m.filters() {
			rules = append(rules, arriveRules(m.family)...)
		}
		if m.limits() {
			rules = append(rules, openRules()...)
		}
		return rules
	case chainIsolate:
		return isolateRules(m.sorted())
	case chainForward:
		rules := forwardRules(m.sorted())
		if m.rejects() {
			rules = append([]string{rule("-m conntrack --ctstate NEW", mark, chainReject)}, rules...)
		}
		return rules
	}
	for _, t := range m.trees {
		if suffix, ok := strings.CutPrefix(chain, t.root); ok {
			return t.chain(strings.TrimPrefix(suffix, "-"))
		}
	}
	return nil
}

// permanent tells whether a chain stays while it is empty.
func (m *model) permanent(chain string) bool {
	return !slices.ContainsFunc(m.trees, func(t *tree) bool { return strings.HasPrefix(chain, t.root+"-") })
}
