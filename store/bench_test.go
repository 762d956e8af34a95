package store

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/extip/extip/pool"
)

// BenchmarkEndpoint claims and releases an address beside others: a write each,
// with the disk's time for it.
func BenchmarkEndpoint(b *testing.B) {
	for _, others := range []int{0, 10000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			s, err := Open(filepath.Join(b.TempDir(), "extip.db"))
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = s.Close() })
			s.db.NoSync = true // while the others are made
			p, err := pool.Parse("10.1.0.0/16")
			if err != nil {
				b.Fatal(err)
			}
			for i := range others {
				_, err := s.CreateEndpoint(Endpoint{ID: fmt.Sprintf("%064x", i)}, Want{Pools: []pool.Pool{p}})
				if err != nil {
					b.Fatal(err)
				}
			}
			s.db.NoSync = false
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.CreateEndpoint(Endpoint{ID: "one"}, Want{Pools: []pool.Pool{p}}); err != nil {
					b.Fatal(err)
				}
				if err := s.DeleteEndpoints("one"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
