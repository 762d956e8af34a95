package pool

import (
	"net/netip"
	"testing"
)

// BenchmarkNext hands out the addresses of a /16 in turn, when few and when
// nearly all are taken.
func BenchmarkNext(b *testing.B) {
	p, err := Parse("10.1.0.0/16")
	if err != nil {
		b.Fatal(err)
	}
	for name, usable := range map[string]func(netip.Addr) bool{
		"free": func(netip.Addr) bool { return true },
		"full": func(a netip.Addr) bool { return a.As4()[3] == 0 },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var at netip.Addr
			for b.Loop() {
				at, _ = p.Next(at, usable)
			}
		})
	}
}
