package nat_test

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/nat"
)

// filterOf makes a filter of anything, 9 bytes per prefix or range of ports.
// Numbers are small, so that many overlap.
func filterOf(data []byte) *nat.Filter {
	f := &nat.Filter{Reject: len(data)%2 == 1}
	for ; len(data) >= 9; data = data[9:] {
		if data[0]%2 == 0 {
			addr := netip.AddrFrom4([4]byte{198, 51, data[1] % 4, data[2]})
			f.Allow = append(f.Allow, netip.PrefixFrom(addr, []int{0, 16, 22, 24, 25, 30, 31, 32}[data[3]%8]))
			continue
		}
		p := nat.Ports{Proto: []uint8{1, 6, 17, 132}[data[1]%4]}
		if nat.HasPorts(p.Proto) {
			p.First = 1 + binary.BigEndian.Uint16(data[2:])%200
			p.Last = p.First + uint16(data[4]%20)
			if data[5] == 0 {
				p.First, p.Last = 1, 0xffff
			}
		}
		f.Ports = append(f.Ports, p)
	}
	return f
}

// FuzzCanonical: a canonical filter lets pass what the filter does, is made of
// parts that are apart from each other, and stays itself.
func FuzzCanonical(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 0, 20, 5, 1, 0, 0, 0})
	f.Add([]byte{1, 1, 0, 20, 5, 1, 0, 0, 0, 1, 1, 0, 26, 5, 1, 0, 0, 0, 0, 2, 3, 4, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		given := filterOf(data)
		c := given.Canonical()
		if c == nil {
			if len(given.Ports) > 0 || len(given.Allow) > 0 && !slices.ContainsFunc(given.Allow, func(p netip.Prefix) bool { return p.Bits() == 0 }) {
				t.Fatal("a filter is lost")
			}
			return
		}
		if !reflect.DeepEqual(c, c.Canonical()) || !given.Equal(c) {
			t.Errorf("%v is not canonical", c)
		}
		for i, p := range c.Allow {
			if slices.ContainsFunc(c.Allow[:i], p.Overlaps) || p != p.Masked() {
				t.Errorf("prefixes overlap: %v", c.Allow)
			}
		}
		for i, p := range c.Ports[min(1, len(c.Ports)):] {
			if before := c.Ports[i]; before.Proto == p.Proto && p.First <= before.Last {
				t.Errorf("ports overlap: %v", c.Ports)
			}
		}
		for i := range 256 {
			src := netip.AddrFrom4([4]byte{198, 51, byte(i % 5), byte(i)})
			for _, proto := range []uint8{1, 6, 17, 132} {
				for port := range uint16(240) {
					if got, want := nattest.Passes(c, src, proto, port), nattest.Passes(given, src, proto, port); got != want {
						t.Fatalf("%v, canonical %v: from %s to %d/%d: %t, want %t", given, c, src, proto, port, got, want)
					}
				}
			}
		}
	})
}

func TestFilterEqual(t *testing.T) {
	web := &nat.Filter{Ports: []nat.Ports{{Proto: 6, First: 80, Last: 80}}}
	for _, tt := range []struct {
		a, b *nat.Filter
		want bool
	}{
		{nil, nil, true},
		{nil, &nat.Filter{}, true},
		{nil, &nat.Filter{Reject: true}, true}, // of nothing
		{nil, web, false},
		{web, &nat.Filter{Ports: []nat.Ports{{Proto: 6, First: 80, Last: 80}, {Proto: 6, First: 80, Last: 80}}}, true},
		{web, &nat.Filter{Ports: web.Ports, Reject: true}, false},
		{web, &nat.Filter{Ports: web.Ports, Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, true},
		{nil, &nat.Filter{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("0.0.0.0/0")}}, true},
		{web, &nat.Filter{Ports: web.Ports, Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1")}}, false},
		{
			&nat.Filter{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("192.0.2.0/25")}},
			&nat.Filter{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, true,
		},
	} {
		if got := tt.a.Equal(tt.b); got != tt.want || tt.b.Equal(tt.a) != tt.want {
			t.Errorf("%v and %v: equal: %t", tt.a, tt.b, got)
		}
	}
}
