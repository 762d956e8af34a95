package link

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// BenchmarkEndpoint is what an endpoint costs from CreateEndpoint to
// DeleteEndpoint, but for its flows, beside many or few others. We ask
// the kernel the same however many there are; that it goes through the addresses
// of an interface and the ports of a bridge one by one, we can't help.
func BenchmarkEndpoint(b *testing.B) {
	for _, others := range []int{1, 1000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			_, node, h := newHost(b, "192.0.2.2/24")
			node.MustDo(func() error {
				if err := h.EnsureBridge(bridge); err != nil {
					return err
				}
				a := netip.MustParseAddr("198.18.0.1")
				for i := range others {
					v := web
					v.Owner = fmt.Sprintf("other%d", i)
					v.Host, v.Peer = VethNames(v.Owner)
					if err := h.EnsureVeth(v); err != nil {
						return err
					}
					if err := h.EnsureAlias("eth0", a); err != nil {
						return err
					}
					a = a.Next()
				}
				return nil
			})
			steps := []struct {
				name string
				call func() error
			}{
				{"unusable", func() error { _, err := h.Unusable("eth0", external); return err }},
				{"ensure-veth", func() error { return h.EnsureVeth(web) }},
				{"ensure-alias", func() error { return h.EnsureAlias("eth0", external) }},
				{"ensure-alias-again", func() error { return h.EnsureAlias("eth0", external) }},
				{"remove-alias", func() error { return h.RemoveAlias("eth0", external) }},
				{"remove-veth", func() error { return h.RemoveVeth(web) }},
			}
			// Sysctls are those of the thread's namespace.
			node.MustDo(func() error {
				took := make([]time.Duration, len(steps))
				for b.Loop() {
					for i, s := range steps {
						start := time.Now()
						if err := s.call(); err != nil {
							return err
						}
						took[i] += time.Since(start)
					}
				}
				for i, s := range steps {
					b.ReportMetric(float64(took[i].Microseconds())/float64(b.N), s.name+"-µs")
				}
				return nil
			})
		})
	}
}
