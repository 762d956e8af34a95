package store

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extip/extip/pool"
)

func addrs(list ...string) (as []netip.Addr) {
	for _, s := range list {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// state is all that is recorded of claims and reservations, as text.
func state(t *testing.T, s *Store) string {
	t.Helper()
	claims, err := s.Claims()
	reservations, err2 := s.Reservations()
	endpoints, err3 := s.Endpoints()
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%v %+v %v", claims, reservations, endpoints)
}

// two are two published endpoints, of which the first has a reservation.
func two(t *testing.T, s *Store) (a, b Endpoint) {
	t.Helper()
	a = Endpoint{ID: "a", Network: "n1", State: Published, Reservation: "web"}
	b = Endpoint{ID: "b", Network: "n1", State: Published}
	a, err := s.CreateEndpoint(a, Want{Addresses: addrs("203.0.113.56", "203.0.113.57"), Reservation: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if b, err = s.CreateEndpoint(b, Want{Addresses: addrs("203.0.113.58")}); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// TestChangeClaims: addresses change hands in one write or not at all, and changing
// back leaves what was before.
func TestChangeClaims(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "extip.db"))
	a, b := two(t, s)
	p := parse(t, "203.0.113.56-203.0.113.60")
	before := state(t, s)
	a2, b2 := a, b
	a2.External, b2.External = addrs("203.0.113.57", "203.0.113.58"), addrs("203.0.113.56")
	if err := s.ChangeClaims(a2, b2); err != nil {
		t.Fatal(err)
	}
	claims, err := s.Claims()
	want := map[netip.Addr]string{addrs("203.0.113.56")[0]: "b", addrs("203.0.113.57")[0]: "a", addrs("203.0.113.58")[0]: "a"}
	if diff := cmp.Diff(want, claims, byValue); diff != "" || err != nil {
		t.Errorf("claims (-want +got):\n%s%v", diff, err)
	}
	reservations, err := s.Reservations()
	if err != nil || len(reservations) != 1 || fmt.Sprint(reservations[0].Addresses, reservations[0].First) != "[203.0.113.57 203.0.113.58] [203.0.113.56 203.0.113.57]" {
		t.Errorf("%+v, %v", reservations, err)
	}
	if got := s.Free(p); got != 2 {
		t.Errorf("%d free", got)
	}
	if err := s.ChangeClaims(a, b); err != nil {
		t.Fatal(err)
	}
	if got := state(t, s); got != before {
		t.Errorf("changed back:\n%s\nwas\n%s", got, before)
	}
	// What one of them can't have, none of them gets.
	a2.External, b2.External = addrs("203.0.113.57", "203.0.113.60"), addrs("203.0.113.56", "203.0.113.57")
	if taken, ok := errors.AsType[*TakenError](s.ChangeClaims(a2, b2)); !ok || taken.Owner.ID != "a" {
		t.Errorf("taken: %+v", taken)
	}
	if _, err := s.Reserve("db", addrs("203.0.113.59"), false); err != nil {
		t.Fatal(err)
	}
	b2.External = addrs("203.0.113.58", "203.0.113.59")
	if reserved, ok := errors.AsType[*ReservedError](s.ChangeClaims(b2)); !ok || reserved.Name != "db" {
		t.Errorf("reserved: %+v", reserved)
	}
	if err := s.Unreserve("db"); err != nil {
		t.Fatal(err)
	}
	if got := state(t, s); got != before || s.Free(p) != 2 {
		t.Errorf("refusals leave\n%s\n%d free, was\n%s", got, s.Free(p), before)
	}
	// What is released is free, unless it is reserved.
	a2.External = nil
	if err := errors.Join(s.ChangeClaims(a2), s.DeleteEndpoints("b")); err != nil {
		t.Fatal(err)
	}
	if got := s.Free(p); got != 5 {
		t.Errorf("%d free", got)
	}
}

// TestRehearsal tells what would be, and leaves everything.
func TestRehearsal(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "extip.db"))
	a, _ := two(t, s)
	p := parse(t, "203.0.113.56-203.0.113.60")
	want := Want{Addresses: addrs("203.0.113.70"), Pools: []pool.Pool{p}}
	before := state(t, s)
	for range 2 {
		got, err := s.AddClaims(a, want, true)
		if fmt.Sprint(got.External) != "[203.0.113.56 203.0.113.57 203.0.113.70 203.0.113.59]" || err != nil {
			t.Errorf("%v, %v", got.External, err)
		}
		r, err := s.Reserve("web", addrs("203.0.113.60"), true)
		if fmt.Sprint(r.Addresses) != "[203.0.113.56 203.0.113.57 203.0.113.60]" || err != nil {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if _, err := s.AddClaims(a, Want{Addresses: addrs("203.0.113.58")}, true); err == nil {
		t.Error("what is taken can be had")
	}
	if got := state(t, s); got != before || s.Free(p) != 2 {
		t.Errorf("rehearsals leave\n%s\nwas\n%s", got, before)
	}
	got, err := s.AddClaims(a, want, false)
	if err != nil || len(got.External) != 4 || s.Free(p) != 1 {
		t.Errorf("%v, %v", got.External, err)
	}
	if r, err := s.Reservations(); err != nil || len(r) != 1 || len(r[0].Addresses) != 4 {
		t.Errorf("%+v, %v", r, err)
	}
}
