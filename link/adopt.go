package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Borrow takes an address of somebody's off an interface, but leaves it there by
// an entry that is one bit shorter, so that neighbours get answers all the
// while and EnsureAlias can make its own. IPv6 knows one entry for an address:
// there is a moment without it.
func (h *Host) Borrow(on string, p netip.Prefix) error {
	l, err := h.byName(on)
	if err == nil && p.Addr().Is4() {
		err = h.nl.AddrAdd(l, borrowed(p.Addr()))
		if errors.Is(err, unix.EEXIST) {
			err = nil
		}
	}
	if err == nil {
		err = h.removeForeign(l, p)
	}
	if err != nil {
		return fmt.Errorf("link: borrow %s on %s: %w", p, on, err)
	}
	return nil
}

// borrowed brings no route and is never a source.
func borrowed(a netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen()-1)), Scope: int(netlink.SCOPE_HOST), Flags: unix.IFA_F_NOPREFIXROUTE}
}

// Return removes what Borrow has added.
func (h *Host) Return(on string, a netip.Addr) error {
	if a.Is6() {
		return nil
	}
	return h.RemoveAddress(on, netip.PrefixFrom(a, a.BitLen()-1))
}

// RemoveAddress takes an address off an interface that doesn't carry our mark.
func (h *Host) RemoveAddress(on string, p netip.Prefix) error {
	l, err := h.byName(on)
	if err == nil {
		err = h.removeForeign(l, p)
	}
	if err != nil {
		return fmt.Errorf("link: remove %s from %s: %w", p, on, err)
	}
	return nil
}

func (h *Host) removeForeign(l netlink.Link, p netip.Prefix) error {
	list, err := h.addresses(unix.AF_UNSPEC, l.Attrs().Index)
	if err != nil {
		return err
	}
	for _, a := range list {
		if a.prefix != p || h.isAlias(a, l.Attrs().Name) {
			continue
		}
		if err := h.nl.AddrDel(l, &netlink.Addr{IPNet: ipNet(p), Label: a.label}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
	}
	return nil
}
