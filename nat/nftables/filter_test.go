package nftables

import (
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/nat"
)

// The set of a filter lets pass what the filter does.
func TestOpenSets(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 100 {
		f := families()[i%2]
		filter := nattest.RandomFilter(r, f.v6)
		if filter.Canonical() == nil {
			continue
		}
		s := f.open(filter.Canonical())
		for range 2000 {
			src, proto, port := nattest.RandomClient(r, f.v6), []uint8{1, 58, 6, 17, 132, 47}[r.IntN(6)], uint16(r.IntN(210))
			got := s.matches(openKey(src.AsSlice(), proto, port))
			if want := nattest.Passes(filter, src, proto, port); got != want {
				t.Fatalf("%v: from %s to %d/%d: %t, want %t", filter, src, proto, port, got, want)
			}
		}
	}
}

// matches looks a key up as the kernel does: each part within its range.
func (s *set) matches(key string) bool {
	within := func(e string, from, to int) bool {
		return e[from:to] <= key[from:to] && key[from:to] <= e[len(key)+from:len(key)+to]
	}
	for e := range s.elements {
		client := len(key) - 8
		if within(e, 0, client) && within(e, client, client+4) && within(e, client+4, client+8) {
			return true
		}
	}
	return false
}

// Where the kernel can't filter or limit, an address that has a filter or limit
// is refused, and nothing else.
func TestKernelWithoutFilters(t *testing.T) {
	b := open(t, newHost(t), Config{})
	if b.unfiltered != nil || b.unlimited != nil {
		t.Fatal(b.unfiltered, b.unlimited)
	}
	b.unfiltered, b.unlimited = unix.EOPNOTSUPP, unix.ENOENT
	filtered, limited := nattest.Filtered(nattest.Map4(1, 1), true), nattest.Limited(nattest.Map4(1, 3), 1, 1)
	if err := b.Add(filtered); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("Add: %v", err)
	}
	if err := b.Add(limited); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Add: %v", err)
	}
	st := nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: []nat.Mapping{nattest.Map4(1, 2), filtered, limited}}
	if _, err := b.Sync(st); !errors.Is(err, unix.EOPNOTSUPP) || !errors.Is(err, unix.ENOENT) {
		t.Errorf("Sync: %v", err)
	}
	st.Mappings = st.Mappings[:1]
	if repaired, err := b.Sync(st); err != nil || len(repaired) > 0 {
		t.Errorf("the others: %q, %v", repaired, err)
	}
}
