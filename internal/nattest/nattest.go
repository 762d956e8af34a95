// Package nattest holds what every nat.Backend must do, as tests: the same
// suite runs on each backend and on fakes. It knows nothing of how rules are
// written; it compares them as text.
package nattest

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/extip/extip/nat"
)

// A Subject is a backend to be tested.
type Subject struct {
	nat.Backend
	// Dump is the rules as text, without counters. Two dumps are equal
	// exactly if the rules are.
	Dump func() string
	// Wipe takes all rules away behind the backend's back, its own and
	// others'.
	Wipe func()
	// Reopen makes another backend on the same kernel, as after a restart.
	Reopen func() nat.Backend
}

// Run tests the backends that open makes, each on a kernel of its own.
func Run(t *testing.T, open func(*testing.T) Subject) {
	for _, tt := range []struct {
		name string
		test func(*testing.T, Subject)
	}{
		{"Empty", testEmpty},
		{"TwiceIsOnce", testTwice},
		{"AddRemove", testAddRemove},
		{"Move", testMove},
		{"RemoveAfterMove", testRemoveAfterMove},
		{"SharedInternal", testSharedInternal},
		{"ChangeNetwork", testChangeNetwork},
		{"Mark", testMark},
		{"Filter", testFilter},
		{"RandomFilters", testRandomFilters},
		{"Limit", testLimit},
		{"Refuse", testRefuse},
		{"SyncFromNothing", testSyncFromNothing},
		{"SyncRepairs", testSyncRepairs},
		{"SyncRemoves", testSyncRemoves},
		{"Check", testCheck},
		{"Counters", testCounters},
		{"Restart", testRestart},
		{"Concurrent", testConcurrent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.test(t, open(t))
		})
	}
}

// Net is a network for tests; i tells several apart.
func Net(i int) nat.Network {
	return nat.Network{
		ID:      fmt.Sprintf("net%d", i),
		Bridge:  fmt.Sprintf("br%d", i),
		Uplinks: []string{"eth0"},
		Subnets: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("172.30.%d.0/24", i)),
			netip.MustParsePrefix(fmt.Sprintf("2001:db8:30:%d::/64", i)),
		},
	}
}

// Map4 is an IPv4 mapping into Net(net); i below 250 tells several apart.
func Map4(net, i int) nat.Mapping {
	return nat.Mapping{
		Endpoint: fmt.Sprintf("ep%dx%d", net, i),
		External: netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}),
		Internal: netip.AddrFrom4([4]byte{172, 30, byte(net), byte(i + 1)}),
		Egress:   true,
	}
}

// Map6 is Map4's twin for IPv6.
func Map6(net, i int) nat.Mapping {
	m := Map4(net, i)
	m.External = netip.MustParseAddr(fmt.Sprintf("2001:db8:cafe::%x", i))
	m.Internal = netip.MustParseAddr(fmt.Sprintf("2001:db8:30:%d::%x", net, i+1))
	return m
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: rules are\n%s\nwant\n%s", what, got, want)
	}
}

// clean asserts that the kernel holds exactly st.
func clean(t *testing.T, s Subject, st nat.State) {
	t.Helper()
	repaired, err := s.Sync(st)
	ok(t, err)
	if len(repaired) > 0 {
		t.Errorf("not what the state says: %q", repaired)
	}
}

func testEmpty(t *testing.T, s Subject) {
	before := s.Dump()
	clean(t, s, nat.State{})
	ok(t, s.Add())
	ok(t, s.Remove(Map4(1, 1), Map6(1, 1)))
	ok(t, s.RemoveNetwork(Net(1)))
	same(t, "after removal of what is absent", s.Dump(), before)
}

func testTwice(t *testing.T, s Subject) {
	clean(t, s, nat.State{})
	ok(t, s.AddNetwork(Net(1)))
	ok(t, s.Add(Map4(1, 1), Map6(1, 1)))
	once := s.Dump()
	ok(t, s.AddNetwork(Net(1)))
	ok(t, s.Add(Map4(1, 1), Map6(1, 1)))
	same(t, "after adding twice", s.Dump(), once)

	ok(t, s.Remove(Map4(1, 1), Map6(1, 1)))
	removed := s.Dump()
	ok(t, s.Remove(Map4(1, 1), Map6(1, 1)))
	same(t, "after removing twice", s.Dump(), removed)
	if removed == once {
		t.Error("removal changed nothing")
	}
}

func testAddRemove(t *testing.T, s Subject) {
	empty := s.Dump()
	var dumps []string
	all := []nat.Mapping{Map4(1, 1), Map4(1, 17), Map4(1, 18), Map6(1, 1), Map4(2, 33), Map6(2, 0xab)}
	all[2].Gateway, all[4].Egress = true, false
	ok(t, s.AddNetwork(Net(1)))
	ok(t, s.AddNetwork(Net(2)))
	for _, m := range all {
		dumps = append(dumps, s.Dump())
		ok(t, s.Add(m))
	}
	clean(t, s, nat.State{Networks: []nat.Network{Net(1), Net(2)}, Mappings: all})
	for i := len(all) - 1; i >= 0; i-- {
		ok(t, s.Remove(all[i]))
		same(t, fmt.Sprintf("after removal of %s", all[i].External), s.Dump(), dumps[i])
	}
	ok(t, s.RemoveNetwork(Net(1)))
	ok(t, s.RemoveNetwork(Net(2)))
	same(t, "after removal of all", s.Dump(), empty)
}

func testMove(t *testing.T, s Subject) {
	a, b := Map4(1, 1), Map4(1, 2)
	b.External = a.External
	ok(t, s.AddNetwork(Net(1)))
	ok(t, s.Add(b))
	want := s.Dump()
	ok(t, s.Remove(b))
	ok(t, s.Add(a))
	ok(t, s.Add(b))
	same(t, "after a move", s.Dump(), want)
	b.Gateway = true
	ok(t, s.Add(b))
	clean(t, s, nat.State{Networks: []nat.Network{Net(1)}, Mappings: []nat.Mapping{b}})
}

func testRemoveAfterMove(t *testing.T, s Subject) {
	a, b := Map4(1, 1), Map4(1, 2)
	b.External = a.External
	ok(t, s.AddNetwork(Net(1)))
	ok(t, s.Add(a))
	ok(t, s.Add(b))
	moved := s.Dump()
	ok(t, s.Remove(a))
	same(t, "after late removal of the former mapping", s.Dump(), moved)
}

func testSharedInternal(t *testing.T, s Subject) {
	a, b := Map4(1, 1), Map4(1, 2)
	b.Endpoint, b.Internal, b.Egress = a.Endpoint, a.Internal, false
	a.Gateway, b.Gateway = true, true
	ok(t, s.AddNetwork(Net(1)))
	ok(t, s.Add(a))
	want := s.Dump()
	ok(t, s.Add(b))
	clean(t, s, nat.State{Networks: []nat.Network{Net(1)}, Mappings: []nat.Mapping{b, a}})
	ok(t, s.Remove(b))
	same(t, "after removal of the second external address", s.Dump(), want)
}

func testChangeNetwork(t *testing.T, s Subject) {
	n := Net(1)
	ok(t, s.AddNetwork(n))
	want := s.Dump()
	n.Internal = true
	n.Subnets = n.Subnets[:1]
	ok(t, s.AddNetwork(n))
	clean(t, s, nat.State{Networks: []nat.Network{n}})
	ok(t, s.AddNetwork(Net(1)))
	same(t, "after changing a network there and back", s.Dump(), want)
}

// A mark comes, changes and goes with nothing else.
func testMark(t *testing.T, s Subject) {
	ok(t, s.AddNetwork(Net(1)))
	ok(t, s.AddNetwork(Net(2)))
	ok(t, s.Add(Map4(1, 1), Map6(1, 1)))
	none, n := s.Dump(), Net(1)
	marked := func(mark uint32) string {
		n.Mark = mark
		ok(t, s.AddNetwork(n))
		clean(t, s, nat.State{Networks: []nat.Network{n, Net(2)}, Mappings: []nat.Mapping{Map4(1, 1), Map6(1, 1)}})
		return s.Dump()
	}
	one, other := marked(1), marked(0xfedcba98)
	if one == none || other == one {
		t.Error("another mark changes nothing")
	}
	same(t, "marked as before", marked(1), one)
	same(t, "without a mark", marked(0), none)
}

// Names and addresses that would mean something else in a rule.
func testRefuse(t *testing.T, s Subject) {
	ok(t, s.AddNetwork(Net(1)))
	before := s.Dump()
	for _, id := range []string{"", "a b", "1234567890abc", "x\n-F", `a"b`, "é"} {
		n, m := Net(2), Map4(1, 1)
		n.ID, m.Endpoint = id, id
		if s.AddNetwork(n) == nil || s.Add(m) == nil {
			t.Errorf("id %q: accepted", id)
		}
	}
	for _, dev := range []string{"", "br0 ", "-j", "a/b", "a\tb", "sixteencharacter", `"`, "br+", "br*", "!", ".."} {
		n := Net(2)
		n.Bridge = dev
		if s.AddNetwork(n) == nil {
			t.Errorf("bridge %q: accepted", dev)
		}
		n = Net(2)
		n.Uplinks = []string{dev}
		if s.AddNetwork(n) == nil {
			t.Errorf("parent %q: accepted", dev)
		}
	}
	good, bad := Map4(1, 1), Map4(1, 2)
	for _, a := range []netip.Addr{{}, Map6(1, 1).Internal, netip.MustParseAddr("::ffff:192.0.2.1"), netip.IPv4Unspecified()} {
		bad.Internal = a
		if s.Add(good, bad) == nil {
			t.Errorf("internal %s: accepted", a)
		}
	}
	for _, f := range []nat.Filter{
		{Ports: []nat.Ports{{Proto: 6}}},
		{Ports: []nat.Ports{{Proto: 6, First: 80, Last: 79}}},
		{Ports: []nat.Ports{{Proto: 1, First: 8, Last: 8}}},
		{Allow: []netip.Prefix{{}}},
		{Allow: []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}},
		{Allow: []netip.Prefix{netip.MustParsePrefix("::ffff:192.0.2.0/120")}},
		{Allow: make([]netip.Prefix, 1001)},
	} {
		m := Map4(1, 1)
		m.Filter = &f
		if s.Add(m) == nil {
			t.Errorf("filter %v: accepted", f)
		}
	}
	if s.Add(Map4(1, 1), good, Map4(1, 1)) == nil {
		t.Error("one external address twice in a call: accepted")
	}
	same(t, "after refusals", s.Dump(), before)

	// Sync writes the others all the same.
	if _, err := s.Sync(nat.State{Networks: []nat.Network{Net(1)}, Mappings: []nat.Mapping{good, bad}}); err == nil {
		t.Error("sync of a bad mapping: no error")
	}
	clean(t, s, nat.State{Networks: []nat.Network{Net(1)}, Mappings: []nat.Mapping{good}})
}

func full() nat.State {
	st := nat.State{Networks: []nat.Network{Net(1), Net(2)}}
	st.Networks[1].Mark = 0x2b
	for i := range 40 {
		st.Mappings = append(st.Mappings, Map4(1+i%2, 1+5*i), Map6(1+i%2, 1+5*i))
	}
	return st
}

func testSyncFromNothing(t *testing.T, s Subject) {
	st := full()
	repaired, err := s.Sync(st)
	ok(t, err)
	if len(repaired) == 0 {
		t.Error("nothing reported")
	}
	synced := s.Dump()
	clean(t, s, st)
	same(t, "after a sync with nothing to do", s.Dump(), synced)
	ok(t, s.Remove(st.Mappings...))
	for _, n := range st.Networks {
		ok(t, s.AddNetwork(n))
	}
	ok(t, s.Add(st.Mappings...))
	same(t, "made by calls", s.Dump(), synced)
}

func testSyncRepairs(t *testing.T, s Subject) {
	st := full()
	for _, n := range st.Networks {
		ok(t, s.AddNetwork(n))
	}
	ok(t, s.Add(st.Mappings...))
	want := s.Dump()
	s.Wipe()
	if s.Dump() == want {
		t.Fatal("wiping changed nothing")
	}
	repaired, err := s.Sync(st)
	ok(t, err)
	if len(repaired) == 0 {
		t.Error("nothing reported")
	}
	same(t, "after repair", s.Dump(), want)
	clean(t, s, st)
	// What was told once need not be told again.
	s.Wipe()
	if repaired, err := s.Repair(); len(repaired) == 0 || err != nil {
		t.Errorf("Repair: %q, %v", repaired, err)
	}
	same(t, "after Repair", s.Dump(), want)
	if repaired, err := s.Repair(); len(repaired) != 0 || err != nil {
		t.Errorf("Repair of what is right: %q, %v", repaired, err)
	}
	// And the backend goes on from there.
	ok(t, s.Remove(st.Mappings[0]))
	st.Mappings = st.Mappings[1:]
	clean(t, s, st)
}

// testCheck: Check finds what Repair does, and leaves it there.
func testCheck(t *testing.T, s Subject) {
	st := full()
	_, err := s.Sync(st)
	ok(t, err)
	if differences, err := s.Check(); len(differences) != 0 || err != nil {
		t.Errorf("of what is right: %q, %v", differences, err)
	}
	s.Wipe()
	damaged := s.Dump()
	differences, err := s.Check()
	ok(t, err)
	same(t, "after Check", s.Dump(), damaged)
	repaired, err := s.Repair()
	ok(t, err)
	if len(differences) == 0 || !slices.Equal(differences, repaired) {
		t.Errorf("Check found %q, Repair %q", differences, repaired)
	}
	if differences, err := s.Check(); len(differences) != 0 || err != nil {
		t.Errorf("after Repair: %q, %v", differences, err)
	}
}

// testCounters: every mapping has counters, and nothing else does; to read them
// changes nothing.
func testCounters(t *testing.T, s Subject) {
	count := func(want ...nat.Mapping) {
		t.Helper()
		before := s.Dump()
		counters, err := s.Counters()
		ok(t, err)
		for _, m := range want {
			if c, there := counters[m.External]; !there || c != (nat.Counters{}) {
				t.Errorf("%s, which nobody has used: %+v, %v", m.External, c, there)
			}
		}
		if len(counters) != len(want) {
			t.Errorf("counters of %d addresses, want %d", len(counters), len(want))
		}
		same(t, "after reading", s.Dump(), before)
	}
	count()
	st := full()
	_, err := s.Sync(st)
	ok(t, err)
	count(st.Mappings...)
	ok(t, s.Add(Filtered(Map4(1, 200), true)))
	ok(t, s.Remove(st.Mappings...))
	count(Filtered(Map4(1, 200), true))
	s.Wipe()
	count(Filtered(Map4(1, 200), true))
}

func testSyncRemoves(t *testing.T, s Subject) {
	empty := s.Dump()
	_, err := s.Sync(full())
	ok(t, err)
	repaired, err := s.Sync(nat.State{})
	ok(t, err)
	if len(repaired) == 0 {
		t.Error("nothing reported")
	}
	same(t, "after sync to nothing", s.Dump(), empty)
}

func testRestart(t *testing.T, s Subject) {
	empty, st := s.Dump(), full()
	_, err := s.Sync(st)
	ok(t, err)
	want := s.Dump()
	again := s
	again.Backend = s.Reopen()
	clean(t, again, st)
	same(t, "after a restart", s.Dump(), want)
	ok(t, again.Remove(st.Mappings...))
	for _, n := range st.Networks {
		ok(t, again.RemoveNetwork(n))
	}
	same(t, "after removal by the new process", s.Dump(), empty)
}

func testConcurrent(t *testing.T, s Subject) {
	st := nat.State{Networks: []nat.Network{Net(1)}}
	ok(t, s.AddNetwork(Net(1)))
	const callers = 40
	errs := make([]error, callers)
	var wg sync.WaitGroup
	for i := range callers {
		if i%2 == 0 {
			st.Mappings = append(st.Mappings, Map4(1, 1+i), Map6(1, 1+i))
		}
		wg.Go(func() {
			errs[i] = s.Add(Map4(1, 1+i), Map6(1, 1+i))
			if i%2 == 1 && errs[i] == nil {
				errs[i] = s.Remove(Map4(1, 1+i), Map6(1, 1+i))
			}
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("caller %d: %v", i, err)
		}
	}
	clean(t, s, st)
}
