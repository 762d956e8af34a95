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
// of different size, for addresses that none of the flows has.
func BenchmarkForget(b *testing.B) {
	for _, flows := range []int{0, 20_000, 200_000} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			_, node, h := newHost(b, "192.0.2.2/24")
			track(b, node, crowd(flows)...)
			benchmarkLibrary(b, node)
			addrs := make([]netip.Addr, 8)
			for i := range addrs {
				addrs[i] = netip.AddrFrom4([4]byte{198, 18, 0, byte(i)})
			}
			for _, tt := range []struct {
				way       way
				name      string
				addresses int
			}{
				{readAll, "readAll", 2},
				{readFiltered, "readFiltered", 1},
				{readFiltered, "readFiltered", 2},
				{deleteAtOnce, "deleteAtOnce", 1},
				{deleteAtOnce, "deleteAtOnce", 2},
			} {
				b.Run(fmt.Sprintf("%s/addresses=%d", tt.name, tt.addresses), func(b *testing.B) {
					b.ReportAllocs()
					h.ways[0].Store(int32(tt.way))
					for b.Loop() {
						if err := h.Forget(addrs[:tt.addresses]...); err != nil {
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
