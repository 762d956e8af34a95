package ledgertest

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
)

// ConformShared tests what stores must do that share claims.
func ConformShared(t *testing.T, open Open) {
	for name, test := range map[string]func(*testing.T, Open){
		"parallel": testParallelHosts, "taken": testTakenElsewhere, "reservation follows": testReservationFollows,
		"hand over": testHandOver, "take along": testTakeAlong, "leftovers": testLeftovers,
	} {
		t.Run(name, func(t *testing.T) { test(t, open) })
	}
}

// soon waits until hosts have heard of something.
func soon(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !so(); {
		if time.Now().After(deadline) {
			t.Fatalf("not so in time: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// agree waits until all stores know the same of claims and reservations, before
// they are checked.
func agree(t *testing.T, stores ...*store.Store) {
	t.Helper()
	p := Parse(t, all)
	soon(t, "all know the same", func() bool {
		return !slices.ContainsFunc(stores, func(s *store.Store) bool { return s.Free(p) != stores[0].Free(p) })
	})
}

// openThree opens the stores of three hosts.
func openThree(t *testing.T, open Open) (stores []*store.Store) {
	t.Helper()
	for i := range 3 {
		stores = append(stores, openChecked(t, open, fmt.Sprint("docker", i+1)))
	}
	t.Cleanup(func() { agree(t, stores...) })
	return stores
}

// testParallelHosts: three hosts claim all of a pool, and more, side by side.
func testParallelHosts(t *testing.T, open Open) { claimAll(t, openThree(t, open)...) }

func testTakenElsewhere(t *testing.T, open Open) {
	hosts := openThree(t, open)
	as := Addrs("203.0.113.56", "203.0.113.57")
	owner := store.Endpoint{ID: "83891d5c86e3aaaa", Network: "n1", Name: "web"}
	if _, err := hosts[1].CreateEndpoint(owner, store.Want{Addresses: as[:1]}); err != nil {
		t.Fatal(err)
	}
	if _, err := hosts[1].Reserve("db", as[1:], false); err != nil {
		t.Fatal(err)
	}
	_, err := hosts[0].CreateEndpoint(store.Endpoint{ID: "e"}, store.Want{Addresses: as[:1]})
	taken, ok := errors.AsType[*store.TakenError](err)
	if !ok || taken.Host != "docker2" || taken.Owner.ID != owner.ID || taken.Owner.Network != "n1" {
		t.Fatalf("taken: %v", err)
	}
	if want := `203.0.113.56 is taken by container "web" (83891d5c86e3) on host docker2`; taken.Error() != want {
		t.Errorf("%q, want %q", taken, want)
	}
	_, err = hosts[2].CreateEndpoint(store.Endpoint{ID: "e"}, store.Want{Addresses: as[1:], Reservation: "web"})
	if kept, ok := errors.AsType[*store.ReservedError](err); !ok || kept.Name != "db" {
		t.Errorf("reserved: %v", err)
	}
	if _, err := hosts[2].Reserve("web", as[:1], false); err == nil {
		t.Error("what a container of another host has can be reserved")
	}
	p := Parse(t, "203.0.113.56/31")
	_, err = hosts[0].CreateEndpoint(store.Endpoint{ID: "e"}, store.Want{Pools: []pool.Pool{p}})
	full, ok := errors.AsType[*store.ExhaustedError](err)
	if !ok || full.InUse != 1 || fmt.Sprint(full.Owners, full.Reserved) != "[web on host docker2] [db]" {
		t.Errorf("exhausted: %v", err)
	}
	// Others' claims are not this host's to release.
	if err := errors.Join(hosts[0].DeleteEndpoints(owner.ID), hosts[0].RetireEndpoint(owner), hosts[0].DeleteEndpoints(owner.ID)); err != nil {
		t.Error(err)
	}
	if c, ok := hosts[1].Holder(as[0]); !ok || c.Host != "docker2" {
		t.Errorf("holder: %+v, %t", c, ok)
	}
	if err := errors.Join(hosts[1].DeleteEndpoints(owner.ID), hosts[1].Unreserve("db")); err != nil {
		t.Fatal(err)
	}
	for i, s := range hosts[:2] {
		if _, err := s.CreateEndpoint(store.Endpoint{ID: fmt.Sprint("e", i)}, store.Want{Addresses: as[i : i+1]}); err != nil {
			t.Errorf("released: %v", err)
		}
	}
}

// testReservationFollows: a container that is started elsewhere has its addresses
// there, and its filter.
func testReservationFollows(t *testing.T, open Open) {
	hosts := openThree(t, open)
	p := Parse(t, "203.0.113.56/29")
	want := store.Want{Reservation: "mail", Pools: []pool.Pool{p}}
	var had []netip.Addr
	for round := range 4 {
		s := hosts[round%3]
		e, err := s.CreateEndpoint(store.Endpoint{ID: fmt.Sprint("e", round), Network: "n"}, want)
		if err != nil {
			t.Fatal(err)
		}
		e.State = store.Published
		if err := s.PutEndpoint(e); err != nil {
			t.Fatal(err)
		}
		if round > 0 && !slices.Equal(e.External, had) {
			t.Errorf("round %d: %v, want %v", round, e.External, had)
		}
		had = e.External
		if _, err := hosts[(round+1)%3].CreateEndpoint(store.Endpoint{ID: "other"}, want); err == nil {
			t.Error("a reservation is used on two hosts")
		}
		if err := s.DeleteEndpoints(e.ID); err != nil {
			t.Fatal(err)
		}
	}
	list, err := hosts[1].Reservations()
	if err != nil || len(list) != 1 || !slices.Equal(list[0].Addresses, had) {
		t.Errorf("%+v, %v", list, err)
	}
}

func testHandOver(t *testing.T, open Open) {
	hosts := openThree(t, open)
	a, b := two(t, hosts[0])
	moved := Addrs("203.0.113.57")
	c, err := hosts[1].CreateEndpoint(store.Endpoint{ID: "c", Network: "n2", Name: "web2", State: store.Published}, store.Want{Addresses: Addrs("203.0.113.60"), Reservation: "web2"})
	if err != nil {
		t.Fatal(err)
	}
	to := store.Claim{Host: "docker2", Endpoint: "c", Network: "n2", Container: "web2", Reservation: "web2"}
	if err := hosts[0].HandOver(b, moved[0], to); err == nil {
		t.Error("handed over by who doesn't have it")
	}
	dead := to
	dead.Host = "docker9"
	if err := hosts[0].HandOver(a, moved[0], dead); err == nil {
		t.Error("handed over to a host that isn't there")
	}
	a.External = Addrs("203.0.113.56")
	if err := hosts[0].HandOver(a, moved[0], to); err != nil {
		t.Fatal(err)
	}
	soon(t, "docker2 knows what it was given", func() bool {
		given, err := hosts[1].Given()
		if err != nil {
			t.Fatal(err)
		}
		return given[moved[0]].From == "docker1" && given[moved[0]].Endpoint == "c"
	})
	if lost, err := hosts[1].Reclaim(); len(lost) > 0 || err != nil {
		t.Errorf("reclaim before it is recorded: %v, %v", lost, err)
	}
	_, err = hosts[1].CreateEndpoint(store.Endpoint{ID: "d"}, store.Want{Addresses: moved, Reservation: "web2"})
	if taken, ok := errors.AsType[*store.TakenError](err); !ok || taken.Owner.ID != "c" {
		t.Errorf("claimed before it is recorded: %v", err)
	}
	if err := hosts[2].TakeOver(c, moved[0]); err == nil {
		t.Error("another host takes it over")
	}
	c.External = append(c.External, moved[0])
	for range 2 {
		if err := hosts[1].TakeOver(c, moved[0]); err != nil {
			t.Fatal(err)
		}
	}
	if given, err := hosts[1].Given(); len(given) > 0 || err != nil {
		t.Errorf("given: %v, %v", given, err)
	}
	for i, s := range hosts {
		if lost, err := s.Reclaim(); len(lost) > 0 || err != nil {
			t.Errorf("host %d: %v, %v", i, lost, err)
		}
	}
	if claims, err := hosts[1].Claims(); err != nil || claims[moved[0]] != "c" {
		t.Errorf("%v, %v", claims, err)
	}
	list, err := hosts[1].Reservations()
	if got := fmt.Sprintf("%s %v %s %v", list[0].Name, list[0].Addresses, list[1].Name, list[1].Addresses); err != nil || got != "web [203.0.113.56] web2 [203.0.113.60 203.0.113.57]" {
		t.Errorf("reservations: %s, %v", got, err)
	}
	// And it can be given up there.
	if err := hosts[1].RetireEndpoint(c); err != nil {
		t.Fatal(err)
	}
	if _, err := hosts[2].CreateEndpoint(store.Endpoint{ID: "d"}, store.Want{Addresses: moved, Reservation: "web2"}); err != nil {
		t.Error(err)
	}
}

// testTakeAlong: what was recorded before a file was shared is shared, but for what
// others have; and once it is no longer, it is there as before.
func testTakeAlong(t *testing.T, open Open) {
	other := openChecked(t, open, "docker2")
	if _, err := other.CreateEndpoint(store.Endpoint{ID: "x", Network: "n"}, store.Want{Addresses: Addrs("203.0.113.58", "203.0.113.71")}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "extip.db")
	local := func() *store.Store {
		s, err := store.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := local()
	two(t, s) // web has 56 and 57, b has 58
	_, err := s.Reserve("db", Addrs("203.0.113.70", "203.0.113.71"), false)
	before := state(t, s)
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	s = open(t, "docker1", path)
	want := fmt.Sprint(map[netip.Addr]string{Addrs("203.0.113.58")[0]: "docker2", Addrs("203.0.113.71")[0]: "docker2"})
	if lost, err := s.Reclaim(); err != nil || fmt.Sprint(lost) != want {
		t.Errorf("lost %v, %v, want %s", lost, err, want)
	}
	want = fmt.Sprint(map[netip.Addr]string{Addrs("203.0.113.58")[0]: "docker2"})
	if lost, err := s.Reclaim(); err != nil || fmt.Sprint(lost) != want {
		t.Errorf("lost %v, %v, want %s", lost, err, want)
	}
	agree(t, s, other)
	Check(t, "docker1", s)
	_, err = other.CreateEndpoint(store.Endpoint{ID: "y"}, store.Want{Addresses: Addrs("203.0.113.70")})
	if _, ok := errors.AsType[*store.ReservedError](err); !ok {
		t.Errorf("what was reserved before: %v", err)
	}
	if err := other.DeleteEndpoints("x"); err != nil {
		t.Fatal(err)
	}
	if lost, err := s.Reclaim(); len(lost) > 0 || err != nil {
		t.Errorf("lost though it is free: %v, %v", lost, err)
	}
	if err := errors.Join(s.Unreserve("db"), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = local()
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	Check(t, "docker1", s)
	if _, err := s.Reserve("db", Addrs("203.0.113.70", "203.0.113.71"), false); err != nil {
		t.Error(err)
	}
	if got := withoutTimes(state(t, s)); got != withoutTimes(before) {
		t.Errorf("no longer shared:\n%s\nwas\n%s", got, before)
	}
	// What goes on in the ledger has this host's claims until its lease ends.
	s2 := open(t, "docker1", filepath.Join(t.TempDir(), "extip.db"))
	if _, err := s2.Reclaim(); err != nil {
		t.Error(err)
	}
	if err := s2.Close(); err != nil {
		t.Error(err)
	}
}

// testLeftovers: claims under a host's name that its file doesn't have are dropped,
// or taken by whoever of that host asks for them.
func testLeftovers(t *testing.T, open Open) {
	lost := open(t, "docker1", filepath.Join(t.TempDir(), "extip.db"))
	as := Addrs("203.0.113.56", "203.0.113.57", "203.0.113.58")
	for i := range as {
		if _, err := lost.CreateEndpoint(store.Endpoint{ID: fmt.Sprint("e", i)}, store.Want{Addresses: as[i : i+1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := lost.Close(); err != nil {
		t.Fatal(err)
	}
	s := openChecked(t, open, "docker1")
	// One is rebuilt as it was, another was forgotten.
	for i, id := range []string{"e0", "new"} {
		if _, err := s.CreateEndpoint(store.Endpoint{ID: id}, store.Want{Addresses: as[i : i+1]}); err != nil {
			t.Error(err)
		}
	}
	if lost, err := s.Reclaim(); len(lost) > 0 || err != nil {
		t.Errorf("%v, %v", lost, err)
	}
	if c, ok := s.Holder(as[2]); ok {
		t.Errorf("left over: %+v", c)
	}
	for i, id := range []string{"e0", "new"} {
		if c, ok := s.Holder(as[i]); !ok || c.Endpoint != id {
			t.Errorf("%+v, want %s", c, id)
		}
	}
}
