package pool

import (
	"math"
	"math/rand/v2"
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
		{"!203.0.113.1,203.0.113.0/29", "203.0.113.0,203.0.113.2-203.0.113.7", 7},
		{"203.0.113.0/24, ! 203.0.113.4/30, !203.0.113.250-203.0.113.255", "203.0.113.0-203.0.113.3,203.0.113.8-203.0.113.249", 246},
		{"203.0.113.0/24,!2001:db8::/64,!198.51.100.1", "203.0.113.0-203.0.113.255", 256},
		{"0.0.0.0/0,!0.0.0.0,!255.255.255.255,!128.0.0.0/1", "0.0.0.1-127.255.255.255", 1<<31 - 1},
		{"2001:db8::/64,!2001:db8::", "2001:db8::1-2001:db8::ffff:ffff:ffff:ffff", math.MaxUint64},
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
		"!web":                      "no address",
		"!!203.0.113.1":             "no address",
		"!203.0.113.1":              "leaves no address",
		"203.0.113.1,!203.0.113.1":  "leaves no address",
	} {
		if _, err := Parse(in); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), strings.TrimLeft(in, "!")) {
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

func TestOf(t *testing.T) {
	p, err := Parse("203.0.113.56-203.0.113.62,2001:db8::10/124,198.51.100.1,::1")
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Of(true).String(); got != "198.51.100.1,203.0.113.56-203.0.113.62" {
		t.Errorf("IPv4: %s", got)
	}
	if got := p.Of(false).String(); got != "::1,2001:db8::10-2001:db8::1f" {
		t.Errorf("IPv6: %s", got)
	}
}

// TestNextFromAnywhere: from each address, whichever are taken, the next free one is
// found, or that there is none.
func TestNextFromAnywhere(t *testing.T) {
	p, err := Parse("203.0.113.1-203.0.113.4,203.0.113.6-203.0.113.7")
	if err != nil {
		t.Fatal(err)
	}
	n := p.Size()
	for takenBits := range 1 << n {
		taken := &Set{}
		for i := range n {
			if takenBits&(1<<i) != 0 {
				taken.Add(p.At(i))
			}
		}
		for after := range n {
			var want netip.Addr
			for i := uint64(1); i <= n && !want.IsValid(); i++ {
				if a := p.At((after + i) % n); !taken.Contains(a) {
					want = a
				}
			}
			got, ok := p.Next(p.At(after), taken, func(netip.Addr) bool { return true })
			if got != want || ok != want.IsValid() {
				t.Errorf("after %s, taken %v: got %s, %t, want %s", p.At(after), taken, got, ok, want)
			}
		}
	}
}

func TestAt(t *testing.T) {
	p, err := Parse("203.0.113.1-203.0.113.3,203.0.113.9,2001:db8::ffff:ffff:ffff:fffe/64")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range map[uint64]string{
		0: "203.0.113.1", 2: "203.0.113.3", 3: "203.0.113.9", 4: "2001:db8::", 5: "2001:db8::1", 1<<32 + 4: "2001:db8::1:0:0",
		math.MaxUint64: "2001:db8::ffff:ffff:ffff:fffb",
	} {
		if got := p.At(i); got.String() != want {
			t.Errorf("%d: %s, want %s", i, got, want)
		}
	}
	if got := (Pool{}).At(0); got.IsValid() {
		t.Errorf("of none: %s", got)
	}
}

func TestNextGoesRoundOnce(t *testing.T) {
	p, err := Parse("203.0.113.1-203.0.113.3,203.0.113.9")
	if err != nil {
		t.Fatal(err)
	}
	taken := &Set{}
	all := func(netip.Addr) bool { return true }
	var at netip.Addr
	for _, want := range []string{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.9", "203.0.113.1"} {
		got, ok := p.Next(at, taken, all)
		if !ok || got.String() != want {
			t.Fatalf("after %v: got %v, %v; want %s", at, got, ok, want)
		}
		at = got
	}
	taken.Add(netip.MustParseAddr("203.0.113.2"))
	taken.Add(netip.MustParseAddr("203.0.113.3"))
	if got, _ := p.Next(at, taken, all); got.String() != "203.0.113.9" {
		t.Errorf("passes over taken addresses: got %v", got)
	}
	asked := 0
	no := func(netip.Addr) bool { asked++; return false }
	if got, ok := p.Next(at, taken, no); ok || asked != 2 {
		t.Errorf("full pool: got %v, %v after %d questions, want none after 2", got, ok, asked)
	}
	for _, a := range []string{"203.0.113.1", "203.0.113.9", "203.0.113.4", "203.0.113.0"} {
		taken.Add(netip.MustParseAddr(a))
	}
	if got, ok := p.Next(at, taken, all); ok {
		t.Errorf("all are taken, and others around them: got %v", got)
	}
	taken = &Set{}
	if _, ok := (Pool{}).Next(at, taken, all); ok {
		t.Error("an empty pool has an address")
	}
	if got, _ := p.Next(netip.MustParseAddr("203.0.113.5"), taken, all); got.String() != "203.0.113.9" {
		t.Errorf("after an address between spans: got %v", got)
	}
	if got, _ := p.Next(netip.MustParseAddr("2001:db8::1"), taken, all); got.String() != "203.0.113.1" {
		t.Errorf("after an address beyond the pool: got %v", got)
	}
	edge, _ := Parse("255.255.255.255")
	if got, ok := edge.Next(netip.MustParseAddr("255.255.255.255"), taken, all); !ok || got.String() != "255.255.255.255" {
		t.Errorf("the last address of all: got %v, %v", got, ok)
	}
	whole, _ := Parse("0.0.0.0/0")
	if got, ok := whole.Next(netip.MustParseAddr("255.255.255.255"), taken, all); !ok || got.String() != "0.0.0.0" {
		t.Errorf("round all there is: got %v, %v", got, ok)
	}
	asked = 0
	huge, _ := Parse("2001:db8::/64")
	if got, ok := huge.Next(netip.Addr{}, taken, no); ok || asked != mostUnusable {
		t.Errorf("a pool that nobody can try whole: got %v, %v after %d", got, ok, asked)
	}
}

// TestSet compares a set with a map, through many random changes.
func TestSet(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	s, model := &Set{}, map[netip.Addr]bool{}
	addr := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{255, 255, 255, byte(n)}) }
	p := Pool{spans: []span{{addr(3), addr(255)}}}
	for step := range 20000 {
		a := addr(random.IntN(256))
		if random.IntN(2) == 0 {
			s.Add(a)
			model[a] = true
		} else {
			s.Remove(a)
			delete(model, a)
		}
		if b := addr(random.IntN(256)); s.Contains(b) != model[b] {
			t.Fatalf("step %d: Contains(%s) = %v", step, b, !model[b])
		}
		runs := 0
		for n := range 256 {
			if model[addr(n)] && (n == 0 || !model[addr(n-1)]) {
				runs++
			}
		}
		if runs != len(s.runs) {
			t.Fatalf("step %d: %d runs, want %d: %v", step, len(s.runs), runs, s.runs)
		}
		free := uint64(0)
		parts := Pool{spans: []span{{addr(3), addr(9)}, {addr(20), addr(20)}, {addr(100), addr(255)}}}
		for n := range 256 {
			if parts.Contains(addr(n)) && !model[addr(n)] {
				free++
			}
		}
		if got := parts.Free(s); got != free {
			t.Fatalf("step %d: %d free, want %d: %v", step, got, free, s.runs)
		}
		got, ok := p.Next(a, s, func(netip.Addr) bool { return true })
		want, there := netip.Addr{}, false
		for n, x := 0, p.following(a); n < 253 && !there; n, x = n+1, p.following(x) {
			want, there = x, !model[x]
		}
		if ok != there || ok && got != want {
			t.Fatalf("step %d: after %s: got %v, %v, want %v, %v", step, a, got, ok, want, there)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "203.0.113.56-203.0.113.62,2001:db8::/120", "0.0.0.0/0", "::/0", "1.2.3.4-1.2.3.4,,", "::-::ffff", "1.2.3.0/24,!1.2.3.4", "!::/0,::/1"} {
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
		if a, ok := p.Next(netip.Addr{}, &Set{}, func(netip.Addr) bool { return true }); ok != !p.Empty() || ok && !p.Contains(a) {
			t.Fatalf("%q: first address %v, %v", s, a, ok)
		}
	})
}
