package link

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Forget removes the connections that connection tracking knows to or from any
// of the addresses, whichever side of the translation they are on. What was
// established before a mapping came or went would follow the old way for as
// long as it sends.
func (h *Host) Forget(addrs ...netip.Addr) error {
	set := flowsOf{}
	families := map[netlink.InetFamily]bool{}
	for _, a := range addrs {
		set[a] = true
		if a.Is4() {
			families[netlink.FAMILY_V4] = true
		} else {
			families[netlink.FAMILY_V6] = true
		}
	}
	for family := range families {
		if _, err := h.nl.ConntrackDeleteFilters(netlink.ConntrackTable, family, set); err != nil {
			return fmt.Errorf("link: forget flows of %v: %w", addrs, err)
		}
	}
	return nil
}

// flowsOf matches the flows of a set of addresses.
type flowsOf map[netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter. The original
// destination is an external address that was connected to, the original
// source a container that connects, and the source of replies the container
// that was connected to.
func (f flowsOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, ip := range [][]byte{flow.Forward.DstIP, flow.Forward.SrcIP, flow.Reverse.SrcIP} {
		if a, ok := netip.AddrFromSlice(ip); ok && f[a.Unmap()] {
			return true
		}
	}
	return false
}
