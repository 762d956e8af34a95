package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ParentInfo is what an interface is like that may carry external addresses.
type ParentInfo struct {
	// MTU in bytes.
	MTU int
	// Up says that packets can pass: switched on, and with a carrier.
	Up bool
	// Master is the bridge, bond or the like that the interface is a port of,
	// empty if none. What arrives at a port is the master's: an external
	// address belongs there. A VRF is no such master.
	Master string
	// Neighbours says that the link has neighbours who ask by ARP or NDP
	// for an address: Ethernet, not a tunnel.
	Neighbours bool
}

// Parent describes an interface; ErrNoLink if there is none of that name.
func (h *Host) Parent(name string) (ParentInfo, error) {
	l, err := h.byName(name)
	if err != nil {
		return ParentInfo{}, fmt.Errorf("link: %w", err)
	}
	a := l.Attrs()
	info := ParentInfo{MTU: a.MTU, Up: isUp(a), Neighbours: a.EncapType == "ether" && a.RawFlags&unix.IFF_NOARP == 0}
	if a.MasterIndex != 0 {
		master, err := h.nl.LinkByIndex(a.MasterIndex)
		if err != nil {
			return info, fmt.Errorf("link: master of %s: %w", name, err)
		}
		if master.Type() != "vrf" {
			info.Master = master.Attrs().Name
		}
	}
	return info, nil
}

// DefaultParent is the interface of the best default route: of IPv4 if there
// is one, else of IPv6.
func (h *Host) DefaultParent() (string, error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.defaultRoutes(family)
		if err != nil {
			return "", err
		}
		if best := bestOf(routes); len(best) > 0 {
			l, err := h.nl.LinkByIndex(hops(best[0])[0].LinkIndex)
			if err != nil {
				return "", fmt.Errorf("link: interface of the default route: %w", err)
			}
			return l.Attrs().Name, nil
		}
	}
	return "", errors.New("link: the host has no default route")
}

// DefaultLinks are the interfaces of all default routes, of both families.
func (h *Host) DefaultLinks() ([]string, error) {
	var names []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.defaultRoutes(family)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			for _, hop := range hops(r) {
				l, err := h.nl.LinkByIndex(hop.LinkIndex)
				if errors.As(err, &netlink.LinkNotFoundError{}) {
					continue // gone in the meantime, with the route
				}
				if err != nil {
					return nil, fmt.Errorf("link: interface of a default route: %w", err)
				}
				names = append(names, l.Attrs().Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Gateways returns the next hops of the host's routes, but for link-local ones,
// which can't be external addresses anyway.
func (h *Host) Gateways() ([]netip.Addr, error) {
	var gateways []netip.Addr
	add := func(ip net.IP) {
		if a, ok := netip.AddrFromSlice(ip); ok && !a.IsLinkLocalUnicast() {
			gateways = append(gateways, a.Unmap())
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.routesOf(family, unix.RT_TABLE_MAIN)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			for _, hop := range hops(r) {
				add(hop.Gw)
				if via, ok := hop.Via.(*netlink.Via); ok {
					add(via.Addr)
				}
			}
		}
	}
	return gateways, nil
}
