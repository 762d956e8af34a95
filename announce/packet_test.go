package announce

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"
)

var testMAC = mac{2, 0, 0, 0, 0, 1}

func TestPackets(t *testing.T) {
	const address6 = "20010db8000000000000000000000056"
	for _, tt := range []struct {
		name      string
		packet    []byte
		wantWords []string
	}{
		// hardware, protocol, lengths, operation | sender MAC, sender IP | target MAC, target IP
		{"request", gratuitousARP(testMAC, external).marshal(),
			[]string{"0001080006040001", "020000000001", "c0000238", "000000000000", "c0000238"}},
		{"reply", gratuitousReply(testMAC, external).marshal(),
			[]string{"0001080006040002", "020000000001", "c0000238", "020000000001", "c0000238"}},
		{"probe", arpProbe(testMAC, external).marshal(),
			[]string{"0001080006040001", "020000000001", "00000000", "000000000000", "c0000238"}},
		// IPv6: version, length, next header, hop limit, source, destination |
		// type, code, checksum | flags | target | option, length, MAC
		{"advertisement", unsolicited(testMAC, external6).marshal(),
			[]string{"60000000", "0020", "3a", "ff", address6, "ff020000000000000000000000000001",
				"8800", "f880", "20000000", address6, "0201020000000001"}},
		{"solicitation", ndpProbe(external6).marshal(),
			[]string{"60000000", "0018", "3a", "ff", "00000000000000000000000000000000", "ff0200000000000000000001ff000056",
				"8700", "4c43", "00000000", address6}},
	} {
		want := ""
		for _, w := range tt.wantWords {
			want += w
		}
		if got := hex.EncodeToString(tt.packet); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, want)
		}
	}
	if got, want := groupOf(netip.MustParseAddr("2001:db8::12:3456")), (mac{0x33, 0x33, 0xff, 0x12, 0x34, 0x56}); got != want {
		t.Errorf("group %x, want %x", got, want)
	}
}

func TestSightARP(t *testing.T) {
	answer := arp{operation: arpReply, senderMAC: testMAC, sender: external, targetMAC: mac{2}, target: external.Next()}
	question := arp{operation: arpRequest, senderMAC: testMAC, sender: external, target: external.Next()}
	nobody := arp{operation: arpReply, senderMAC: testMAC, sender: netip.IPv4Unspecified(), target: external}
	for _, tt := range []struct {
		name   string
		packet []byte
		want   *sighting
	}{
		{"request", gratuitousARP(testMAC, external).marshal(), &sighting{addr: external, mac: testMAC}},
		{"reply", gratuitousReply(testMAC, external).marshal(), &sighting{addr: external, mac: testMAC}},
		{"answer", answer.marshal(), &sighting{addr: external, mac: testMAC}},
		{"question", question.marshal(), &sighting{addr: external, mac: testMAC}},
		{"probe", arpProbe(testMAC, external).marshal(), &sighting{addr: external, mac: testMAC, claim: true}},
		{"padded", append(gratuitousARP(testMAC, external).marshal(), make([]byte, 18)...), &sighting{addr: external, mac: testMAC}},
		{"reply of nobody", nobody.marshal(), nil},
		{"short", answer.marshal()[:arpLength-1], nil},
		{"other hardware", slices.Concat([]byte{0, 6}, answer.marshal()[2:]), nil},
		{"empty", nil, nil},
	} {
		got, ok := sightARP(tt.packet, mac{})
		if ok != (tt.want != nil) || ok && got != *tt.want {
			t.Errorf("%s: got %v, %v, want %v", tt.name, got, ok, tt.want)
		}
	}
}

func TestSightNDP(t *testing.T) {
	sender := mac{2, 9, 9, 9, 9, 9}
	other := external6.Next()
	change := func(p ndp, fn func(*ndp)) []byte {
		fn(&p)
		return p.marshal()
	}
	patch := func(at int, b byte, fixChecksum bool) []byte {
		p := unsolicited(testMAC, external6).marshal()
		p[at] = b
		if fixChecksum {
			body := p[ipv6Length:]
			binary.BigEndian.PutUint16(body[2:], 0)
			binary.BigEndian.PutUint16(body[2:], checksum(external6, allNodes, body))
		}
		return p
	}
	na := unsolicited(testMAC, external6)
	for _, tt := range []struct {
		name   string
		packet []byte
		want   *sighting
	}{
		{"advertisement", na.marshal(), &sighting{addr: external6, mac: testMAC}},
		{"without option", change(na, func(p *ndp) { p.mac = mac{} }), &sighting{addr: external6, mac: sender}},
		{"from another address", change(na, func(p *ndp) { p.source = other }), &sighting{addr: external6, mac: testMAC}},
		{"answer", change(na, func(p *ndp) { p.destination, p.flags = other, solicited|override }), &sighting{addr: external6, mac: testMAC}},
		{"answer to all", change(na, func(p *ndp) { p.flags = solicited }), nil},
		{"probe", ndpProbe(external6).marshal(), &sighting{addr: external6, mac: sender, claim: true}},
		{"probe with an address", change(ndpProbe(external6), func(p *ndp) { p.mac = testMAC }), nil},
		{"probe to all", change(ndpProbe(external6), func(p *ndp) { p.destination = allNodes }), nil},
		{"question", change(ndpProbe(other), func(p *ndp) { p.source, p.mac = external6, testMAC }), &sighting{addr: external6, mac: testMAC}},
		{"of a group", change(na, func(p *ndp) { p.target = allNodes }), nil},
		{"padded", append(na.marshal(), 0, 0), &sighting{addr: external6, mac: testMAC}},
		{"routed", patch(7, 254, false), nil},
		{"other protocol", patch(6, 17, false), nil},
		{"other version", patch(0, 4<<4, false), nil},
		{"wrong checksum", patch(42, 0, false), nil},
		{"other type", patch(40, 134, true), nil},
		{"other code", patch(41, 1, true), nil},
		{"option of no length", patch(65, 0, true), nil},
		{"option beyond the end", patch(65, 2, true), nil},
		{"other option", patch(64, 14, true), &sighting{addr: external6, mac: sender}},
		{"cut", na.marshal()[:70], nil},
		{"empty", nil, nil},
	} {
		got, ok := sightNDP(tt.packet, sender)
		if ok != (tt.want != nil) || ok && got != *tt.want {
			t.Errorf("%s: got %v, %v, want %v", tt.name, got, ok, tt.want)
		}
	}
}

func FuzzARP(f *testing.F) {
	f.Add(gratuitousARP(testMAC, external).marshal())
	f.Add(gratuitousReply(testMAC, external).marshal())
	f.Add(arpProbe(testMAC, external).marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		sightARP(b, testMAC)
		p, ok := parseARP(b)
		if ok && !slices.Equal(p.marshal(), b[:arpLength]) {
			t.Errorf("%x is read as %+v, which is %x", b, p, p.marshal())
		}
	})
}

func FuzzNDP(f *testing.F) {
	f.Add(unsolicited(testMAC, external6).marshal())
	f.Add(ndpProbe(external6).marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		// Nobody guesses a checksum, so it is made right for half of them.
		if len(b) >= ipv6Length+ndpLength && b[2]&1 == 0 {
			b = slices.Clone(b)
			length := min(int(binary.BigEndian.Uint16(b[4:])), len(b)-ipv6Length)
			if length >= ndpLength {
				body := b[ipv6Length : ipv6Length+length]
				body[2], body[3] = 0, 0
				source, destination := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
				binary.BigEndian.PutUint16(body[2:], checksum(source, destination, body))
			}
		}
		sightNDP(b, testMAC)
		p, ok := parseNDP(b)
		if !ok {
			return
		}
		if again, ok := parseNDP(p.marshal()); !ok || again != p {
			t.Errorf("%x is read as %+v, then as %+v, %v", b, p, again, ok)
		}
	})
}
