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

// TestForgetsWithNetwork: which address a container had last is forgotten with its
// network.
func TestForgetsWithNetwork(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "extip.db"))
	for i, network := range []string{"n1", "n1", "n2", "n3"} {
		e := Endpoint{ID: fmt.Sprint("e", i), Network: network, Addresses: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("172.31.0.%d/16", i+2))}}
		if _, err := s.CreateEndpoint(e, Want{Pools: []pool.Pool{parse(t, "203.0.113.56-203.0.113.59")}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.DeleteEndpoints("e0", "e1"), s.DeleteNetwork("n1")); err != nil {
		t.Fatal(err)
	}
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
