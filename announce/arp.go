package announce

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

type mac = [6]byte

var broadcast = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// arp is an ARP packet (RFC 826) for IPv4 on Ethernet.
type arp struct {
	operation            uint16
	senderMAC, targetMAC mac
	sender, target       netip.Addr
}

const (
	arpRequest = 1
	arpReply   = 2
	arpLength  = 28
)

// gratuitousARP is what updates neighbour entries in any state at once: a
// request by the owner for its own address.
func gratuitousARP(own mac, addr netip.Addr) arp {
	return arp{operation: arpRequest, senderMAC: own, sender: addr, target: addr}
}

// gratuitousReply is the other form, for neighbours that heed only replies.
// Linux does so at once if the target MAC is the owner's too; with any other,
// only when the entry is a second old (measured).
func gratuitousReply(own mac, addr netip.Addr) arp {
	return arp{operation: arpReply, senderMAC: own, targetMAC: own, sender: addr, target: addr}
}

// arpProbe asks who has addr without claiming it (RFC 5227 §2.1.1).
func arpProbe(own mac, addr netip.Addr) arp {
	return arp{operation: arpRequest, senderMAC: own, sender: netip.IPv4Unspecified(), target: addr}
}

func (p arp) marshal() []byte {
	b := make([]byte, 0, arpLength)
	b = binary.BigEndian.AppendUint16(b, 1) // Ethernet
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, 6, 4) // lengths of the addresses
	b = binary.BigEndian.AppendUint16(b, p.operation)
	b = append(b, p.senderMAC[:]...)
	b = append(b, p.sender.AsSlice()...)
	b = append(b, p.targetMAC[:]...)
	return append(b, p.target.AsSlice()...)
}

// parseARP reads a packet, which may be followed by padding.
func parseARP(b []byte) (arp, bool) {
	if len(b) < arpLength ||
		binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != unix.ETH_P_IP || b[4] != 6 || b[5] != 4 {
		return arp{}, false
	}
	return arp{
		operation: binary.BigEndian.Uint16(b[6:]),
		senderMAC: mac(b[8:14]),
		sender:    netip.AddrFrom4([4]byte(b[14:18])),
		targetMAC: mac(b[18:24]),
		target:    netip.AddrFrom4([4]byte(b[24:28])),
	}, true
}

// A sighting is what a packet says of an address: that a host with this MAC
// has it, or, if claim, that it would like to have it and asks whether it may.
type sighting struct {
	addr  netip.Addr
	mac   mac
	claim bool
}

// sightARP is what RFC 5227 §2.1.1 and §2.4 call a conflict, if the MAC isn't
// ours: any packet with the address as the sender's, or a probe for it.
func sightARP(b []byte, _ mac) (sighting, bool) {
	p, ok := parseARP(b)
	switch {
	case !ok:
		return sighting{}, false
	case !p.sender.IsUnspecified():
		return sighting{addr: p.sender, mac: p.senderMAC}, true
	default:
		return sighting{addr: p.target, mac: p.senderMAC, claim: true}, p.operation == arpRequest
	}
}
