package nftables

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// tableName is the name of our tables, one per family. It never changes: a
// later version finds by it what an earlier one left in the kernel.
const tableName = "extip"

// The sets. Names that are words of nft's language, such as dnat, would make
// an administrator's saved rules unloadable.
const (
	setInside   = "ext2ctr"     // external → internal address
	setOutside  = "ctr2ext"     // internal → external address, mappings with Egress
	setExternal = "ext_addrs"   // external addresses
	setGateway  = "ctr_gwsnat"  // internal addresses of mappings with Gateway
	setPost     = "post_by_oif" // bridge → chain
	setInto     = "fwd_by_oif"  // bridge → chain
	setFrom     = "fwd_by_iif"  // bridge → chain
	setMark     = "mark_by_iif" // bridge → mark, networks that have one
	setIncoming = "incoming"    // external addresses: counts connections begun to them
	setOutgoing = "outgoing"    // internal addresses, mappings with Egress: counts those begun from them
	setReceived = "received"    // external addresses: counts packets to them, if asked for
	setSent     = "sent"        // external addresses: counts packets from them, if asked for
)

// The chains; each network adds up to three, named by its id.
const (
	chainPrerouting  = "prerouting"
	chainOutput      = "output"
	chainPostrouting = "postrouting"
	chainForward     = "forward"
	chainInput       = "input"
	chainHairpin     = "hairpin"
	chainMarks       = "marks"    // while a network has one
	chainArriving    = "arriving" // if packets are accounted for, and so is the next
	chainLeaving     = "leaving"
	prefixPost       = "post-"
	prefixInto       = "into-"
	prefixFrom       = "from-"
)

// Priorities. Docker, iptables and Kubernetes translate at -100 and 100,
// firewalld at -90 and 110; among equals the last to register wins, so ours
// must differ. Drops are final wherever they stand.
const (
	beforeDNAT   = -110
	beforeSNAT   = 90
	beforeFilter = -1
	// Others mark at -150: their connections' marks, put back onto packets,
	// would replace ours.
	afterMangle = -149
	// Filters come before limits, so that what they refuse takes no room.
	beforeLimits = beforeDNAT - 10
	limiting     = beforeDNAT - 6
	// Packets are accounted for where they show the external address, those
	// that come in without what a filter or a limit has dropped.
	afterRefusal = beforeDNAT - 5
	afterSNAT    = 150
)

// A table is what one family's table holds, or a part of that.
type table struct {
	flags  uint32
	sets   map[string]*set
	chains map[string]chain
	// foreign says that a table found in the kernel has another owner.
	foreign bool
	// strange says why a table found in the kernel must be made anew.
	strange string
}

// A set is a set or a map. Keys and values are as in the kernel, but for
// verdicts: those are as nft spells them. The value of a set is "", or what a
// statement of its elements says in decimal.
type set struct {
	kind     setKind
	elements map[string]string
}

// setKind is what can't be changed of a set; value is empty but for maps.
type setKind struct {
	key, value string // nft's names of types; a key may have several, joined
	ranges     bool   // keys are a first and a last key
	// does is what each element does for a packet that it is found for.
	does statement
	// passing says that packets put elements in, which stay for a time; they
	// are nothing that is wanted.
	passing bool
	special bool // has a property that ours never have
}

// joined is between the names of the types of a key.
const joined = " . "

// A statement is what an element of a set does, by the kernel's name of it.
type statement string

const (
	counts statement = "counter"
	// These let only packets through that go beyond a limit.
	overRate  statement = "limit"     // connections a second
	overCount statement = "connlimit" // connections that are open
)

// A chain without a hook is reached by jumps only.
type chain struct {
	hook  hook
	rules []rule
}

type hook struct {
	kind     nftables.ChainType
	number   uint32
	priority int32
	policy   nftables.ChainPolicy
}

// A rule is its expressions in the kernel's encoding, counters at zero.
type rule string

// A family is the part of the rules that differs between IPv4 and IPv6, or
// that of bridges, which has the guard's table only.
type family struct{ v6, bridge bool }

// families are those that translate.
func families() []family { return []family{{v6: false}, {v6: true}} }

func familyOf(a netip.Addr) family { return family{v6: a.Is6()} }

func (f family) index() int {
	if f.v6 {
		return 1
	}
	return 0
}

// String is the family's name in nft.
func (f family) String() string {
	if f.bridge {
		return "bridge"
	}
	return [...]string{"ip", "ip6"}[f.index()]
}

func (f family) proto() uint8 {
	if f.bridge {
		return unix.NFPROTO_BRIDGE
	}
	return [...]uint8{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}[f.index()]
}

func (f family) addrType() nftables.SetDatatype {
	return [...]nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr}[f.index()]
}

func (f family) addrLen() uint32 { return f.addrType().Bytes }

// Offsets in the header: RFC 791 §3.1, RFC 8200 §3.
func (f family) source() uint32 { return [...]uint32{12, 8}[f.index()] }
func (f family) target() uint32 { return f.source() + f.addrLen() }

// subnet is a network's subnet of the family; invalid if it has none.
func (f family) subnet(n nat.Network) netip.Prefix {
	for _, p := range n.Subnets {
		if familyOf(p.Addr()) == f {
			return p.Masked()
		}
	}
	return netip.Prefix{}
}

// mappingSets are the sets whose elements come from mappings, empty.
func mappingSets(f family, c counting) map[string]*set {
	addr := f.addrType().Name
	sets := map[string]*set{
		setInside:   newSet(addr, addr),
		setOutside:  newSet(addr, addr),
		setExternal: newSet(addr, ""),
		setGateway:  newSet(addr, ""),
	}
	for name, what := range countedSets() {
		if c.does(what) {
			sets[name] = f.countedSet()
		}
	}
	return sets
}

func newSet(key, value string) *set {
	return &set{kind: setKind{key: key, value: value}, elements: map[string]string{}}
}

// frame adds to a table all that does not come from mappings: it is made of
// networks, in the order of their ids.
func frame(t *table, f family, networks []nat.Network, c counting) {
	for _, name := range []string{setPost, setInto, setFrom} {
		t.sets[name] = newSet(nftables.TypeIFName.Name, nftables.TypeVerdict.Name)
	}
	in := []rule{f.rule(f.load(f.target()), lookup(setInside), f.nat(expr.NATTypeDestNAT))}
	out := f.rule(f.load(f.source()), lookup(setOutside), f.nat(expr.NATTypeSourceNAT))
	masquerade := &expr.Masq{}
	post, hairpin := []rule{f.rule(meta(expr.MetaKeyOIFNAME), verdictOf(setPost))}, []rule{out, f.rule(masquerade)}
	if c.connections {
		// Only a connection's first packet comes here.
		begun := f.rule(f.load(f.source()), contains(setOutgoing))
		in = slices.Insert(in, 0, f.rule(f.load(f.target()), contains(setIncoming)))
		post, hairpin = append(post, begun), slices.Insert(hairpin, 0, begun)
	}
	post = append(post, out)
	for _, n := range networks {
		if !n.Internal {
			// Containers without an external address.
			post = append(post, f.rule(f.from(f.subnet(n)), masquerade))
		}
	}
	maps.Copy(t.chains, map[string]chain{
		chainPrerouting: {hook{nftables.ChainTypeNAT, unix.NF_INET_PRE_ROUTING, beforeDNAT, nftables.ChainPolicyAccept}, in},
		// Clients on this host.
		chainOutput:      {hook{nftables.ChainTypeNAT, unix.NF_INET_LOCAL_OUT, beforeDNAT, nftables.ChainPolicyAccept}, in},
		chainPostrouting: {hook{nftables.ChainTypeNAT, unix.NF_INET_POST_ROUTING, beforeSNAT, nftables.ChainPolicyAccept}, post},
		// What a container sends to its own bridge by way of an external
		// address gets the identity it has outside; the answer would
		// otherwise bypass the translation.
		chainHairpin: {rules: hairpin},
		chainForward: {hook{nftables.ChainTypeFilter, unix.NF_INET_FORWARD, beforeFilter, nftables.ChainPolicyAccept}, []rule{
			f.rule(meta(expr.MetaKeyIIFNAME), verdictOf(setFrom)),
			f.rule(meta(expr.MetaKeyOIFNAME), verdictOf(setInto)),
		}},
		// Nothing that was not translated reaches the host by an external
		// address, only answers to what it sent from there itself.
		chainInput: {hook{nftables.ChainTypeFilter, unix.NF_INET_LOCAL_IN, beforeFilter, nftables.ChainPolicyAccept}, []rule{
			f.rule(f.load(f.target()), contains(setExternal), ctOriginal(), &expr.Counter{}, drop()),
		}},
	})
	for _, n := range networks {
		f.frameNetwork(t, n)
	}
	f.frameMarks(t, networks)
	if c.packets {
		f.frameAccounts(t)
	}
}

// frameMarks adds what marks packets. Without it nobody's packets pay.
func (f family) frameMarks(t *table, networks []nat.Network) {
	marks := newSet(nftables.TypeIFName.Name, nftables.TypeMark.Name)
	for _, n := range networks {
		if n.Mark != 0 {
			marks.elements[string(ifname(n.Bridge))] = string(native(n.Mark))
		}
	}
	if len(marks.elements) == 0 {
		return
	}
	t.sets[setMark] = marks
	t.chains[chainMarks] = chain{hook{nftables.ChainTypeFilter, unix.NF_INET_PRE_ROUTING, afterMangle, nftables.ChainPolicyAccept}, []rule{
		f.rule(meta(expr.MetaKeyIIFNAME), lookup(setMark), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: register}),
	}}
}

// frameNetwork adds a network's own chains.
func (f family) frameNetwork(t *table, n nat.Network) {
	bridge := ifname(n.Bridge)
	put := func(set, prefix string, rules ...rule) {
		t.chains[prefix+n.ID] = chain{rules: rules}
		t.sets[set].elements[string(bridge)] = jumpTo(prefix + n.ID)
	}
	fromOthers := f.rule(meta(expr.MetaKeyIIFNAME), differs(bridge), &expr.Counter{}, drop())
	if n.Internal {
		put(setFrom, prefixFrom, f.rule(meta(expr.MetaKeyOIFNAME), differs(bridge), &expr.Counter{}, drop()))
		put(setInto, prefixInto, fromOthers)
		return
	}
	// What belongs to no connection is not translated: it would leave with
	// the container's own address.
	put(setFrom, prefixFrom, f.rule(ctIs(expr.CtKeySTATE, expr.CtStateBitINVALID), &expr.Counter{}, drop()))
	// Nobody reaches a container but by its external address.
	put(setInto, prefixInto,
		f.rule(ctIs(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()),
		f.rule(wasMapped(), accept()),
		fromOthers)
	put(setPost, prefixPost,
		f.rule(wasMapped(), f.load(f.target()), contains(setGateway), &expr.Masq{}),
		f.rule(f.from(f.subnet(n)), wasMapped(), &expr.Verdict{Kind: expr.VerdictGoto, Chain: chainHairpin}),
		f.rule(f.from(f.subnet(n)), accept()), // seen only with br_netfilter
		// A local client may have picked an address that the container
		// cannot answer to, such as an external one.
		f.rule(sourceIsLocal(), wasMapped(), &expr.Masq{}))
}

// The expressions are those that nft would make of the same rule, so that
// saving and loading the rules with it leaves them as they are. One register
// is enough for all.
const register = 1

// rule joins expressions, and groups of them, to a rule.
func (f family) rule(parts ...any) rule {
	var exprs []expr.Any
	for _, p := range parts {
		switch p := p.(type) {
		case expr.Any:
			exprs = append(exprs, p)
		case []expr.Any:
			exprs = append(exprs, p...)
		}
	}
	r, err := f.encode(exprs)
	if err != nil {
		panic("nat/nftables: rule: " + err.Error()) // an attribute beyond 64 kB
	}
	return r
}

func (f family) encode(exprs []expr.Any) (rule, error) {
	var a attrs
	for _, e := range exprs {
		data, err := expr.Marshal(f.proto(), e)
		if err != nil {
			return "", err
		}
		a = a.nest(unix.NFTA_LIST_ELEM, data)
	}
	return rule(a), nil
}

func (f family) load(offset uint32) expr.Any { return f.loadPart(offset, f.addrLen()) }

func (f family) loadPart(offset, size uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
}

// from matches packets from a subnet: whole bytes are compared as such,
// anything else through a mask.
func (f family) from(p netip.Prefix) []expr.Any {
	addr, bits := p.Addr().AsSlice(), p.Bits()
	switch {
	case bits == 0:
		return nil
	case bits%8 == 0:
		return []expr.Any{f.loadPart(f.source(), uint32(bits/8)), equals(addr[:bits/8])}
	}
	mask := make([]byte, len(addr))
	for i := range bits {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{f.load(f.source()), masked(mask), equals(addr)}
}

func (f family) nat(kind expr.NATType) expr.Any {
	return &expr.NAT{Type: kind, Family: uint32(f.proto()), RegAddrMin: register, RegAddrMax: register}
}

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: register} }

// lookup replaces the register by what a map says of it, and ends the rule if
// that is nothing.
func lookup(name string) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: name, DestRegister: register, IsDestRegSet: true}
}

func contains(name string) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: name}
}

// verdictOf goes where a map says.
func verdictOf(name string) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: name, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true}
}

func equals(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}
func differs(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: data}
}

func masked(mask []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}
}

// ctIs matches if any of the bits is set.
func ctIs(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: key, Register: register}, masked(native(bits)), differs(native(0))}
}

// wasMapped matches connections whose destination was translated.
func wasMapped() []expr.Any {
	const ipsDstNAT = 1 << 5 // IPS_DST_NAT, linux/netfilter/nf_conntrack_common.h
	return ctIs(expr.CtKeySTATUS, ipsDstNAT)
}

// ctOriginal matches the direction of a connection's first packet, ctReply
// the other: IP_CT_DIR_ORIGINAL and IP_CT_DIR_REPLY of
// linux/netfilter/nf_conntrack_tuple_common.h.
func ctOriginal() []expr.Any { return ctDirection(0) }
func ctReply() []expr.Any    { return ctDirection(1) }

func ctDirection(d byte) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: register}, equals([]byte{d})}
}

func sourceIsLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: register, FlagSADDR: true, ResultADDRTYPE: true},
		equals(native(unix.RTN_LOCAL)),
	}
}

func accept() expr.Any { return &expr.Verdict{Kind: expr.VerdictAccept} }
func drop() expr.Any   { return &expr.Verdict{Kind: expr.VerdictDrop} }

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// ifname is an interface name as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// jumpTo is a verdict as sets of ours hold it.
func jumpTo(chain string) string { return "jump " + chain }

// spell writes a key or an address as people know it.
func (k setKind) spell(data string) string {
	if k.key == nftables.TypeIFName.Name {
		return string(bytes.TrimRight([]byte(data), "\x00"))
	}
	if strings.HasPrefix(k.key, nftables.TypeIFName.Name+joined) && len(data) > unix.IFNAMSIZ {
		return spellSender(data)
	}
	if k.ranges {
		return spellRange(data)
	}
	if a, ok := netip.AddrFromSlice([]byte(data)); ok {
		return a.String()
	}
	return fmt.Sprintf("%x", data)
}
