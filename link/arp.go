package link

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SettleARP keeps the host's other interfaces on the parent's Ethernet segment
// from claiming external addresses for themselves, and returns the settings
// that it changed, as "net.ipv4.conf.eth1.arp_ignore=1". They stay. ErrNoLink if
// parent doesn't exist.
//
// By default a host answers ARP on every interface for all of its addresses, so
// that neighbours learn several MAC addresses for one. With arp_ignore=1 an
// interface answers for its own. With arp_announce=2 it asks only under its own,
// too: neighbours learn from questions as well, and by default one carries the
// source of the packet that it is for, which after translation is an external
// address.
//
// An interface with an address in the subnet of one of the parent's own is taken
// to be on the segment. Interfaces of ours are left alone, and values that are
// higher already.
func (h *Host) SettleARP(parent string) (changed []string, err error) {
	l, err := h.byName(parent)
	if err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	list, err := h.addresses(unix.AF_INET, 0)
	if err != nil {
		return nil, fmt.Errorf("link: list addresses: %w", err)
	}
	var subnets []netip.Prefix
	for _, a := range list {
		if a.index == l.Attrs().Index && !h.isAlias(a, parent) {
			subnets = append(subnets, a.prefix.Masked())
		}
	}
	settled := map[int]bool{l.Attrs().Index: true}
	for _, a := range list {
		if settled[a.index] || !overlaps(subnets, a.prefix) {
			continue
		}
		settled[a.index] = true
		c, err := h.settle(a.index)
		if changed = append(changed, c...); err != nil {
			return changed, err
		}
	}
	return changed, nil
}

func overlaps(subnets []netip.Prefix, p netip.Prefix) bool {
	for _, s := range subnets {
		if s.Overlaps(p) {
			return true
		}
	}
	return false
}

// settle is SettleARP for another interface.
func (h *Host) settle(index int) (changed []string, err error) {
	l, err := h.nl.LinkByIndex(index)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("link: look up interface %d: %w", index, err)
	}
	name, ifalias := l.Attrs().Name, l.Attrs().Alias
	if _, _, ours := parseMark(ifalias); ours || l.Attrs().RawFlags&(unix.IFF_LOOPBACK|unix.IFF_NOARP) != 0 {
		return nil, nil
	}
	for _, s := range []struct {
		key   string
		value int
	}{{"arp_ignore", 1}, {"arp_announce", 2}} {
		c, err := h.atLeast(name, s.key, s.value)
		if changed = append(changed, c...); err != nil && !errors.Is(err, os.ErrNotExist) {
			return changed, err
		}
	}
	return changed, nil
}

// ARPTrouble says why neighbours on parent get no answer for an external IPv4
// address that is put on an interface, parent itself or lo, as the end of a
// sentence about it; "" if they do.
//
// What each value of arp_ignore does, in arp_ignore (net/ipv4/arp.c): 0 and the
// reserved ones answer for all addresses, 1 and 2 for those of the interface, 3
// for none of scope host, 8 for none at all. That 2 answers nobody for an address
// outside the parent's subnets isn't told here.
func (h *Host) ARPTrouble(parent, on string) (string, error) {
	value, err := h.effective(parent, "arp_ignore")
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("link: %w %s", ErrNoLink, parent)
	}
	if err != nil {
		return "", err
	}
	switch {
	case value == 3, value == 8, on != parent && (value == 1 || value == 2):
		return fmt.Sprintf("is not answered for on %s: arp_ignore is %d there", parent, value), nil
	default:
		return "", nil
	}
}
