package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// aliasLabel is the label by which an IPv4 address on parent is known to be
// ours. It also keeps scripts that flush "label $interface" off it.
func aliasLabel(parent string) string {
	const suffix = ":xip"
	if len(parent)+len(suffix) > MaxName {
		return "xip"
	}
	return parent + suffix
}

// alias is an external address as it is put on parent: a /32, so that no
// route comes with it, and of scope host, so that the kernel never chooses it
// as the source of the host's own traffic.
func alias(parent string, a netip.Addr) *netlink.Addr {
	return &netlink.Addr{
		IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())),
		Label: aliasLabel(parent),
		Scope: int(netlink.SCOPE_HOST),
	}
}

// EnsureAlias puts an external address on parent. ErrNotOurs if it is there
// without our label.
func (h *Host) EnsureAlias(parent string, a netip.Addr) error {
	l, err := h.byName(parent)
	if err == nil {
		err = h.nl.AddrAdd(l, alias(parent, a))
	}
	if errors.Is(err, unix.EEXIST) {
		var ours bool
		if ours, err = h.hasAlias(l, a); err == nil && !ours {
			err = ErrNotOurs
		}
	}
	if err != nil {
		return fmt.Errorf("link: alias %s on %s: %w", a, parent, err)
	}
	return nil
}

// RemoveAlias takes an external address off parent. An address that doesn't
// carry our label stays: the kernel compares it.
func (h *Host) RemoveAlias(parent string, a netip.Addr) error {
	l, err := h.byName(parent)
	if notFound(err) {
		return nil
	}
	if err == nil {
		err = h.nl.AddrDel(l, alias(parent, a))
	}
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("link: remove alias %s from %s: %w", a, parent, err)
	}
	return nil
}

// hasAlias tells whether a is on the link with our label. Its cost grows with
// the link's addresses; it is off the path of calls that go well.
func (h *Host) hasAlias(l netlink.Link, a netip.Addr) (bool, error) {
	addrs, err := retry(func() ([]netlink.Addr, error) { return h.nl.AddrList(l, netlink.FAMILY_V4) })
	if err != nil {
		return false, err
	}
	want := alias(l.Attrs().Name, a)
	for _, have := range addrs {
		if have.IP.Equal(want.IP) && have.Label == want.Label {
			return true, nil
		}
	}
	return false, nil
}

// Unusable says why a can't be an external address on parent, as the end of a
// sentence about it; "" if it can. It asks the kernel's routes, whose answer
// costs the same however many addresses there are.
func (h *Host) Unusable(parent string, a netip.Addr) (string, error) {
	routes, err := h.nl.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES):
		return "", nil // no route to it is no reason against it
	case errors.Is(err, unix.EINVAL):
		return "is not an address that a host can have", nil
	case err != nil:
		return "", fmt.Errorf("link: look up route to %s: %w", a, err)
	}
	for _, r := range routes {
		switch {
		case r.Type == unix.RTN_LOCAL:
			return h.localUse(r.LinkIndex, a)
		case r.Type == unix.RTN_BROADCAST:
			return "is a broadcast address of this host's network", nil
		case r.Type == unix.RTN_MULTICAST:
			return "is a multicast address", nil
		case r.Dst == nil || r.Gw != nil || r.Scope != netlink.SCOPE_LINK:
			continue
		case r.Dst.IP.Equal(a.AsSlice()):
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
	l, err := h.nl.LinkByIndex(index)
	if err != nil {
		return "", fmt.Errorf("link: look up interface %d: %w", index, err)
	}
	ours, err := h.hasAlias(l, a)
	if err != nil || ours {
		return "", err
	}
	return "is this host's own, on " + l.Attrs().Name, nil
}

// Gateways returns the next hops of the host's routes.
func (h *Host) Gateways() ([]netip.Addr, error) {
	routes, err := retry(func() ([]netlink.Route, error) { return h.nl.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("link: list routes: %w", err)
	}
	var gateways []netip.Addr
	add := func(ip []byte) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			gateways = append(gateways, a.Unmap())
		}
	}
	for _, r := range routes {
		add(r.Gw)
		for _, hop := range r.MultiPath {
			add(hop.Gw)
		}
	}
	return gateways, nil
}

// DefaultParent is the interface of the IPv4 default route.
func (h *Host) DefaultParent() (string, error) {
	routes, err := retry(func() ([]netlink.Route, error) {
		return h.nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return "", fmt.Errorf("link: list routes: %w", err)
	}
	best := -1
	for i, r := range routes {
		isDefault := r.Dst == nil || r.Dst.IP.IsUnspecified()
		if isDefault && r.LinkIndex > 0 && (best < 0 || r.Priority < routes[best].Priority) {
			best = i
		}
	}
	if best < 0 {
		return "", errors.New("link: the host has no default route")
	}
	l, err := h.nl.LinkByIndex(routes[best].LinkIndex)
	if err != nil {
		return "", fmt.Errorf("link: interface of the default route: %w", err)
	}
	return l.Attrs().Name, nil
}

// MTU is that of an interface, in bytes. An interface that doesn't exist is an error.
func (h *Host) MTU(name string) (int, error) {
	l, err := h.byName(name)
	if err != nil {
		return 0, fmt.Errorf("link: %w", err)
	}
	return l.Attrs().MTU, nil
}

// retry repeats a list that the kernel says was interrupted by a change, a few
// times; then the last answer is an error.
func retry[T any](list func() ([]T, error)) ([]T, error) {
	const attempts = 5
	var got []T
	var err error
	for range attempts {
		if got, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return got, err
}
