package nftables

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// Filters. An external address that has one is an element of a map, which
// leads to a chain for all addresses with the same filter; what may pass is
// one set there. So a packet to an address without a filter costs a look into
// the map, one to another address a look into a set more. An address more with
// a filter that there is costs two elements. (The kernel then looks at all
// elements of the map, for loops of jumps: 0.5 ms for 10,000.)
//
// It is done before the destination is translated: only there does a packet
// show which of a container's external addresses was asked, and a drop is
// final. Sets of ranges are there since Linux 5.6, rejections since 5.9.
const (
	setFilter   = "filter_by_ext" // external address → chain
	setRefused  = "refused"       // external addresses with filters: counts what is kept out
	prefixOpen  = "open-"         // set of a filter: client, protocol, port
	chainFilter = "filter"        // while an address has one
	prefixCheck = "check-"        // chain of a filter
)

// A class is a filter and how many mappings have it.
type class struct {
	filter *nat.Filter // canonical
	users  int
}

// className is the same for filters that do the same, "" for none.
func className(f *nat.Filter) string {
	c := f.Canonical()
	if c == nil {
		return ""
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%v %v %v", c.Reject, c.Ports, c.Allow))
	return hex.EncodeToString(sum[:8])
}

// frameFilter adds what sends packets to their filters.
func (f family) frameFilter(t *table) {
	t.sets[setFilter] = newSet(f.addrType().Name, nftables.TypeVerdict.Name)
	t.sets[setRefused] = f.countedSet()
	t.chains[chainFilter] = chain{hook{nftables.ChainTypeFilter, unix.NF_INET_PRE_ROUTING, beforeLimits, nftables.ChainPolicyAccept}, []rule{
		f.rule(f.load(f.target()), verdictOf(setFilter)),
	}}
}

// fillFilter adds the elements of an external address with a filter.
func fillFilter(t *table, external, name string) {
	t.sets[setFilter].elements[external] = jumpTo(prefixCheck + name)
	t.sets[setRefused].elements[external] = ""
}

// frameClass adds a filter's chain and set.
func (f family) frameClass(t *table, name string, filter *nat.Filter) {
	t.sets[prefixOpen+name] = f.open(filter)
	end := drop()
	if filter.Reject {
		// ICMP and ICMPv6 port unreachable: RFC 792, RFC 4443 §3.1.
		end = &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: [...]uint8{3, 4}[f.index()]}
	}
	t.chains[prefixCheck+name] = chain{rules: []rule{
		// Answers to what the container began.
		f.rule(ctReply(), accept()),
		f.rule(f.isICMP(), ctIs(expr.CtKeySTATE, f.passingStates()), accept()),
		f.rule(f.loadClient(), contains(prefixOpen+name), accept()),
		f.rule(f.load(f.target()), contains(setRefused), end),
		f.rule(drop()), // should the set lack the address
	}}
}

// isICMP matches the family's ICMP.
func (f family) isICMP() []expr.Any {
	return []expr.Any{meta(expr.MetaKeyL4PROTO), equals([]byte{[...]byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6}[f.index()]})}
}

// passingStates is those of ICMP that no filter is about: errors about
// connections, and the search for neighbours, which the host answers.
func (f family) passingStates() uint32 {
	if f.v6 {
		return expr.CtStateBitRELATED | expr.CtStateBitUNTRACKED
	}
	return expr.CtStateBitRELATED
}

// openKind is a set of ranges of clients, protocols and ports.
func (f family) openKind() setKind {
	return setKind{key: f.addrType().Name + joined + nftables.TypeInetProto.Name + joined + nftables.TypeInetService.Name, ranges: true}
}

// loadClient loads a key of openKind. Each part begins a register of 4 bytes,
// which the kernel numbers from 8 on, those of 16 bytes from 1.
func (f family) loadClient() []expr.Any {
	proto, port := uint32(unix.NFT_REG32_01), uint32(unix.NFT_REG32_02)
	if f.v6 {
		proto, port = unix.NFT_REG_2, unix.NFT_REG32_05
	}
	return []expr.Any{
		f.load(f.source()),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto},
		// nft puts the one byte into network order here, for which the
		// library has no eyes.
		&expr.Payload{DestRegister: port, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// open is the set of what a filter lets pass: each of its prefixes with each
// of its ports.
func (f family) open(filter *nat.Filter) *set {
	s := &set{kind: f.openKind(), elements: map[string]string{}}
	clients := filter.Allow
	if len(clients) == 0 {
		clients = []netip.Prefix{netip.PrefixFrom(f.zero(), 0)}
	}
	for _, c := range clients {
		first, last := c.Masked().Addr().AsSlice(), lastOf(c)
		for _, p := range filter.Ports {
			if !nat.HasPorts(p.Proto) {
				p.Last = 0xffff // whatever the packet has there
			}
			s.elements[openKey(first, p.Proto, p.First)+openKey(last, p.Proto, p.Last)] = ""
		}
		if len(filter.Ports) == 0 {
			s.elements[openKey(first, 0, 0)+openKey(last, 0xff, 0xffff)] = ""
		}
	}
	return s
}

func (f family) zero() netip.Addr {
	if f.v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) []byte {
	a := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(a)*8; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return a
}

// openKey is an end of a range of openKind: each part is filled up to 4 bytes.
func openKey(client []byte, proto uint8, port uint16) string {
	key := append(slices.Clone(client), proto, 0, 0, 0)
	return string(append(binary.BigEndian.AppendUint16(key, port), 0, 0))
}

// spellRange writes a range of openKind, such as
// "198.51.100.0-198.51.100.255 . 6-6 . 80-80".
func spellRange(key string) string {
	const tail = 8 // bytes after the client
	first, last := key[:len(key)/2], key[len(key)/2:]
	if len(first) < tail {
		return fmt.Sprintf("%x", key)
	}
	part := func(end string) (client netip.Addr, proto byte, port uint16) {
		at := len(end) - tail
		client, _ = netip.AddrFromSlice([]byte(end[:at]))
		return client, end[at], binary.BigEndian.Uint16([]byte(end[at+4:]))
	}
	from, firstProto, firstPort := part(first)
	to, lastProto, lastPort := part(last)
	return fmt.Sprintf("%s-%s . %d-%d . %d-%d", from, to, firstProto, lastProto, firstPort, lastPort)
}
