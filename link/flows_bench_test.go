package link

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/extip/extip/internal/nettest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// track adds n flows to the node's table, none of them with the addresses
// 198.18.0.0/15: from 10.0.0.0 on to 192.0.2.80, each to another port.
func track(t testing.TB, node *nettest.Node, n int) {
	t.Helper()
	node.MustDo(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer nl.Close()
		for i := range n {
			client, server := binary.BigEndian.AppendUint32(nil, 10<<24+uint32(i)), []byte{192, 0, 2, 80}
			f := netlink.ConntrackFlow{
				FamilyType: unix.AF_INET, TimeOut: 3600,
				Forward: netlink.IPTuple{SrcIP: client, DstIP: server, SrcPort: uint16(i), DstPort: 53, Protocol: unix.IPPROTO_UDP},
				Reverse: netlink.IPTuple{SrcIP: server, DstIP: client, SrcPort: 53, DstPort: uint16(i), Protocol: unix.IPPROTO_UDP},
			}
			if err := nl.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &f); err != nil {
				return fmt.Errorf("flow %d: %w", i, err)
			}
		}
		return nil
	})
}

// BenchmarkForget compares the ways at tables of different size, for as many
// addresses as an endpoint has, one of each kind, and for more.
func BenchmarkForget(b *testing.B) {
	for _, flows := range []int{0, 20_000, 200_000} {
		_, node, h := newHost(b, "192.0.2.2/24")
		track(b, node, flows)
		addrs := make([]netip.Addr, 8)
		for i := range addrs {
			addrs[i] = netip.AddrFrom4([4]byte{198, 18, 0, byte(i)})
		}
		for _, way := range []way{readAll, readFiltered, deleteAtOnce} {
			for _, n := range []int{1, 2} {
				b.Run(fmt.Sprintf("flows=%d/way=%d/addresses=%d", flows, way, n), func(b *testing.B) {
					b.ReportAllocs()
					h.ways[0].Store(int32(way))
					for b.Loop() {
						if err := h.Forget(addrs[:n]...); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
		b.Run(fmt.Sprintf("flows=%d/way=library/addresses=2", flows), func(b *testing.B) {
			b.ReportAllocs()
			var nl *netlink.Handle
			node.MustDo(func() (err error) {
				nl, err = netlink.NewHandle(unix.NETLINK_NETFILTER)
				return err
			})
			defer nl.Close()
			for b.Loop() {
				if _, err := nl.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, libraryFilter{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
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
