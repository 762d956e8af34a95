package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Unusable says why a can't be an external address on parent, as the end of a
// sentence about it; "" if it can. It asks the kernel's routes, whose answer
// costs the same however many addresses there are.
func (h *Host) Unusable(parent string, a netip.Addr) (string, error) {
	if a.IsUnspecified() || a.Is4() && a.As4()[0] == 0 {
		return "is not an address that a host can have", nil
	}
	if a.IsLinkLocalUnicast() {
		return "is a link-local address", nil
	}
	routes, err := h.nl.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	for _, errno := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL} {
		if errors.Is(err, errno) {
			// No route to it is no reason against it, nor is one
			// that says unreachable, prohibit or blackhole.
			return "", nil
		}
	}
	if err != nil {
		return "", fmt.Errorf("link: look up route to %s: %w", a, err)
	}
	for _, r := range routes {
		switch r.Type {
		case unix.RTN_LOCAL:
			return h.localUse(r.LinkIndex, a)
		case unix.RTN_BROADCAST:
			return "is a broadcast address of this host's network", nil
		case unix.RTN_MULTICAST:
			return "is a multicast address", nil
		case unix.RTN_ANYCAST:
			return "is an anycast address of this host's network", nil
		}
		if onLink := r.Gw == nil && r.Via == nil && len(r.MultiPath) == 0; r.Dst != nil && onLink && r.Dst.IP.Equal(a.AsSlice()) {
			// In IPv6 it is that of all routers of the subnet (RFC 4291
			// §2.6.1), but between two of them (RFC 6164).
			if ones, bits := r.Dst.Mask.Size(); ones < bits-1 {
				return fmt.Sprintf("is the network address of %s", r.Dst), nil
			}
		}
	}
	return "", nil
}

// localUse explains a local address: an alias of ours that was left over is
// not in the way.
func (h *Host) localUse(index int, a netip.Addr) (string, error) {
	if a.Is6() {
		// Before Linux 4.18 the route says lo, whichever interface it is.
		found, ok, err := h.address6(0, a)
		if err != nil {
			return "", fmt.Errorf("link: look up %s: %w", a, err)
		}
		if ok {
			index = found.index
		}
	}
	l, err := h.nl.LinkByIndex(index)
	if err != nil {
		return "", fmt.Errorf("link: look up interface %d: %w", index, err)
	}
	ours, err := h.hasAlias(index, l.Attrs().Name, a)
	if err != nil || ours {
		return "", err
	}
	return "is this host's own, on " + l.Attrs().Name, nil
}
