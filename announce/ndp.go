package announce

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ndp is a neighbour solicitation or advertisement (RFC 4861 §4.3, §4.4) with
// its IPv6 header.
type ndp struct {
	kind                uint8
	source, destination netip.Addr
	flags               uint8 // of an advertisement
	target              netip.Addr
	// mac is the link-layer address option, the source's in a solicitation
	// and the target's in an advertisement; zero if there is none.
	mac mac
}

const (
	solicitation  = 135
	advertisement = 136
	solicited     = 0x40 // a flag of an advertisement: it answers
	override      = 0x20 // and replaces what was known

	ipv6Length = 40
	ndpLength  = 24 // after the IPv6 header, without options
	// hopLimit tells that no router passed the packet on (RFC 4861 §7.1).
	hopLimit = 255
)

var (
	allNodes       = netip.MustParseAddr("ff02::1")
	solicitedGroup = netip.MustParsePrefix("ff02::1:ff00:0/104")
)

// solicitedNode is the group that hosts with addr belong to (RFC 4291 §2.7.1).
func solicitedNode(addr netip.Addr) netip.Addr {
	group, last := solicitedGroup.Addr().As16(), addr.As16()
	copy(group[13:], last[13:])
	return netip.AddrFrom16(group)
}

// groupMAC is the Ethernet address of an IPv6 group (RFC 2464 §7).
func groupMAC(group netip.Addr) mac {
	b := group.As16()
	return mac{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// unsolicited is the advertisement by which a host tells all that addr is its
// own now (RFC 4861 §7.2.6).
func unsolicited(own mac, addr netip.Addr) ndp {
	return ndp{kind: advertisement, source: addr, destination: allNodes, flags: override, target: addr, mac: own}
}

// ndpProbe asks who has addr without claiming it (RFC 4862 §5.4.2).
func ndpProbe(addr netip.Addr) ndp {
	return ndp{kind: solicitation, source: netip.IPv6Unspecified(), destination: solicitedNode(addr), target: addr}
}

func (p ndp) marshal() []byte {
	body := []byte{p.kind, 0, 0, 0, p.flags, 0, 0, 0} // checksum to come
	body = append(body, p.target.AsSlice()...)
	if p.mac != (mac{}) {
		body = append(body, p.option(), 1) // in units of eight bytes
		body = append(body, p.mac[:]...)
	}
	binary.BigEndian.PutUint16(body[2:], checksum(p.source, p.destination, body))
	b := []byte{6 << 4, 0, 0, 0} // version, no flow label
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, unix.IPPROTO_ICMPV6, hopLimit)
	b = append(b, p.source.AsSlice()...)
	b = append(b, p.destination.AsSlice()...)
	return append(b, body...)
}

// option is the type of the link-layer address option.
func (p ndp) option() uint8 {
	if p.kind == solicitation {
		return 1
	}
	return 2
}

// parseNDP reads a packet and refuses what RFC 4861 §7.1 says is not valid.
func parseNDP(b []byte) (ndp, bool) {
	if len(b) < ipv6Length+ndpLength || b[0]>>4 != 6 || b[6] != unix.IPPROTO_ICMPV6 || b[7] != hopLimit {
		return ndp{}, false
	}
	p := ndp{source: netip.AddrFrom16([16]byte(b[8:24])), destination: netip.AddrFrom16([16]byte(b[24:40]))}
	length := int(binary.BigEndian.Uint16(b[4:]))
	body := b[ipv6Length:]
	if length < ndpLength || length > len(body) {
		return ndp{}, false
	}
	body = body[:length]
	p.kind, p.flags, p.target = body[0], body[4], netip.AddrFrom16([16]byte(body[8:24]))
	code := body[1]
	if p.kind != solicitation && p.kind != advertisement || code != 0 ||
		p.target.IsMulticast() || checksum(p.source, p.destination, body) != 0 {
		return ndp{}, false
	}
	for options := body[ndpLength:]; len(options) > 0; {
		if len(options) < 8 || options[1] == 0 || len(options) < 8*int(options[1]) {
			return ndp{}, false
		}
		if options[0] == p.option() && options[1] == 1 {
			p.mac = mac(options[2:8])
		}
		options = options[8*int(options[1]):]
	}
	if p.kind == solicitation {
		if p.source.IsUnspecified() {
			return p, solicitedGroup.Contains(p.destination) && p.mac == mac{}
		}
		return p, true
	}
	return p, !p.destination.IsMulticast() || p.flags&solicited == 0
}

// checksum is that of ICMPv6 (RFC 4443 §2.3); over a body with its checksum
// in place it is 0.
func checksum(source, destination netip.Addr, body []byte) uint16 {
	var sum uint32
	add := func(b []byte) {
		for ; len(b) > 1; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
		if len(b) > 0 {
			sum += uint32(b[0]) << 8
		}
	}
	add(source.AsSlice())
	add(destination.AsSlice())
	add(body)
	sum += uint32(len(body)) + unix.IPPROTO_ICMPV6
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// sightNDP is what RFC 4862 §5.4 calls a sign of a duplicate address, if the
// MAC isn't ours; the sender's stands in for one that isn't said.
func sightNDP(b []byte, sender mac) (sighting, bool) {
	p, ok := parseNDP(b)
	if !ok {
		return sighting{}, false
	}
	if p.mac != (mac{}) {
		sender = p.mac
	}
	s := sighting{addr: p.target, mac: sender}
	if p.kind == solicitation {
		if s.claim = p.source.IsUnspecified(); !s.claim {
			s.addr = p.source
		}
	}
	return s, true
}
