package nftables

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// A Ruleset is everybody's rules of IPv4 and IPv6, as they were when it was
// read. It answers what becomes of a packet, as far as it understands them.
//
// Rules of iptables-nft are left out: they speak of extensions that only
// iptables can read.
type Ruleset struct {
	bases  []*held // sorted by priority
	chains map[place]*held
	sets   map[place]*heldSet
	// theirs are the tables that iptables-nft keeps; no name of a chain or set.
	theirs map[place]bool
}

// A place is where a chain or set is.
type place struct {
	family      uint8
	table, name string
}

// held is somebody's chain.
type held struct {
	place
	hook     nat.Hook
	kind     string // of a base chain: filter, nat or route; else ""
	priority int32
	drops    bool // its policy
	rules    []heldRule
}

type heldRule struct {
	handle uint64
	exprs  []heldExpr
}

type heldExpr struct {
	name string
	data attrs
}

// heldSet is somebody's set or map.
type heldSet struct {
	flags    uint32
	size     int            // of a key, in bytes
	fields   []int          // lengths of a concatenation's parts, in bytes
	elements []element      // sorted by key
	index    map[string]int // of elements by key
}

type element struct {
	key, end string
	last     bool // the key is where an interval ends
	value    attrs
	limits   bool // it may, or may not, match: whatever came before
}

// Flags of sets and their elements, linux/netfilter/nf_tables.h.
const (
	setIsInterval     = 0x4
	setIsMap          = 0x8
	elementEnds       = 0x1
	elementIsCatchall = 0x2
	setDescConcat     = 2  // NFTA_SET_DESC_CONCAT
	setFieldLen       = 1  // NFTA_SET_FIELD_LEN
	setElemKeyEnd     = 10 // NFTA_SET_ELEM_KEY_END
)

// Read reads the rules of the calling thread's network namespace. Nothing is
// changed.
func Read() (*Ruleset, error) {
	k, err := dial()
	if err != nil {
		return nil, fmt.Errorf("nat: read nftables: %w", err)
	}
	rs, err := k.readAll()
	if err = errors.Join(err, k.close()); err != nil {
		return nil, fmt.Errorf("nat: read nftables: %w", err)
	}
	return rs, nil
}

// readAll reads again if somebody changed something meanwhile.
func (k *kernel) readAll() (rs *Ruleset, err error) {
	const attempts = 5
	for range attempts {
		before, gerr := k.generation()
		if gerr != nil {
			return nil, gerr
		}
		rs, err = k.readOnce()
		if after, gerr := k.generation(); gerr == nil && after == before {
			break
		}
	}
	return rs, err
}

func (k *kernel) readOnce() (*Ruleset, error) {
	rs := &Ruleset{chains: map[place]*held{}, sets: map[place]*heldSet{}, theirs: map[place]bool{}}
	for _, part := range []struct {
		kind int
		take func(family uint8, a attrs) error
	}{
		{unix.NFT_MSG_GETCHAIN, rs.takeChain},
		{unix.NFT_MSG_GETRULE, rs.takeRule},
		{unix.NFT_MSG_GETSET, func(f uint8, a attrs) error { return k.takeSet(rs, f, a) }},
	} {
		replies, err := k.dump(unix.NFPROTO_UNSPEC, part.kind, nil)
		if err != nil {
			return nil, err
		}
		for _, m := range replies {
			if len(m.Data) < 1 || !slices.Contains([]uint8{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6, unix.NFPROTO_INET}, m.Data[0]) {
				continue
			}
			if err := part.take(m.Data[0], payload(m)); err != nil {
				return nil, err
			}
		}
	}
	slices.SortStableFunc(rs.bases, func(a, b *held) int { return cmp.Compare(a.priority, b.priority) })
	return rs, nil
}

func (k *kernel) dump(family uint8, kind int, a attrs) ([]netlink.Message, error) {
	return k.socket.Execute(netlink.Message{
		Header: netlink.Header{Type: messageType(kind), Flags: netlink.Request | netlink.Dump},
		Data:   append(nfgenmsg(family, 0), a...),
	})
}

func (rs *Ruleset) takeChain(family uint8, a attrs) error {
	c := &held{place: place{family, a.find(unix.NFTA_CHAIN_TABLE).string(), a.find(unix.NFTA_CHAIN_NAME).string()}}
	rs.chains[c.place] = c
	if a.find(unix.NFTA_CHAIN_HOOK) == nil {
		return nil
	}
	c.kind = a.find(unix.NFTA_CHAIN_TYPE).string()
	c.hook = nat.Hook(a.number32(unix.NFTA_CHAIN_HOOK, unix.NFTA_HOOK_HOOKNUM))
	c.priority = int32(a.number32(unix.NFTA_CHAIN_HOOK, unix.NFTA_HOOK_PRIORITY))
	c.drops = a.find(unix.NFTA_CHAIN_POLICY) != nil && a.number32(unix.NFTA_CHAIN_POLICY) == 0 // NF_DROP
	if c.ofIptables() {
		rs.theirs[place{family: c.family, table: c.table}] = true
		return nil
	}
	if c.hook > nat.Postrouting {
		return nil // ingress
	}
	rs.bases = append(rs.bases, c)
	return nil
}

// ofIptables tells whether a base chain is one that iptables-nft makes.
func (c *held) ofIptables() bool {
	return slices.Contains([]string{"filter", "nat", "mangle", "raw", "security"}, c.table) &&
		slices.Contains([]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, c.name) && c.family != unix.NFPROTO_INET
}

// foreign tells whether a chain is neither extip's nor iptables'.
func (rs *Ruleset) foreign(c *held) bool {
	return c.table != tableName && !rs.theirs[place{family: c.family, table: c.table}]
}

func (rs *Ruleset) takeRule(family uint8, a attrs) error {
	c := rs.chains[place{family, a.find(unix.NFTA_RULE_TABLE).string(), a.find(unix.NFTA_RULE_CHAIN).string()}]
	if c == nil {
		return nil // made meanwhile
	}
	var r heldRule
	for _, b := range a.find(unix.NFTA_RULE_HANDLE) {
		r.handle = r.handle<<8 | uint64(b)
	}
	r.exprs = exprsOf(a.find(unix.NFTA_RULE_EXPRESSIONS))
	c.rules = append(c.rules, r)
	return nil
}

// exprsOf takes a list of expressions apart.
func exprsOf(list attrs) (exprs []heldExpr) {
	for _, e := range list.each() {
		exprs = append(exprs, heldExpr{e.find(unix.NFTA_EXPR_NAME).string(), e.find(unix.NFTA_EXPR_DATA)})
	}
	return exprs
}

func (k *kernel) takeSet(rs *Ruleset, family uint8, a attrs) error {
	p := place{family, a.find(unix.NFTA_SET_TABLE).string(), a.find(unix.NFTA_SET_NAME).string()}
	s := &heldSet{flags: a.number32(unix.NFTA_SET_FLAGS), size: int(a.number32(unix.NFTA_SET_KEY_LEN)), index: map[string]int{}}
	for _, field := range a.find(unix.NFTA_SET_DESC, setDescConcat).each() {
		s.fields = append(s.fields, int(field.number32(setFieldLen)))
	}
	rs.sets[p] = s
	replies, err := k.dump(family, unix.NFT_MSG_GETSETELEM,
		attrs{}.text(unix.NFTA_SET_ELEM_LIST_TABLE, p.table).text(unix.NFTA_SET_ELEM_LIST_SET, p.name))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("elements of %s: %w", p.name, err)
	}
	for _, m := range replies {
		for _, e := range payload(m).find(unix.NFTA_SET_ELEM_LIST_ELEMENTS).each() {
			s.add(e)
		}
	}
	slices.SortFunc(s.elements, func(a, b element) int { return cmp.Compare(a.key, b.key) })
	for i, e := range s.elements {
		s.index[e.key] = i
	}
	return nil
}

func (s *heldSet) add(e attrs) {
	flags := e.number32(unix.NFTA_SET_ELEM_FLAGS)
	if flags&elementIsCatchall != 0 {
		return
	}
	s.elements = append(s.elements, element{
		key:   string(e.find(unix.NFTA_SET_ELEM_KEY, unix.NFTA_DATA_VALUE)),
		end:   string(e.find(setElemKeyEnd, unix.NFTA_DATA_VALUE)),
		last:  flags&elementEnds != 0,
		value: e.find(unix.NFTA_SET_ELEM_DATA),
		limits: slices.ContainsFunc(append(e.find(nftaSetElemExprs).all(), e.find(unix.NFTA_SET_ELEM_EXPR)), func(does attrs) bool {
			name := statement(does.find(unix.NFTA_EXPR_NAME).string())
			return name != "" && name != counts
		}),
	})
}

// find returns the element that a key is of.
func (s *heldSet) find(key string) (element, bool) {
	switch {
	case s.flags&setIsInterval == 0:
		i, ok := s.index[key]
		if !ok {
			return element{}, false
		}
		return s.elements[i], true
	case len(s.fields) > 0:
		for _, e := range s.elements {
			if e.spans(key, s.fields) {
				return e, true
			}
		}
		return element{}, false
	}
	// Among starts and ends, the last that is not after the key.
	at, exact := slices.BinarySearchFunc(s.elements, key, func(e element, key string) int { return cmp.Compare(e.key, key) })
	if !exact {
		at--
	}
	// An interval may end where the next begins.
	for ; at >= 0 && at < len(s.elements); at-- {
		e := s.elements[at]
		if !e.last {
			return e, true
		}
		if at == 0 || s.elements[at-1].key != e.key {
			break
		}
	}
	return element{}, false
}

// spans tells whether each part of a concatenation is in its range.
func (e element) spans(key string, fields []int) bool {
	end := cmp.Or(e.end, e.key)
	at := 0
	for _, n := range fields {
		if at+n > len(key) || at+n > len(e.key) || at+n > len(end) {
			return false
		}
		if part := key[at : at+n]; part < e.key[at:at+n] || part > end[at:at+n] {
			return false
		}
		at += (n + 3) &^ 3 // each part begins a register of 4 bytes
	}
	return true
}
