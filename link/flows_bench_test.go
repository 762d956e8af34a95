package link

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/extip/extip/internal/nettest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// crowd is n flows, each from an address of 10.0.0.0/8 to 192.0.2.80.
func crowd(n int) []*netlink.ConntrackFlow {
	flows := make([]*netlink.ConntrackFlow, n)
	for i := range flows {
		client := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		flows[i] = udp(client.String(), "192.0.2.80", "192.0.2.80", uint16(i))
	}
	return flows
}

// BenchmarkForget compares the ways, and that of vishvananda/netlink, at tables
// of different size, for an endpoint that has none of the flows.
func BenchmarkForget(b *testing.B) {
	for _, flows := range []int{0, 20_000, 200_000} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			_, node, h := newHost(b, "192.0.2.2/24")
			track(b, node, crowd(flows)...)
			benchmarkLibrary(b, node)
			addr := func(i int) []netip.Addr { return []netip.Addr{netip.AddrFrom4([4]byte{198, 18, 0, byte(i)})} }
			endpoint := Flows{External: addr(1), Internal: addr(2)}
			for _, tt := range []struct {
				way  way
				name string
			}{
				{readAll, "readAll"}, {readFiltered, "readFiltered"}, {deleteAtOnce, "deleteAtOnce"},
			} {
				b.Run(tt.name, func(b *testing.B) {
					b.ReportAllocs()
					h.ways[0].Store(int32(tt.way))
					for b.Loop() {
						if err := h.Forget(endpoint); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		})
	}
}

// benchmarkLibrary reads the table as vishvananda/netlink does.
func benchmarkLibrary(b *testing.B, node *nettest.Node) {
	var nl *netlink.Handle
	node.MustDo(func() (err error) {
		nl, err = netlink.NewHandle(unix.NETLINK_NETFILTER)
		return err
	})
	defer nl.Close()
	b.Run("library", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := nl.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, libraryFilter{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// libraryFilter is how flows were matched by vishvananda/netlink, for comparison.
type libraryFilter map[netip.Addr]bool

func (f libraryFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, ip := range [][]byte{flow.Forward.DstIP, flow.Forward.SrcIP, flow.Reverse.SrcIP} {
		if a, ok := netip.AddrFromSlice(ip); ok && f[a.Unmap()] {
			return true
		}
	}
	return false
}
