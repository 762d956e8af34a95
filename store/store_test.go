package store

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extip/extip/pool"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	bolt "go.etcd.io/bbolt"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

// openTest opens a store that, at the end of the test, must be consistent.
func openTest(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { checkInvariants(t, s) })
	return s
}

// checkInvariants: every claim has its endpoint, and every endpoint its claims.
func checkInvariants(t *testing.T, s *Store) {
	t.Helper()
	claims, err := s.Claims()
	if err != nil {
		t.Fatal(err)
	}
	endpoints, err := s.Endpoints()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range endpoints {
		for _, a := range e.External {
			n++
			if claims[a] != e.ID {
				t.Errorf("endpoint %s has %s, which is claimed by %q", e.ID, a, claims[a])
			}
		}
	}
	if n != len(claims) {
		t.Errorf("%d claims, %d addresses of endpoints", len(claims), n)
	}
	reserved, err := s.byAddress(reservedBucket)
	if err != nil {
		t.Fatal(err)
	}
	names, err := all[Reservation](s, namesBucket)
	if err != nil {
		t.Fatal(err)
	}
	kept := map[netip.Addr]string{}
	for _, r := range names {
		for _, a := range r.Addresses {
			kept[a] = r.Name
		}
	}
	if !maps.Equal(kept, reserved) {
		t.Errorf("reservations %v, their addresses %v", kept, reserved)
	}
	// What is remembered as taken is what a new start would read.
	fresh := &Store{db: s.db}
	if err := fresh.recallTaken(); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(s.taken), fmt.Sprint(fresh.taken); got != want {
		t.Errorf("taken are %s, want %s", got, want)
	}
}

func parse(t *testing.T, s string) pool.Pool {
	t.Helper()
	p, err := pool.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSurvivesReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "extip.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	n := Network{
		ID: "n1", Bridge: "xip-n1", Parent: "br-ex", MTU: 1450, Auto: true, ICC: true,
		Gateways: []netip.Prefix{netip.MustParsePrefix("172.31.0.1/16")},
		Pool:     parse(t, "203.0.113.56-203.0.113.62"), Source: SourceClient, Egress: EgressExternal,
	}
	e := Endpoint{
		ID: "e1", Network: "n1", Addresses: []netip.Prefix{netip.MustParsePrefix("172.31.0.2/16")},
		MAC: "02:42:ac:1f:00:02", Source: SourceGateway, Egress: EgressHost, State: Plumbed,
		Created: time.Date(2026, 11, 24, 6, 0, 0, 0, time.UTC),
	}
	if err := s.PutNetwork(n); err != nil {
		t.Fatal(err)
	}
	e, err = s.CreateEndpoint(e, Want{Pools: []pool.Pool{n.Pool}})
	if err != nil {
		t.Fatal(err)
	}
	e.State = Published
	if err := s.PutEndpoint(e); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openTest(t, path)
	networks, err := s.Networks()
	if diff := cmp.Diff([]Network{n}, networks, byValue, cmp.Comparer(func(a, b pool.Pool) bool { return a.String() == b.String() })); diff != "" || err != nil {
		t.Errorf("networks (-want +got), %v:\n%s", err, diff)
	}
	endpoints, err := s.Endpoints()
	if diff := cmp.Diff([]Endpoint{e}, endpoints, byValue); diff != "" || err != nil {
		t.Errorf("endpoints (-want +got), %v:\n%s", err, diff)
	}
	if err := s.DeleteNetwork("n1"); err != nil {
		t.Error(err)
	}
	if networks, err := s.Networks(); len(networks) != 0 || err != nil {
		t.Errorf("after deletion: %v, %v", networks, err)
	}
}

func TestClaims(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "extip.db"))
	p := parse(t, "203.0.113.56-203.0.113.58")
	a56, a57 := netip.MustParseAddr("203.0.113.56"), netip.MustParseAddr("203.0.113.57")
	owner := Endpoint{ID: "0123456789abcdef", Network: "n1", Name: "mail", Addresses: []netip.Prefix{netip.MustParsePrefix("172.31.0.2/16")}}
	if _, err := s.CreateEndpoint(owner, Want{Addresses: []netip.Addr{a56}}); err != nil {
		t.Fatal(err)
	}

	_, err := s.CreateEndpoint(Endpoint{ID: "e2"}, Want{Addresses: []netip.Addr{a57, a56}})
	var taken *TakenError
	if !errors.As(err, &taken) || taken.Owner.ID != owner.ID || taken.Address != a56 {
		t.Fatalf("a claimed address: %v", err)
	}
	for _, want := range []string{"203.0.113.56", "mail", "0123456789ab", "172.31.0.2", "n1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
	checkInvariants(t, s) // 57 is not left claimed

	not57 := func(a netip.Addr) string {
		if a == a57 {
			return "is used by 02:00:00:00:00:01"
		}
		return ""
	}
	at := func(inside string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(inside)} }
	e2, err := s.CreateEndpoint(Endpoint{ID: "e2", Addresses: at("172.31.0.3/16")}, Want{Pools: []pool.Pool{p}, Unusable: not57})
	if err != nil || len(e2.External) != 1 || e2.External[0].String() != "203.0.113.58" {
		t.Fatalf("from the pool: %v, %v", e2.External, err)
	}
	_, err = s.CreateEndpoint(Endpoint{ID: "e3"}, Want{Pools: []pool.Pool{p}, Unusable: not57})
	var full *ExhaustedError
	if !errors.As(err, &full) || full.InUse != 2 || len(full.Unusable) != 1 {
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
	e3, err := s.CreateEndpoint(Endpoint{ID: "e3", Addresses: at("172.31.0.4/16")}, Want{Pools: []pool.Pool{p}})
	if err != nil || e3.External[0] != a57 {
		t.Errorf("after %v: got %v, %v", e2.External, e3.External, err)
	}
	for _, a := range []string{"203.0.113.56", "203.0.113.61"} {
		if _, err := s.CreateEndpoint(owner, Want{Addresses: []netip.Addr{netip.MustParseAddr(a)}}); err != nil {
			t.Errorf("the same endpoint once more with %s: %v", a, err)
		}
	}
}

// TestSameAddressAgain: a container that is started again keeps its external
// address, as long as nobody else has it.
func TestSameAddressAgain(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "extip.db"))
	p := parse(t, "203.0.113.56-203.0.113.59")
	create := func(id, network, inside string) string {
		t.Helper()
		e, err := s.CreateEndpoint(Endpoint{ID: id, Network: network, Addresses: []netip.Prefix{netip.MustParsePrefix(inside)}}, Want{Pools: []pool.Pool{p}})
		if err != nil {
			t.Fatal(err)
		}
		return e.External[0].String()
	}
	for _, tt := range []struct{ remove, id, network, inside, want string }{
		{"", "e1", "n1", "172.31.0.2/16", "203.0.113.56"},
		{"", "e2", "n1", "172.31.0.3/16", "203.0.113.57"},
		{"e1", "e3", "n1", "172.31.0.2/16", "203.0.113.56"},
		{"", "e4", "n2", "172.31.0.2/16", "203.0.113.57+"}, // another network's
		{"e2", "e5", "n1", "172.31.0.3/16", "203.0.113.57"},
	} {
		if tt.remove != "" {
			if err := s.DeleteEndpoints(tt.remove); err != nil {
				t.Fatal(err)
			}
		}
		got := create(tt.id, tt.network, tt.inside)
		if want, other := strings.CutSuffix(tt.want, "+"); (got == want) == other {
			t.Errorf("%s: got %s, want %s", tt.id, got, tt.want)
		}
	}
	if err := errors.Join(s.DeleteEndpoints("e3", "e5"), s.DeleteNetwork("n1")); err != nil {
		t.Fatal(err)
	}
	create("e6", "n1", "172.31.0.2/16")
	err := s.db.View(func(tx *bolt.Tx) error {
		if n := tx.Bucket(recentBucket).Stats().KeyN; n != 2 {
			t.Errorf("%d addresses are remembered, want 2", n)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestReservation: who names a reservation gets its addresses, whatever came
// between, and nobody else does.
func TestReservation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "extip.db")
	s := openTest(t, path)
	pools := []pool.Pool{parse(t, "203.0.113.56-203.0.113.57"), parse(t, "2001:db8::56/127")}
	serial := 0
	create := func(reservation string, want Want) (Endpoint, error) {
		serial++
		want.Reservation = reservation
		e, err := s.CreateEndpoint(Endpoint{ID: fmt.Sprint("e", serial), Network: "n1", Addresses: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("172.31.0.%d/16", serial))}}, want)
		if err == nil {
			e.State = Published
			err = s.PutEndpoint(e)
		}
		return e, err
	}
	mail, err := create("mail", Want{Pools: pools})
	if got := fmt.Sprint(mail.External); err != nil || got != "[203.0.113.56 2001:db8::56]" {
		t.Fatalf("first: %s, %v", got, err)
	}
	if _, err := create("mail", Want{Pools: pools}); !strings.Contains(fmt.Sprint(err), "203.0.113.56 is taken by endpoint e1") {
		t.Errorf("at the same time: %v", err)
	}
	if err := s.DeleteEndpoints(mail.ID); err != nil {
		t.Fatal(err)
	}
	other, err := create("", Want{Pools: pools})
	if got := fmt.Sprint(other.External); err != nil || got != "[203.0.113.57 2001:db8::57]" {
		t.Errorf("another one: %s, %v", got, err)
	}
	_, err = create("", Want{Pools: pools})
	if full, ok := errors.AsType[*ExhaustedError](err); !ok || full.InUse != 1 || len(full.Reserved) != 1 ||
		!strings.Contains(err.Error(), `in use by e3, 1 reserved as mail`) {
		t.Errorf("exhausted: %v", err)
	}
	_, err = create("web", Want{Addresses: mail.External})
	if reserved, ok := errors.AsType[*ReservedError](err); !ok || reserved.Name != "mail" || reserved.Address != mail.External[0] {
		t.Errorf("asked for by another name: %v", err)
	}
	misfit := errors.New("not here")
	if _, err := create("mail", Want{Pools: pools, Fits: func(netip.Addr, bool) error { return misfit }}); !errors.Is(err, misfit) {
		t.Errorf("where it doesn't fit: %v", err)
	}
	for range 2 {
		again, err := create("mail", Want{Pools: pools})
		if fmt.Sprint(again.External) != fmt.Sprint(mail.External) || err != nil {
			t.Errorf("again: %v, %v", again.External, err)
		}
		if err := s.DeleteEndpoints(again.ID); err != nil {
			t.Fatal(err)
		}
	}
	// Addresses that are asked for take the place of those reserved before.
	asked, a57 := netip.MustParseAddr("203.0.113.99"), netip.MustParseAddr("203.0.113.57")
	moved, err := create("mail", Want{Addresses: []netip.Addr{asked}})
	if err != nil {
		t.Fatal(err)
	}
	free, err := create("", Want{Pools: pools[:1]})
	if got := fmt.Sprint(free.External); err != nil || got != "[203.0.113.56]" {
		t.Errorf("what is no longer reserved: %s, %v", got, err)
	}
	if err := s.DeleteEndpoints(moved.ID, free.ID, other.ID); err != nil {
		t.Fatal(err)
	}
	both, err := create("mail", Want{Pools: pools})
	if got := fmt.Sprint(both.External); err != nil || got != "[203.0.113.99 2001:db8::56]" {
		t.Errorf("one of a family that it lacks: %s, %v", got, err)
	}
	// Who never got as far as being published reserves nothing.
	failed, err := s.CreateEndpoint(Endpoint{ID: "failed", Network: "n9", State: Plumbed}, Want{Addresses: []netip.Addr{a57}, Reservation: "web"})
	if err := errors.Join(err, s.DeleteEndpoints(failed.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := create("", Want{Addresses: failed.External}); err != nil {
		t.Error(err)
	}
}

// TestHandedOutInTurn: a pool that several networks share hands out the address
// that was free longest, also after a restart.
func TestHandedOutInTurn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "extip.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	p := parse(t, "203.0.113.56-203.0.113.59")
	for i, want := range []string{"203.0.113.56", "203.0.113.57", "203.0.113.58", "203.0.113.59", "203.0.113.56"} {
		if upcoming, err := s.Upcoming(p, 9, func(netip.Addr) bool { return true }); err != nil || len(upcoming) != 4 || upcoming[0].String() != want {
			t.Errorf("upcoming: %v, %v; want four from %s", upcoming, err, want)
		}
		e := Endpoint{ID: "e", Network: fmt.Sprint("n", i), Addresses: []netip.Prefix{netip.MustParsePrefix("172.31.0.2/16")}}
		got, err := s.CreateEndpoint(e, Want{Pools: []pool.Pool{p}})
		if err != nil || got.External[0].String() != want {
			t.Errorf("got %v, %v, want %s", got.External, err, want)
		}
		if err := errors.Join(s.DeleteEndpoints("e"), s.Close()); err != nil {
			t.Fatal(err)
		}
		if s, err = Open(path); err != nil {
			t.Fatal(err)
		}
	}
	prefer := netip.MustParseAddr("203.0.113.59")
	got, err := s.CreateEndpoint(Endpoint{ID: "e", Network: "n"}, Want{Pools: []pool.Pool{p}, Prefer: []netip.Addr{prefer}})
	if err != nil || got.External[0] != prefer {
		t.Errorf("preferred: %v, %v", got.External, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestParallelClaimsAreUnique(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "extip.db"))
	p := parse(t, "203.0.113.0/27")
	var wg sync.WaitGroup
	var full sync.Map
	for i := range 40 {
		wg.Go(func() {
			_, err := s.CreateEndpoint(Endpoint{ID: fmt.Sprint("e", i)}, Want{Pools: []pool.Pool{p}})
			if err != nil {
				full.Store(i, err)
			}
		})
	}
	wg.Wait()
	failed := 0
	full.Range(func(_, err any) bool {
		failed++
		if _, ok := errors.AsType[*ExhaustedError](err.(error)); !ok {
			t.Error(err)
		}
		return true
	})
	if claims, err := s.Claims(); len(claims) != 32 || failed != 8 || err != nil {
		t.Errorf("%d claims and %d refusals, want 32 and 8; %v", len(claims), failed, err)
	}
}

func TestOneWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "extip.db")
	openTest(t, path)
	if s, err := Open(path); !errors.Is(err, ErrLocked) {
		t.Errorf("a second writer: %v, %v", s, err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "extip.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	err = s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(metaBucket).Put(schemaKey, []byte("99")) })
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "schema is 99") {
		t.Errorf("a newer file: %v", err)
	}
}

// TestDamage damages a file in many ways: each time it is either still whole
// or set aside, never lost, and the program goes on.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	sound := filepath.Join(dir, "sound.db")
	s, err := Open(sound)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		a := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
		if _, err := s.CreateEndpoint(Endpoint{ID: fmt.Sprintf("e%02d", i)}, Want{Addresses: []netip.Addr{a}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(sound)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string][]byte{
		"nonsense": []byte("this is no database"),
		"zeros":    make([]byte, len(content)),
	}
	for _, size := range []int{100, 4096, 8192, 12000, len(content) / 2, len(content) - 4096} {
		cases[fmt.Sprintf("cut to %d", size)] = content[:size]
	}
	seed := time.Now().UnixNano()
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	for i := range 60 {
		damaged := bytes.Clone(content)
		at := random.IntN(len(damaged)/512) * 512
		for j := range 512 {
			damaged[at+j] = byte(random.Uint32())
		}
		cases[fmt.Sprintf("%d: sector at %d", i, at)] = damaged
	}
	setAside := 0
	for name, damaged := range cases {
		path := filepath.Join(t.TempDir(), "extip.db")
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path)
		if err != nil {
			t.Errorf("seed %d, %s: %v", seed, name, err)
			continue
		}
		if aside := s.SetAside(); aside != "" {
			setAside++
			kept, err := os.ReadFile(aside)
			if !bytes.Equal(kept, damaged) || err != nil {
				t.Errorf("seed %d, %s: the damaged file was not kept: %v", seed, name, err)
			}
		}
		if _, err := s.CreateEndpoint(Endpoint{ID: "new"}, Want{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.99")}}); err != nil {
			t.Errorf("seed %d, %s: %v", seed, name, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("seed %d: %d of %d damaged files were set aside; the others were damaged where nothing is", seed, setAside, len(cases))
	if setAside < 8 {
		t.Errorf("only %d set aside", setAside)
	}
}
