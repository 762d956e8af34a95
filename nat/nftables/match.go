package nftables

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

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
	case "byteorder":
		regs.byteorder(a)
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
	case "counter", "log", "last", "notrack", "nat", "masq", "redir", "reject", "dynset":
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

func (j *judge) lookup(c *held, regs *registers, a attrs) match {
	s := j.rs.sets[place{c.family, c.table, a.find(unix.NFTA_LOOKUP_SET).string()}]
	if s == nil {
		return maybe
	}
	if len(s.elements) == 0 {
		return matches(a.number32(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0)
	}
	key, known := regs.load(a.number32(unix.NFTA_LOOKUP_SREG), s.size)
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
	if ok && found.limits {
		// Whoever is beyond a limit of ours is in the set of those that are
		// full, or else is so for a moment.
		if c.table == tableName {
			return no
		}
		return maybe
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
		confirmed                  = 0x8        // IPS_CONFIRMED
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
		// Whether it is assured, nobody asks.
		var status uint32
		if p.Established || p.Reply {
			status |= confirmed
		}
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
