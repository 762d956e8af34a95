package iptables

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/extip/extip/nat"
)

// A tree finds the rule for one address among many in few steps, so that a
// new connection's cost does not grow with the number of mappings: the root
// chain tells addresses apart by the high half of their last byte, the chains
// below by the whole byte, and the buckets below those hold a rule per
// address. At most 16 + 16 + mappings/256 rules are looked at.
//
//	XIP-D    -d 0.0.0.48/0.0.0.240 -j XIP-D-3
//	XIP-D-3  -d 0.0.0.51/0.0.0.255 -j XIP-D-33
//	XIP-D-33 -d 192.0.2.51/32      -j DNAT --to-destination 172.30.0.2
type tree struct {
	treeKind
	family  family
	buckets [256]map[netip.Addr]nat.Mapping // by last byte, then external address
	own     map[string]nat.Mapping          // by the name of a mapping's own chain
}

// treeKind is what distinguishes the trees.
type treeKind struct {
	table string // of the kernel
	root  string // name of the root chain
	match string // the option that matches key
	// key is the address a mapping is found by; the zero Addr if it has no
	// rule in this tree.
	key    func(nat.Mapping) netip.Addr
	target func(nat.Mapping) string
	// more is a match beside key, rules what the mapping's own chain holds,
	// for kinds of trees that have them. The latter is then the target.
	more  func(nat.Mapping) string
	rules func(nat.Mapping) []string
	// once: of several mappings with a key, only the first has a rule.
	once bool
}

func destinationTree() treeKind {
	return treeKind{
		table: tableNat, root: chainDestination, match: "-d",
		key:    func(m nat.Mapping) netip.Addr { return m.External },
		target: func(m nat.Mapping) string { return "DNAT --to-destination " + m.Internal.String() },
	}
}

func sourceTree() treeKind {
	return treeKind{
		table: tableNat, root: chainSource, match: "-s",
		key:    func(m nat.Mapping) netip.Addr { return only(m.Egress, m.Internal) },
		target: func(m nat.Mapping) string { return "SNAT --to-source " + m.External.String() },
	}
}

func gatewayTree() treeKind {
	return treeKind{
		table: tableNat, root: chainGateway, match: "-d",
		key:    func(m nat.Mapping) netip.Addr { return only(m.Gateway, m.Internal) },
		target: func(nat.Mapping) string { return "MASQUERADE" },
	}
}

func only(ok bool, a netip.Addr) netip.Addr {
	if !ok {
		return netip.Addr{}
	}
	return a
}

func (t *tree) put(m nat.Mapping) {
	if key := t.key(m); key.IsValid() {
		b := &t.buckets[lastByte(key)]
		if *b == nil {
			*b = map[netip.Addr]nat.Mapping{}
		}
		(*b)[m.External] = m
		if t.rules != nil {
			t.own[t.ownChain(m)] = m
		}
	}
}

func (t *tree) drop(m nat.Mapping) {
	if key := t.key(m); key.IsValid() {
		delete(t.buckets[lastByte(key)], m.External)
		delete(t.own, t.ownChain(m))
	}
}

func (t *tree) empty() bool {
	return !slices.ContainsFunc(t.buckets[:], func(b map[netip.Addr]nat.Mapping) bool { return len(b) > 0 })
}

// path is the chains that a mapping's rule depends on, root first; none if
// it has no rule here.
func (t *tree) path(m nat.Mapping) []string {
	key := t.key(m)
	if !key.IsValid() {
		return nil
	}
	b := lastByte(key)
	names := []string{t.root, t.nibbleChain(int(b) >> 4), t.bucketChain(int(b))}
	if t.rules != nil {
		names = append(names, t.ownChain(m))
	}
	return names
}

func (t *tree) nibbleChain(nibble int) string { return fmt.Sprintf("%s-%x", t.root, nibble) }
func (t *tree) bucketChain(b int) string      { return fmt.Sprintf("%s-%02x", t.root, b) }

// ownChain is named by the external address, of IPv6 by a hash of it: a
// chain's name has 28 characters at most.
func (t *tree) ownChain(m nat.Mapping) string {
	name := m.External.AsSlice()
	if m.External.Is6() {
		sum := sha256.Sum256(name)
		name = sum[:6]
	}
	return fmt.Sprintf("%s-%x", t.root, name)
}

// chains is every chain of the tree that has rules, and the root.
func (t *tree) chains() []string {
	names := []string{t.root}
	for nibble := range 16 {
		if t.used(nibble) {
			names = append(names, t.nibbleChain(nibble))
		}
	}
	for b := range t.buckets {
		if len(t.buckets[b]) > 0 {
			names = append(names, t.bucketChain(b))
		}
	}
	return slices.AppendSeq(names, maps.Keys(t.own))
}

func (t *tree) used(nibble int) bool {
	for _, bucket := range t.buckets[nibble*16 : nibble*16+16] {
		if len(bucket) > 0 {
			return true
		}
	}
	return false
}

// chain is what the chain root-suffix holds; suffix is "" for the root.
func (t *tree) chain(suffix string) []string {
	if suffix == "" {
		return t.dispatch(t.used, 0, 16, t.nibbleChain, func(nibble int) (byte, byte) { return byte(nibble << 4), 0xf0 })
	}
	if m, ok := t.own[t.root+"-"+suffix]; ok {
		return t.rules(m)
	}
	at, err := strconv.ParseUint(suffix, 16, 8)
	if err != nil {
		return nil
	}
	if len(suffix) == 1 {
		filled := func(b int) bool { return len(t.buckets[b]) > 0 }
		return t.dispatch(filled, int(at)*16, 16, t.bucketChain, func(b int) (byte, byte) { return byte(b), 0xff })
	}
	return t.leaves(t.buckets[at])
}

// dispatch jumps to the chains of the used values among the count from first on.
func (t *tree) dispatch(used func(int) bool, first, count int, name func(int) string, bits func(int) (value, mask byte)) []string {
	var rules []string
	for i := first; i < first+count; i++ {
		if used(i) {
			value, mask := bits(i)
			rules = append(rules, rule(t.match+" "+t.family.lowByte(value)+"/"+t.family.lowByte(mask), mark, name(i)))
		}
	}
	return rules
}

func (t *tree) leaves(bucket map[netip.Addr]nat.Mapping) []string {
	ms := make([]nat.Mapping, 0, len(bucket))
	for _, m := range bucket {
		ms = append(ms, m)
	}
	// By external address after that: the same rules whatever the order
	// in which mappings of one container came.
	slices.SortFunc(ms, func(a, b nat.Mapping) int {
		return cmp.Or(t.key(a).Compare(t.key(b)), a.External.Compare(b.External))
	})
	if t.once {
		ms = slices.CompactFunc(ms, func(a, b nat.Mapping) bool { return t.key(a) == t.key(b) })
	}
	var rules []string
	for _, m := range ms {
		match, target := t.match+" "+host(t.key(m)), ""
		if t.more != nil {
			match += " " + t.more(m)
		}
		if t.rules != nil {
			target = t.ownChain(m)
		} else {
			target = t.target(m)
		}
		rules = append(rules, rule(match, owned(m.Endpoint), target))
	}
	return slices.Compact(rules)
}

func lastByte(a netip.Addr) byte {
	b := a.AsSlice()
	return b[len(b)-1]
}

// host is an address as iptables-save spells it: with its full length.
func host(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
