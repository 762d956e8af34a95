package nattest

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/extip/extip/nat"
)

// Filtered is a mapping that only the prefixes may connect to, by ssh, a range
// of UDP ports, and ICMP.
func Filtered(m nat.Mapping, reject bool, allow ...string) nat.Mapping {
	icmp := uint8(1) // IANA's numbers
	if m.External.Is6() {
		icmp = 58
	}
	m.Filter = &nat.Filter{Ports: []nat.Ports{{Proto: 6, First: 22, Last: 22}, {Proto: 17, First: 6000, Last: 6063}, {Proto: icmp}}, Reject: reject}
	for _, a := range allow {
		m.Filter.Allow = append(m.Filter.Allow, netip.MustParsePrefix(a))
	}
	return m
}

// Passes is what a filter means: whether a packet from src to a port is let
// pass. The port of a protocol without ports doesn't matter.
func Passes(f *nat.Filter, src netip.Addr, proto uint8, port uint16) bool {
	allowed := f == nil || len(f.Allow) == 0 || slices.ContainsFunc(f.Allow, func(p netip.Prefix) bool { return p.Contains(src) })
	open := f == nil || len(f.Ports) == 0 || slices.ContainsFunc(f.Ports, func(p nat.Ports) bool {
		return p.Proto == proto && (!nat.HasPorts(proto) || p.First <= port && port <= p.Last)
	})
	return allowed && open
}

// RandomFilter makes a filter of few prefixes and many ports, some of which
// overlap; nil at times.
func RandomFilter(r *rand.Rand, v6 bool) *nat.Filter {
	f := &nat.Filter{Reject: r.IntN(2) == 0}
	for range r.IntN(4) {
		a := RandomClient(r, v6)
		f.Allow = append(f.Allow, netip.PrefixFrom(a, a.BitLen()-r.IntN(10)))
	}
	if r.IntN(8) == 0 {
		f.Allow = append(f.Allow, netip.PrefixFrom(RandomClient(r, v6), 0))
	}
	for range r.IntN(40) {
		p := nat.Ports{Proto: []uint8{1, 58, 6, 17, 132}[r.IntN(5)]}
		if nat.HasPorts(p.Proto) {
			p.First = uint16(1 + r.IntN(200))
			p.Last = p.First + uint16(r.IntN(3))
		}
		f.Ports = append(f.Ports, p)
	}
	if r.IntN(4) == 0 {
		f.Ports = nil
	}
	return f
}

// RandomClient is one of 1024 addresses.
func RandomClient(r *rand.Rand, v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 4: 7, 14: byte(r.IntN(4)), 15: byte(r.IntN(256))})
	}
	return netip.AddrFrom4([4]byte{198, 51, byte(r.IntN(4)), byte(r.IntN(256))})
}

// Filters come, change, are shared and go with nothing else.
func testFilter(t *testing.T, s Subject) {
	ok(t, s.AddNetwork(Net(1)))
	ok(t, s.Add(Map4(1, 1), Map4(1, 2), Map6(1, 1)))
	open := s.Dump()

	a, b, c := Filtered(Map4(1, 1), false), Filtered(Map4(1, 2), false), Filtered(Map6(1, 1), true, "2001:db8:5::/48", "2001:db8:7::7/128")
	ok(t, s.Add(a, c))
	one := s.Dump()
	ok(t, s.Add(b))
	clean(t, s, state(a, b, c))
	if one == open || s.Dump() == one {
		t.Error("a filter changes nothing")
	}
	ok(t, s.Add(Map4(1, 2)))
	same(t, "without the second of a kind", s.Dump(), one)

	// Another spelling of the same is no change; everything else is.
	again := a
	again.Filter = &nat.Filter{Ports: []nat.Ports{
		{Proto: 17, First: 6020, Last: 6063}, {Proto: 1}, {Proto: 6, First: 22, Last: 22}, {Proto: 17, First: 6000, Last: 6019}, {Proto: 6, First: 22, Last: 22},
	}}
	ok(t, s.Add(again))
	same(t, "the same in other words", s.Dump(), one)
	for _, change := range []func(*nat.Filter){
		func(f *nat.Filter) { f.Ports = append(f.Ports, nat.Ports{Proto: 50}) },
		func(f *nat.Filter) { f.Ports = nil },
		func(f *nat.Filter) { f.Allow = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")} },
		func(f *nat.Filter) {
			f.Allow = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("198.51.100.128/25")}
		},
		func(f *nat.Filter) {
			f.Allow = []netip.Prefix{netip.MustParsePrefix("198.51.100.128/25")}
			f.Reject = true
		},
		func(f *nat.Filter) { f.Allow = nil },
		func(f *nat.Filter) { f.Reject = false },
	} {
		next := *a.Filter
		change(&next)
		a.Filter = &next
		ok(t, s.Add(a))
		clean(t, s, state(a, c, Map4(1, 2)))
	}
	a.Filter = again.Filter
	ok(t, s.Add(a))
	same(t, "after changes there and back", s.Dump(), one)

	stays(t, s, a, c, Map4(1, 2))
	same(t, "without filters", s.Dump(), open)
}

// The kernel takes any filters, and others in their place.
func testRandomFilters(t *testing.T, s Subject) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	st := full()
	for _, n := range st.Networks {
		ok(t, s.AddNetwork(n))
	}
	for range 2 {
		for i, m := range st.Mappings {
			st.Mappings[i].Filter = RandomFilter(r, m.External.Is6())
		}
		ok(t, s.Add(st.Mappings...))
	}
	s.Backend = s.Reopen()
	clean(t, s, st)
}

// stays: what a says beyond its addresses stays with the external one, comes back, and
// a restart finds it; in the end there is nothing of it.
func stays(t *testing.T, s Subject, a nat.Mapping, others ...nat.Mapping) {
	t.Helper()
	moved := a
	moved.Internal = Map4(1, 5).Internal
	ok(t, s.Add(moved))
	s.Wipe()
	if repaired, err := s.Repair(); len(repaired) == 0 || err != nil {
		t.Errorf("Repair: %q, %v", repaired, err)
	}
	reopened := s
	reopened.Backend = s.Reopen()
	clean(t, reopened, state(append(others, moved)...))
	ok(t, reopened.Add(Map4(1, 1), Map6(1, 1)))
}

// state is one network with these mappings.
func state(ms ...nat.Mapping) nat.State {
	return nat.State{Networks: []nat.Network{Net(1)}, Mappings: ms}
}
