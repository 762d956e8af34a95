package ledgertest

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
)

// testReservation: who names a reservation gets its addresses, whatever came
// between, and nobody else does.
func testReservation(t *testing.T, open Open) {
	s := openChecked(t, open, "docker1")
	pools := []pool.Pool{Parse(t, "203.0.113.56-203.0.113.57"), Parse(t, "2001:db8::56/127")}
	v4, v6 := order(t, s, pools[0]), order(t, s, pools[1])
	first, second := fmt.Sprint([]netip.Addr{v4[0], v6[0]}), fmt.Sprint([]netip.Addr{v4[1], v6[1]})
	serial := 0
	create := func(reservation string, want store.Want) (store.Endpoint, error) {
		serial++
		want.Reservation = reservation
		e := store.Endpoint{ID: fmt.Sprint("e", serial), Network: "n1", Addresses: inside(fmt.Sprintf("172.31.0.%d/16", serial))}
		e, err := s.CreateEndpoint(e, want)
		if err == nil {
			e.State = store.Published
			err = s.PutEndpoint(e)
		}
		return e, err
	}
	mail, err := create("mail", store.Want{Pools: pools})
	if got := fmt.Sprint(mail.External); err != nil || got != first {
		t.Fatalf("first: %s, %v", got, err)
	}
	if _, err := create("mail", store.Want{Pools: pools}); !strings.Contains(fmt.Sprint(err), v4[0].String()+" is taken by endpoint e1") {
		t.Errorf("at the same time: %v", err)
	}
	if err := s.DeleteEndpoints(mail.ID); err != nil {
		t.Fatal(err)
	}
	other, err := create("", store.Want{Pools: pools})
	if got := fmt.Sprint(other.External); err != nil || got != second {
		t.Errorf("another one: %s, %v", got, err)
	}
	_, err = create("", store.Want{Pools: pools})
	if full, ok := errors.AsType[*store.ExhaustedError](err); !ok || full.InUse != 1 || len(full.Reserved) != 1 ||
		!strings.Contains(err.Error(), `in use by e3, 1 reserved as mail`) {
		t.Errorf("exhausted: %v", err)
	}
	_, err = create("web", store.Want{Addresses: mail.External})
	if reserved, ok := errors.AsType[*store.ReservedError](err); !ok || reserved.Name != "mail" || reserved.Address != mail.External[0] {
		t.Errorf("asked for by another name: %v", err)
	}
	misfit := errors.New("not here")
	if _, err := create("mail", store.Want{Pools: pools, Fits: func(netip.Addr, bool) error { return misfit }}); !errors.Is(err, misfit) {
		t.Errorf("where it doesn't fit: %v", err)
	}
	for range 2 {
		again, err := create("mail", store.Want{Pools: pools})
		if fmt.Sprint(again.External) != first || err != nil {
			t.Errorf("again: %v, %v", again.External, err)
		}
		if err := s.DeleteEndpoints(again.ID); err != nil {
			t.Fatal(err)
		}
	}
	// Addresses that are asked for take the place of those reserved before.
	moved, err := create("mail", store.Want{Addresses: Addrs("203.0.113.99")})
	if err != nil {
		t.Fatal(err)
	}
	free, err := create("", store.Want{Pools: pools[:1]})
	if err != nil || free.External[0] != v4[0] {
		t.Errorf("what is no longer reserved: %s, %v", free.External, err)
	}
	if err := s.DeleteEndpoints(moved.ID, free.ID, other.ID); err != nil {
		t.Fatal(err)
	}
	both, err := create("mail", store.Want{Pools: pools})
	if got := fmt.Sprint(both.External); err != nil || got != fmt.Sprintf("[203.0.113.99 %s]", v6[0]) {
		t.Errorf("one of a family that it lacks: %s, %v", got, err)
	}
	// Who never got as far as being published reserves nothing.
	failed, err := s.CreateEndpoint(store.Endpoint{ID: "failed", Network: "n9", State: store.Plumbed}, store.Want{Addresses: v4[1:], Reservation: "web"})
	if err := errors.Join(err, s.DeleteEndpoints(failed.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := create("", store.Want{Addresses: failed.External}); err != nil {
		t.Error(err)
	}
}

// state is all that is recorded of claims and reservations, as text.
func state(t *testing.T, s *store.Store) string {
	t.Helper()
	claims, err := s.Claims()
	reservations, err2 := s.Reservations()
	endpoints, err3 := s.Endpoints()
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%v %+v %v", claims, reservations, endpoints)
}

// withoutTimes takes out of a state what can't be the same again.
func withoutTimes(state string) string {
	return regexp.MustCompile(`Created:[^}]*? UTC`).ReplaceAllString(state, "")
}

// two are two published endpoints, of which the first has a reservation.
func two(t *testing.T, s *store.Store) (a, b store.Endpoint) {
	t.Helper()
	a = store.Endpoint{ID: "a", Network: "n1", State: store.Published, Reservation: "web"}
	b = store.Endpoint{ID: "b", Network: "n1", State: store.Published}
	a, err := s.CreateEndpoint(a, store.Want{Addresses: Addrs("203.0.113.56", "203.0.113.57"), Reservation: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if b, err = s.CreateEndpoint(b, store.Want{Addresses: Addrs("203.0.113.58")}); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// testChangeClaims: addresses change hands in one write or not at all, and changing
// back leaves what was before.
func testChangeClaims(t *testing.T, open Open) {
	s := openChecked(t, open, "docker1")
	a, b := two(t, s)
	p := Parse(t, "203.0.113.56-203.0.113.60")
	before := state(t, s)
	a2, b2 := a, b
	a2.External, b2.External = Addrs("203.0.113.57", "203.0.113.58"), Addrs("203.0.113.56")
	if err := s.ChangeClaims(a2, b2); err != nil {
		t.Fatal(err)
	}
	claims, err := s.Claims()
	want := map[netip.Addr]string{Addrs("203.0.113.56")[0]: "b", Addrs("203.0.113.57")[0]: "a", Addrs("203.0.113.58")[0]: "a"}
	if !maps.Equal(claims, want) || err != nil {
		t.Errorf("claims %v, want %v; %v", claims, want, err)
	}
	for addr, id := range want {
		if c, ok := s.Holder(addr); !ok || c.Endpoint != id {
			t.Errorf("%s has %+v, want %s", addr, c, id)
		}
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
	a2.External, b2.External = Addrs("203.0.113.57", "203.0.113.60"), Addrs("203.0.113.56", "203.0.113.57")
	if taken, ok := errors.AsType[*store.TakenError](s.ChangeClaims(a2, b2)); !ok || taken.Owner.ID != "a" {
		t.Errorf("taken: %+v", taken)
	}
	if _, err := s.Reserve("db", Addrs("203.0.113.59"), false); err != nil {
		t.Fatal(err)
	}
	b2.External = Addrs("203.0.113.58", "203.0.113.59")
	if reserved, ok := errors.AsType[*store.ReservedError](s.ChangeClaims(b2)); !ok || reserved.Name != "db" {
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

// testRehearsal tells what would be, and leaves everything.
func testRehearsal(t *testing.T, open Open) {
	s := openChecked(t, open, "docker1")
	a, _ := two(t, s)
	p := Parse(t, "203.0.113.56-203.0.113.60")
	next := order(t, s, p)
	want := store.Want{Addresses: Addrs("203.0.113.70"), Pools: []pool.Pool{p}}
	before := state(t, s)
	for range 2 {
		got, err := s.AddClaims(a, want, true)
		if fmt.Sprint(got.External) != fmt.Sprintf("[203.0.113.56 203.0.113.57 203.0.113.70 %s]", next[0]) || err != nil {
			t.Errorf("%v, %v", got.External, err)
		}
		r, err := s.Reserve("web", next[1:2], true)
		if fmt.Sprint(r.Addresses) != fmt.Sprintf("[203.0.113.56 203.0.113.57 %s]", next[1]) || err != nil {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if _, err := s.AddClaims(a, store.Want{Addresses: Addrs("203.0.113.58")}, true); err == nil {
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

// testFilter: a reservation remembers what has become of a filter.
func testFilter(t *testing.T, open Open) {
	s := openChecked(t, open, "docker1")
	a, _ := two(t, s)
	before, after := a.Filter, store.Filter{Ports: []store.Ports{{Proto: "tcp", First: 22, Last: 22}}}
	a.Filter = after
	if err := errors.Join(s.PutFilter(a, before), s.DeleteEndpoints("a")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ asked, want store.Filter }{
		{before, after}, {store.Filter{Refuse: store.RefuseReject}, store.Filter{Refuse: store.RefuseReject}}, {before, after},
	} {
		e, err := s.CreateEndpoint(store.Endpoint{ID: "c", Filter: tt.asked}, store.Want{Reservation: "web"})
		if err != nil || !e.Filter.Equal(tt.want) {
			t.Errorf("asked for %+v: %+v, %v", tt.asked, e.Filter, err)
		}
	}
}
