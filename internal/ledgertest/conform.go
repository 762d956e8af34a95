package ledgertest

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
)

// An Open opens the store of a host. Hosts of one t share what they share, and
// those of another t know nothing of it. It is called again with the same host and
// path after the store was closed, which is up to who has called it.
type Open func(t *testing.T, host, path string) *store.Store

// Conform tests what each store must do, for one host.
func Conform(t *testing.T, open Open) {
	for name, test := range map[string]func(*testing.T, Open){
		"claims": testClaims, "same address again": testSameAddressAgain, "reservation": testReservation,
		"handed out in turn": testHandedOutInTurn, "parallel": testParallel, "change claims": testChangeClaims,
		"rehearsal": testRehearsal, "filter": testFilter,
	} {
		t.Run(name, func(t *testing.T) { test(t, open) })
	}
}

// all is the pool that has everything that these tests claim.
const all = "203.0.113.0/24,2001:db8::/120"

// openChecked opens a store that, at the end of the test, must be consistent.
func openChecked(t *testing.T, open Open, host string) *store.Store {
	t.Helper()
	s := open(t, host, filepath.Join(t.TempDir(), host, "extip.db"))
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { Check(t, host, s) })
	return s
}

// Check fails the test if what stores of hosts that share claims have on record is
// not what is claimed, or is not all that they count as taken. The addresses must
// be of 203.0.113.0/24 and 2001:db8::/120.
func Check(t *testing.T, host string, s *store.Store) {
	t.Helper()
	claims, err := s.Claims()
	endpoints, err2 := s.Endpoints()
	reservations, err3 := s.Reservations()
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	had := map[netip.Addr]string{}
	for _, e := range endpoints {
		for _, a := range e.External {
			if had[a] != "" {
				t.Errorf("%s: %s is on record for %s and %s", host, a, had[a], e.ID)
			}
			had[a] = e.ID
		}
	}
	if !maps.Equal(had, claims) {
		t.Errorf("%s: claims %v, endpoints have %v", host, claims, had)
	}
	kept := map[netip.Addr]string{}
	for _, r := range reservations {
		for _, a := range r.Addresses {
			if kept[a] != "" {
				t.Errorf("%s is kept by %s and %s", a, kept[a], r.Name)
			}
			kept[a] = r.Name
		}
	}
	p, taken := Parse(t, all), uint64(0)
	for a := p.At(0); ; a = a.Next() {
		c, claimed := s.Holder(a)
		if claimed && c.Host == "" && claims[a] != c.Endpoint {
			t.Errorf("%s is claimed by %s, and on record for %q", a, c.Endpoint, claims[a])
		}
		if claimed || claims[a] != "" || kept[a] != "" {
			taken++
		}
		if a.Is4() && !p.Contains(a.Next()) {
			a = netip.MustParseAddr("2001:db8::").Prev()
		} else if !p.Contains(a.Next()) {
			break
		}
	}
	if free := s.Free(p); free != p.Size()-taken {
		t.Errorf("%s: %d free, %d of %d taken", host, free, taken, p.Size())
	}
}

// Parse is a pool of a test.
func Parse(t *testing.T, text string) pool.Pool {
	t.Helper()
	p, err := pool.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Addrs are addresses of a test.
func Addrs(list ...string) (as []netip.Addr) {
	for _, s := range list {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// order is that in which a store hands out a pool's addresses.
func order(t *testing.T, s *store.Store, p pool.Pool) []netip.Addr {
	t.Helper()
	list, err := s.Upcoming(p, int(p.Size()), func(netip.Addr) bool { return true })
	if err != nil || len(list) == 0 {
		t.Fatalf("upcoming: %v, %v", list, err)
	}
	return list
}

func inside(text string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(text)} }

func testClaims(t *testing.T, open Open) {
	s := openChecked(t, open, "docker1")
	p := Parse(t, "203.0.113.56-203.0.113.58")
	as := Addrs("203.0.113.56", "203.0.113.57", "203.0.113.58")
	owner := store.Endpoint{ID: "0123456789abcdef", Network: "n1", Name: "mail", Addresses: inside("172.31.0.2/16")}
	if _, err := s.CreateEndpoint(owner, store.Want{Addresses: as[:1]}); err != nil {
		t.Fatal(err)
	}
	if c, ok := s.Holder(as[0]); !ok || c.Endpoint != owner.ID || c.Container != "mail" || c.Network != "n1" {
		t.Errorf("holder: %+v, %t", c, ok)
	}

	_, err := s.CreateEndpoint(store.Endpoint{ID: "e2"}, store.Want{Addresses: []netip.Addr{as[1], as[0]}})
	taken, ok := errors.AsType[*store.TakenError](err)
	if !ok || taken.Owner.ID != owner.ID || taken.Address != as[0] || taken.Host != "" {
		t.Fatalf("a claimed address: %v", err)
	}
	for _, want := range []string{"203.0.113.56", "mail", "0123456789ab", "172.31.0.2", "n1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
	if c, ok := s.Holder(as[1]); ok {
		t.Errorf("what was refused with another is left claimed: %+v", c)
	}

	not57 := func(a netip.Addr) string {
		if a == as[1] {
			return "is used by 02:00:00:00:00:01"
		}
		return ""
	}
	e2, err := s.CreateEndpoint(store.Endpoint{ID: "e2", Addresses: inside("172.31.0.3/16")}, store.Want{Pools: []pool.Pool{p}, Unusable: not57})
	if err != nil || !slices.Equal(e2.External, as[2:]) {
		t.Fatalf("from the pool: %v, %v", e2.External, err)
	}
	_, err = s.CreateEndpoint(store.Endpoint{ID: "e3"}, store.Want{Pools: []pool.Pool{p}, Unusable: not57})
	full, ok := errors.AsType[*store.ExhaustedError](err)
	if !ok || full.InUse != 2 || len(full.Unusable) != 1 {
		t.Fatalf("a full pool: %v", err)
	}
	if want := "2 of 3 addresses are in use by mail, e2, 1 can't be used: 203.0.113.57 is used by 02:00:00:00:00:01"; !strings.Contains(err.Error(), want) {
		t.Errorf("error %q lacks %q", err, want)
	}

	for range 2 {
		if err := s.DeleteEndpoints("e2"); err != nil {
			t.Error(err)
		}
	}
	e3, err := s.CreateEndpoint(store.Endpoint{ID: "e3", Addresses: inside("172.31.0.4/16")}, store.Want{Pools: []pool.Pool{p}})
	if err != nil || !slices.Equal(e3.External, as[1:2]) {
		t.Errorf("after %v: got %v, %v", e2.External, e3.External, err)
	}
	for _, a := range []string{"203.0.113.56", "203.0.113.61"} {
		if _, err := s.CreateEndpoint(owner, store.Want{Addresses: Addrs(a)}); err != nil {
			t.Errorf("the same endpoint once more with %s: %v", a, err)
		}
	}
	if err := s.RetireEndpoint(owner); err != nil {
		t.Error(err)
	}
	if c, ok := s.Holder(Addrs("203.0.113.61")[0]); ok {
		t.Errorf("a retired endpoint has an address: %+v", c)
	}
}

// testSameAddressAgain: a container that is started again keeps its external
// address, as long as nobody else has it.
func testSameAddressAgain(t *testing.T, open Open) {
	s := openChecked(t, open, "docker1")
	p := Parse(t, "203.0.113.56-203.0.113.59")
	in := order(t, s, p)
	for _, tt := range []struct {
		remove, id, network, inside string
		want                        int
		other                       bool
	}{
		{id: "e1", network: "n1", inside: "172.31.0.2/16", want: 0},
		{id: "e2", network: "n1", inside: "172.31.0.3/16", want: 1},
		{remove: "e1", id: "e3", network: "n1", inside: "172.31.0.2/16", want: 0},
		{id: "e4", network: "n2", inside: "172.31.0.2/16", want: 1, other: true}, // another network's
		{remove: "e2", id: "e5", network: "n1", inside: "172.31.0.3/16", want: 1},
	} {
		if tt.remove != "" {
			if err := s.DeleteEndpoints(tt.remove); err != nil {
				t.Fatal(err)
			}
		}
		e, err := s.CreateEndpoint(store.Endpoint{ID: tt.id, Network: tt.network, Addresses: inside(tt.inside)}, store.Want{Pools: []pool.Pool{p}})
		if err != nil {
			t.Fatal(err)
		}
		if (e.External[0] == in[tt.want]) == tt.other {
			t.Errorf("%s: got %s, want %s of %v", tt.id, e.External[0], in[tt.want], in)
		}
	}
}

// testHandedOutInTurn: a pool that several networks share hands out the address
// that was free longest, also after a restart.
func testHandedOutInTurn(t *testing.T, open Open) {
	path := filepath.Join(t.TempDir(), "extip.db")
	s := open(t, "docker1", path)
	p := Parse(t, "203.0.113.56-203.0.113.59")
	in := order(t, s, p)
	if len(in) != 4 {
		t.Fatalf("upcoming: %v", in)
	}
	for i := range 5 {
		want := in[i%4]
		if upcoming := order(t, s, p); len(upcoming) != 4 || upcoming[0] != want {
			t.Errorf("upcoming: %v; want four from %s", upcoming, want)
		}
		e := store.Endpoint{ID: "e", Network: fmt.Sprint("n", i), Addresses: inside("172.31.0.2/16")}
		got, err := s.CreateEndpoint(e, store.Want{Pools: []pool.Pool{p}})
		if err != nil || got.External[0] != want {
			t.Errorf("got %v, %v, want %s", got.External, err, want)
		}
		if err := errors.Join(s.DeleteEndpoints("e"), s.Close()); err != nil {
			t.Fatal(err)
		}
		s = open(t, "docker1", path)
	}
	prefer := in[3]
	got, err := s.CreateEndpoint(store.Endpoint{ID: "e", Network: "n"}, store.Want{Pools: []pool.Pool{p}, Prefer: []netip.Addr{prefer}})
	if err != nil || got.External[0] != prefer {
		t.Errorf("preferred: %v, %v", got.External, err)
	}
	Check(t, "docker1", s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func testParallel(t *testing.T, open Open) {
	s := openChecked(t, open, "docker1")
	claimAll(t, s)
}

// claimAll has stores claim more addresses of a pool of 32 than there are, side by
// side: each is given to one endpoint, and the rest is told that there is no more.
func claimAll(t *testing.T, stores ...*store.Store) {
	t.Helper()
	p := Parse(t, "203.0.113.0/27")
	var wg sync.WaitGroup
	var mu sync.Mutex
	owners := map[netip.Addr]string{}
	failed := 0
	for i := range 40 {
		wg.Go(func() {
			id := fmt.Sprint("e", i)
			e, err := stores[i%len(stores)].CreateEndpoint(store.Endpoint{ID: id}, store.Want{Pools: []pool.Pool{p}})
			mu.Lock()
			defer mu.Unlock()
			if _, full := errors.AsType[*store.ExhaustedError](err); full {
				failed++
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			if other := owners[e.External[0]]; other != "" {
				t.Errorf("%s was given to %s and %s", e.External[0], other, id)
			}
			owners[e.External[0]] = id
		})
	}
	wg.Wait()
	if len(owners) != 32 || failed != 8 {
		t.Errorf("%d claims and %d refusals, want 32 and 8", len(owners), failed)
	}
	for a, id := range owners {
		for _, s := range stores {
			if c, ok := s.Holder(a); !ok || c.Endpoint != id {
				t.Errorf("%s was given to %s; %+v has it", a, id, c)
			}
		}
	}
}
