package pool

import (
	"net/netip"
	"testing"
)

// BenchmarkNext takes and releases addresses of a /16 in turn: when few are
// taken, when all but each 256th are, and when every second one is, which makes
// the most runs.
func BenchmarkNext(b *testing.B) {
	p, err := Parse("10.1.0.0/16")
	if err != nil {
		b.Fatal(err)
	}
	for name, isTaken := range map[string]func(int) bool{
		"few":    func(n int) bool { return n < 8 },
		"nearly": func(n int) bool { return n%256 > 0 },
		"second": func(n int) bool { return n%2 > 0 },
	} {
		b.Run(name, func(b *testing.B) {
			taken := &Set{}
			for n := range 1 << 16 {
				if isTaken(n) {
					taken.Add(netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}))
				}
			}
			b.ReportAllocs()
			var at netip.Addr
			for b.Loop() {
				at, _ = p.Next(at, taken, func(netip.Addr) bool { return true })
				taken.Add(at)
				taken.Remove(at)
			}
		})
	}
}
