package pool

import (
	"math"
	"net/netip"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		size     uint64
	}{
		{"", "", 0},
		{"203.0.113.56", "203.0.113.56", 1},
		{"203.0.113.56-203.0.113.62", "203.0.113.56-203.0.113.62", 7},
		{" 203.0.113.56 - 203.0.113.58 , 203.0.113.60 ", "203.0.113.56-203.0.113.58,203.0.113.60", 4},
		{"203.0.113.64/29", "203.0.113.64-203.0.113.71", 8},
		{"203.0.113.65/32", "203.0.113.65", 1},
		{"203.0.113.60,203.0.113.56-203.0.113.59", "203.0.113.56-203.0.113.60", 5},
		{"203.0.113.0/24,203.0.113.8-203.0.113.9", "203.0.113.0-203.0.113.255", 256},
		{"2001:db8::1,203.0.113.1", "203.0.113.1,2001:db8::1", 2},
		{"2001:db8::/64", "2001:db8::-2001:db8::ffff:ffff:ffff:ffff", math.MaxUint64},
		{"2001:db8::/32", "2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", math.MaxUint64},
		{"2001:db8::ffff:0:0:0-2001:db8:0:1::", "2001:db8:0:0:ffff::-2001:db8:0:1::", 1<<48 + 1},
		{"255.255.255.255,0.0.0.0", "0.0.0.0,255.255.255.255", 2},
	} {
		p, err := Parse(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if p.String() != tt.want || p.Size() != tt.size {
			t.Errorf("%q: got %q of %d, want %q of %d", tt.in, p, p.Size(), tt.want, tt.size)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for in, want := range map[string]string{
		"web":                       "no address",
		"203.0.113.256":             "no address",
		"203.0.113.1-":              "no address",
		"203.0.113.0/33":            "no address",
		"203.0.113.9-203.0.113.1":   "ends before it begins",
		"203.0.113.9-2001:db8::1":   "mixes",
		"fe80::1%eth0":              "zone",
		"::ffff:203.0.113.1":        "IPv4 in IPv6",
		"203.0.113.1;203.0.113.2":   "no address",
		"203.0.113.1-203.0.113.2-3": "no address",
	} {
		if _, err := Parse(in); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), in) {
			t.Errorf("%q: error %v, want the value and %q", in, err, want)
		}
	}
}

func TestContainsAndOverlaps(t *testing.T) {
	p, err := Parse("203.0.113.56-203.0.113.62,203.0.113.70,2001:db8::10/124")
	if err != nil {
		t.Fatal(err)
	}
	for a, want := range map[string]bool{
		"203.0.113.55": false, "203.0.113.56": true, "203.0.113.60": true, "203.0.113.62": true,
		"203.0.113.63": false, "203.0.113.70": true, "203.0.113.71": false, "0.0.0.1": false,
		"2001:db8::f": false, "2001:db8::10": true, "2001:db8::1f": true, "2001:db8::20": false,
	} {
		if got := p.Contains(netip.MustParseAddr(a)); got != want {
			t.Errorf("Contains(%s) = %v", a, got)
		}
	}
	for prefix, want := range map[string]bool{
		"203.0.113.0/24": true, "203.0.113.63/32": false, "203.0.113.62/32": true,
		"172.31.0.0/16": false, "2001:db8::/64": true, "2001:db8:1::/64": false, "0.0.0.0/0": true,
	} {
		if got := p.Overlaps(netip.MustParsePrefix(prefix)); got != want {
			t.Errorf("Overlaps(%s) = %v", prefix, got)
		}
	}
}

func TestNextGoesRoundOnce(t *testing.T) {
	p, err := Parse("203.0.113.1-203.0.113.3,203.0.113.9")
	if err != nil {
		t.Fatal(err)
	}
	taken := map[string]bool{}
	usable := func(a netip.Addr) bool { return !taken[a.String()] }
	var at netip.Addr
	for _, want := range []string{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.9", "203.0.113.1"} {
		got, ok := p.Next(at, usable)
		if !ok || got.String() != want {
			t.Fatalf("after %v: got %v, %v; want %s", at, got, ok, want)
		}
		at = got
	}
	taken["203.0.113.2"], taken["203.0.113.3"] = true, true
	if got, _ := p.Next(at, usable); got.String() != "203.0.113.9" {
		t.Errorf("passes over taken addresses: got %v", got)
	}
	asked := 0
	if got, ok := p.Next(at, func(netip.Addr) bool { asked++; return false }); ok || asked != 4 {
		t.Errorf("full pool: got %v, %v after %d questions, want none after 4", got, ok, asked)
	}
	if _, ok := (Pool{}).Next(at, usable); ok {
		t.Error("an empty pool has an address")
	}
	if got, _ := p.Next(netip.MustParseAddr("203.0.113.5"), usable); got.String() != "203.0.113.9" {
		t.Errorf("after an address between spans: got %v", got)
	}
	if got, _ := p.Next(netip.MustParseAddr("2001:db8::1"), usable); got.String() != "203.0.113.1" {
		t.Errorf("after an address beyond the pool: got %v", got)
	}
	edge, _ := Parse("255.255.255.255")
	if got, ok := edge.Next(netip.MustParseAddr("255.255.255.255"), usable); !ok || got.String() != "255.255.255.255" {
		t.Errorf("the last address of all: got %v, %v", got, ok)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "203.0.113.56-203.0.113.62,2001:db8::/120", "0.0.0.0/0", "::/0", "1.2.3.4-1.2.3.4,,", "::-::ffff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s)
		if err != nil {
			return
		}
		back, err := Parse(p.String())
		if err != nil || back.String() != p.String() {
			t.Fatalf("%q prints as %q, which reads back as %q, %v", s, p, back, err)
		}
		if a, ok := p.Next(netip.Addr{}, func(netip.Addr) bool { return true }); ok != !p.Empty() || ok && !p.Contains(a) {
			t.Fatalf("%q: first address %v, %v", s, a, ok)
		}
	})
}
