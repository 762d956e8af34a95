package nftables

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// Ask returns what the base chains of a hook decide about a packet, in the
// order in which the kernel comes to them. All are asked, also those that a
// packet which was dropped before wouldn't reach. Of its translations, only the
// first is made.
func (rs *Ruleset) Ask(h nat.Hook, p nat.Packet) []nat.Ruling {
	family := familyOf(p.Dst)
	var rulings []nat.Ruling
	for _, c := range rs.bases {
		if c.hook != h || c.family != unix.NFPROTO_INET && c.family != family.proto() {
			continue
		}
		j := &judge{rs: rs, base: c, packet: p, family: family}
		if j.chain(c, 0) == passes && c.drops {
			j.decide(c, heldRule{}, nat.Ruling{Drop: true, Rule: "policy drop"})
		}
		if j.ruling != nil {
			j.ruling.Doubt = j.doubt
			rulings = append(rulings, *j.ruling)
		}
	}
	return rulings
}

// A judge leads a packet through a base chain.
type judge struct {
	rs     *Ruleset
	base   *held
	packet nat.Packet
	family family
	// doubt says that a rule came by which may, or may not, have decided.
	doubt  bool
	ruling *nat.Ruling
}

// An outcome is what becomes of a packet at the end of a chain or rule.
type outcome int

const (
	passes  outcome = iota // on to the next rule, or chain
	returns                // back to where the chain was called
	ends                   // decided
)

// maxDepth is how deep the kernel lets chains call each other
// (NFT_JUMP_STACK_SIZE, net/netfilter/nf_tables.h).
const maxDepth = 16

func (j *judge) chain(c *held, depth int) outcome {
	if depth > maxDepth {
		return passes
	}
	for _, r := range c.rules {
		if o := j.rule(c, r, depth); o != passes {
			if o == returns {
				o = passes
			}
			return o
		}
	}
	return passes
}

// rule goes through a rule's expressions; one that doesn't match ends it.
func (j *judge) rule(c *held, r heldRule, depth int) outcome {
	regs := &registers{}
	sure := true
	for _, e := range r.exprs {
		switch j.match(c, regs, e) {
		case no:
			return passes
		case maybe:
			sure = false
		}
		var o outcome
		var done bool
		if regs.verdict != nil {
			o, done = j.verdict(c, r, regs.verdict, sure, depth)
		} else {
			o, done = j.statement(c, r, regs, e, sure)
		}
		if done {
			return o
		}
	}
	return passes
}

// verdict follows one; linux/netfilter/nf_tables.h, enum nft_verdicts.
func (j *judge) verdict(c *held, r heldRule, v attrs, sure bool, depth int) (outcome, bool) {
	code := int32(v.number32(unix.NFTA_VERDICT_CODE))
	if !sure {
		j.doubt = j.doubt || code != unix.NFT_CONTINUE
		return passes, true
	}
	switch code {
	case 0: // NF_DROP
		return j.decide(c, r, nat.Ruling{Drop: true}), true
	case unix.NFT_JUMP, unix.NFT_GOTO:
		to := j.rs.chains[place{c.family, c.table, v.find(unix.NFTA_VERDICT_CHAIN).string()}]
		if to == nil {
			return passes, true
		}
		o := j.chain(to, depth+1)
		if o == passes && code == unix.NFT_GOTO {
			o = returns
		}
		return o, o != passes
	case unix.NFT_RETURN:
		return returns, true
	case unix.NFT_CONTINUE:
		return passes, false
	case unix.NFT_BREAK:
		return passes, true
	}
	return ends, true // accepted, or handed to somebody else
}

// statement does what an expression does beside matching.
func (j *judge) statement(c *held, r heldRule, regs *registers, e heldExpr, sure bool) (o outcome, done bool) {
	var ruling nat.Ruling
	switch e.name {
	case "reject":
		ruling.Drop = true
	case "nat":
		reg := e.data.number32(unix.NFTA_NAT_REG_ADDR_MIN)
		if reg == 0 {
			return ends, true // the port only
		}
		to, known := regs.load(reg, int(j.family.addrLen()))
		if !known {
			sure = false
		}
		ruling.To, _ = netip.AddrFromSlice(to)
	case "masq", "redir":
	default:
		return passes, false
	}
	if !sure {
		j.doubt = true
		return passes, true
	}
	return j.decide(c, r, ruling), true
}

func (j *judge) decide(c *held, r heldRule, ruling nat.Ruling) outcome {
	ruling.Tool, ruling.Family = "nft", spellFamily(c.family)
	ruling.Table, ruling.Chain, ruling.Base = c.table, c.name, j.base.name
	ruling.Priority, ruling.Ours = int(j.base.priority), c.table == tableName
	if ruling.Rule == "" {
		ruling.Rule = j.rs.spell(c, r)
		ruling.Undo = fmt.Sprintf("nft delete rule %s %s %s handle %d", ruling.Family, c.table, c.name, r.handle)
	}
	j.ruling = &ruling
	return ends
}

func spellFamily(f uint8) string {
	switch f {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	}
	return "inet"
}

// A match is whether a packet has what an expression asks for.
type match int

const (
	yes match = iota
	no
	maybe
)

func matches(ok bool) match {
	if ok {
		return yes
	}
	return no
}

// registers are what expressions hand on: 16 registers of 4 bytes, four of
// which make one of the older ones of 16.
type registers struct {
	data    [64]byte
	known   [64]bool
	verdict attrs
}

func offset(reg uint32) int {
	if reg >= unix.NFT_REG32_00 {
		return int(reg-unix.NFT_REG32_00) * 4
	}
	return int(reg-1) * 16
}

func (r *registers) store(reg uint32, data []byte, known []bool) {
	if reg == 0 {
		return
	}
	at := offset(reg)
	if at >= len(r.data) {
		return
	}
	// The rest of the last register is zero.
	for i := range (len(data) + 3) &^ 3 {
		if at+i >= len(r.data) {
			return
		}
		r.data[at+i], r.known[at+i] = 0, true
		if i < len(data) {
			r.data[at+i], r.known[at+i] = data[i], known == nil || known[i]
		}
	}
}

// forget says that what is in a register isn't known.
func (r *registers) forget(reg uint32, size int) {
	r.store(reg, make([]byte, size), make([]bool, size))
}

func (r *registers) load(reg uint32, size int) (data []byte, known bool) {
	at := offset(reg)
	if reg == 0 || at+size > len(r.data) {
		return make([]byte, size), false
	}
	for _, k := range r.known[at : at+size] {
		if !k {
			return r.data[at : at+size], false
		}
	}
	return r.data[at : at+size], true
}

// match tells whether a packet passes an expression, and keeps what it loads.
func (j *judge) match(c *held, regs *registers, e heldExpr) match {
	a := e.data
	switch e.name {
	case "meta":
		return j.meta(regs, a)
	case "payload":
		if reg := a.number32(unix.NFTA_PAYLOAD_DREG); reg != 0 {
			data, known := j.payload(a.number32(unix.NFTA_PAYLOAD_BASE), int(a.number32(unix.NFTA_PAYLOAD_OFFSET)), int(a.number32(unix.NFTA_PAYLOAD_LEN)))
			regs.store(reg, data, known)
		}
	case "ct":
		if reg := a.number32(unix.NFTA_CT_DREG); reg != 0 {
			j.ct(regs, reg, a)
		}
	case "fib":
		j.fib(regs, a)
	case "immediate":
		if v := a.find(unix.NFTA_IMMEDIATE_DATA, unix.NFTA_DATA_VERDICT); v != nil {
			regs.verdict = v
		} else {
			regs.store(a.number32(unix.NFTA_IMMEDIATE_DREG), a.find(unix.NFTA_IMMEDIATE_DATA, unix.NFTA_DATA_VALUE), nil)
		}
	case "bitwise":
		regs.bitwise(a)
	case "cmp":
		want := a.find(unix.NFTA_CMP_DATA, unix.NFTA_DATA_VALUE)
		have, known := regs.load(a.number32(unix.NFTA_CMP_SREG), len(want))
		if !known {
			return maybe
		}
		return matches(holds(a.number32(unix.NFTA_CMP_OP), bytes.Compare(have, want)))
	case "range":
		from, to := a.find(unix.NFTA_RANGE_FROM_DATA, unix.NFTA_DATA_VALUE), a.find(unix.NFTA_RANGE_TO_DATA, unix.NFTA_DATA_VALUE)
		have, known := regs.load(a.number32(unix.NFTA_RANGE_SREG), len(from))
		if !known {
			return maybe
		}
		inside := bytes.Compare(have, from) >= 0 && bytes.Compare(have, to) <= 0
		return matches(inside == (a.number32(unix.NFTA_RANGE_OP) == 0)) // NFT_RANGE_EQ
	case "lookup":
		return j.lookup(c, regs, a)
	case "counter", "log", "last", "notrack", "nat", "masq", "redir", "reject":
	default:
		return maybe // of a kind that is not known here, or that depends on others
	}
	return yes
}

// holds evaluates a comparison (enum nft_cmp_ops).
func holds(op uint32, order int) bool {
	switch op {
	case unix.NFT_CMP_EQ:
		return order == 0
	case unix.NFT_CMP_NEQ:
		return order != 0
	case unix.NFT_CMP_LT:
		return order < 0
	case unix.NFT_CMP_LTE:
		return order <= 0
	case unix.NFT_CMP_GT:
		return order > 0
	default:
		return order >= 0
	}
}

func (r *registers) bitwise(a attrs) {
	size := int(a.number32(unix.NFTA_BITWISE_LEN))
	mask, xor := a.find(unix.NFTA_BITWISE_MASK, unix.NFTA_DATA_VALUE), a.find(unix.NFTA_BITWISE_XOR, unix.NFTA_DATA_VALUE)
	from, to := a.number32(unix.NFTA_BITWISE_SREG), a.number32(unix.NFTA_BITWISE_DREG)
	if len(mask) != size || len(xor) != size || offset(from)+size > len(r.data) {
		r.forget(to, size) // a shift, say
		return
	}
	at := offset(from)
	data, known := make([]byte, size), make([]bool, size)
	for i := range size {
		data[i] = r.data[at+i]&mask[i] ^ xor[i]
		known[i] = r.known[at+i] || mask[i] == 0
	}
	r.store(to, data, known)
}

func (j *judge) lookup(c *held, regs *registers, a attrs) match {
	s := j.rs.sets[place{c.family, c.table, a.find(unix.NFTA_LOOKUP_SET).string()}]
	if s == nil {
		return maybe
	}
	if len(s.elements) == 0 {
		return matches(a.number32(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0)
	}
	key, known := regs.load(a.number32(unix.NFTA_LOOKUP_SREG), len(s.elements[0].key))
	if !known {
		return maybe
	}
	found, ok := s.find(string(key))
	if ok && s.flags&setIsMap != 0 {
		if v := found.value.find(unix.NFTA_DATA_VERDICT); v != nil {
			regs.verdict = v
		} else {
			regs.store(a.number32(unix.NFTA_LOOKUP_DREG), found.value.find(unix.NFTA_DATA_VALUE), nil)
		}
	}
	return matches(ok == (a.number32(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV == 0))
}

// meta loads what is known beside the packet, or sets its mark.
func (j *judge) meta(regs *registers, a attrs) match {
	key := a.number32(unix.NFTA_META_KEY)
	if from := a.number32(unix.NFTA_META_SREG); from != 0 {
		if mark, known := regs.load(from, 4); key == unix.NFT_META_MARK && known {
			j.packet.Mark = binary.NativeEndian.Uint32(mark)
		}
		return yes
	}
	reg, p := a.number32(unix.NFTA_META_DREG), j.packet
	in, out := p.In, p.Out
	switch key {
	case unix.NFT_META_IIFNAME, unix.NFT_META_OIFNAME:
		if key == unix.NFT_META_OIFNAME {
			in = out
		}
		regs.store(reg, ifname(in.Name), nil)
	case unix.NFT_META_IIF, unix.NFT_META_OIF:
		if key == unix.NFT_META_OIF {
			in = out
		}
		if in.Index == 0 && in.Name != "" {
			regs.forget(reg, 4)
			return yes
		}
		regs.store(reg, native(uint32(in.Index)), nil)
	case unix.NFT_META_MARK:
		regs.store(reg, native(p.Mark), nil)
	case unix.NFT_META_NFPROTO:
		regs.store(reg, []byte{j.family.proto()}, nil)
	case unix.NFT_META_L4PROTO:
		regs.store(reg, []byte{p.Proto}, []bool{p.Proto != 0})
	case unix.NFT_META_PROTOCOL:
		ether := uint16(unix.ETH_P_IP)
		if j.family.v6 {
			ether = unix.ETH_P_IPV6
		}
		regs.store(reg, binary.BigEndian.AppendUint16(nil, ether), nil)
	default:
		regs.forget(reg, 16)
	}
	return yes
}

// payload is bytes of the packet, with what of them is known.
func (j *judge) payload(base uint32, from, size int) (data []byte, known []bool) {
	var header [64]byte
	var is [64]bool
	put := func(at int, bytes ...byte) {
		for i, b := range bytes {
			header[at+i], is[at+i] = b, true
		}
	}
	switch base {
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		proto := 9 // RFC 791 §3.1
		if j.family.v6 {
			proto = 6 // RFC 8200 §3
		} else {
			put(0, 0x45)
			put(6, 0, 0) // not a fragment
		}
		if j.packet.Proto != 0 {
			put(proto, j.packet.Proto)
		}
		if j.packet.Src.IsValid() {
			put(int(j.family.source()), j.packet.Src.AsSlice()...)
		}
		put(int(j.family.target()), j.packet.Dst.AsSlice()...)
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		if j.packet.Port != 0 {
			put(2, binary.BigEndian.AppendUint16(nil, j.packet.Port)...)
		}
	}
	if from+size > len(header) {
		return make([]byte, size), make([]bool, size)
	}
	return header[from : from+size], is[from : from+size]
}

// ct loads what connection tracking knows.
func (j *judge) ct(regs *registers, reg uint32, a attrs) {
	p := j.packet
	const (
		stateNew, stateEstablished = 0x8, 0x2
		srcNAT, dstNAT             = 0x10, 0x20 // IPS_SRC_NAT, IPS_DST_NAT
		original, reply            = 0, 1
	)
	switch a.number32(unix.NFTA_CT_KEY) {
	case unix.NFT_CT_STATE:
		state := uint32(stateNew)
		if p.Established || p.Reply {
			state = stateEstablished
		}
		regs.store(reg, native(state), nil)
	case unix.NFT_CT_STATUS:
		// Whether it is confirmed or assured, nobody asks.
		var status uint32
		if p.DNAT {
			status |= dstNAT
		}
		if p.SNAT {
			status |= srcNAT
		}
		regs.store(reg, native(status), nil)
	case unix.NFT_CT_DIRECTION:
		direction := byte(original)
		if p.Reply {
			direction = reply
		}
		regs.store(reg, []byte{direction}, nil)
	case unix.NFT_CT_DST, unix.NFT_CT_DST_IP, unix.NFT_CT_DST_IP6:
		dir := a.find(unix.NFTA_CT_DIRECTION)
		if len(dir) == 1 && dir[0] == original && p.OrigDst.IsValid() {
			regs.store(reg, p.OrigDst.AsSlice(), nil)
			return
		}
		regs.forget(reg, 16)
	default:
		regs.forget(reg, 16)
	}
}

// fib loads whether an address is the host's own; of other questions to its
// routes the answer isn't known.
func (j *judge) fib(regs *registers, a attrs) {
	reg, flags := a.number32(unix.NFTA_FIB_DREG), a.number32(unix.NFTA_FIB_FLAGS)
	addr := j.packet.Dst
	if flags&unix.NFTA_FIB_F_SADDR != 0 {
		addr = j.packet.Src
	}
	if a.number32(unix.NFTA_FIB_RESULT) != unix.NFT_FIB_RESULT_ADDRTYPE || j.packet.Local == nil || !addr.IsValid() ||
		flags&^(unix.NFTA_FIB_F_SADDR|unix.NFTA_FIB_F_DADDR) != 0 {
		regs.forget(reg, 16)
		return
	}
	kind := uint32(unix.RTN_UNICAST)
	if j.packet.Local(addr) {
		kind = unix.RTN_LOCAL
	}
	regs.store(reg, native(kind), nil)
}

// Names tells which rules name an address, other than ours: where, and how each
// can be removed. Translations count, whatever they match.
func (rs *Ruleset) Names(addr netip.Addr) (rulings []nat.Ruling) {
	raw := addr.AsSlice()
	for _, c := range rs.chains {
		if !rs.foreign(c) {
			continue
		}
		for _, r := range c.rules {
			translates, named := false, false
			for _, e := range r.exprs {
				translates = translates || e.name == "nat" || e.name == "masq" || e.name == "redir"
				switch e.name {
				case "cmp":
					named = named || bytes.Equal(e.data.find(unix.NFTA_CMP_DATA, unix.NFTA_DATA_VALUE), raw)
				case "immediate":
					named = named || bytes.Equal(e.data.find(unix.NFTA_IMMEDIATE_DATA, unix.NFTA_DATA_VALUE), raw)
				case "lookup":
					s := rs.sets[place{c.family, c.table, e.data.find(unix.NFTA_LOOKUP_SET).string()}]
					named = named || s != nil && s.names(raw)
				}
			}
			if translates && named {
				j := &judge{rs: rs, base: c}
				j.decide(c, r, nat.Ruling{})
				rulings = append(rulings, *j.ruling)
			}
		}
	}
	return rulings
}

func (s *heldSet) names(raw []byte) bool {
	for _, e := range s.elements {
		if !e.last && (strings.HasPrefix(e.key, string(raw)) || bytes.Equal(e.value.find(unix.NFTA_DATA_VALUE), raw)) {
			return true
		}
	}
	return false
}
