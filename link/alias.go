package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Protocol is the number by which IPv6 addresses, rules and routes are known to
// be ours: IFA_PROTO (since Linux 5.18), FRA_PROTOCOL (since 4.17), rtm_protocol.
// It is an x, and nobody's in linux/rtnetlink.h or iproute2's rt_protos.
const Protocol = 120

// aliasLabel is the label by which an IPv4 address on parent is known to be
// ours. It also keeps scripts that flush "label $interface" off it.
func aliasLabel(parent string) string {
	const suffix = ":xip"
	if len(parent)+len(suffix) > MaxName {
		return "xip"
	}
	return parent + suffix
}

// An IPv6 alias needs no detection of duplicates by the kernel, and brings no
// route; with a preferred lifetime of 0 it is deprecated.
const (
	askedFlags6 = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
	aliasFlags6 = askedFlags6 | unix.IFA_F_DEPRECATED | unix.IFA_F_PERMANENT
)

// kernelAtLeast compares the kernel's version; one that can't be read is new.
func kernelAtLeast(wantMajor, wantMinor int) bool {
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err != nil {
		return true
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return true
	}
	return major > wantMajor || major == wantMajor && minor >= wantMinor
}

// isAlias tells whether an address of an interface of that name is ours: by its
// label (IPv4) or Protocol (IPv6); before Linux 5.18 an IPv6 address is, if it
// looks exactly like ours, which nobody makes by accident.
func (h *Host) isAlias(a address, name string) bool {
	switch {
	case !a.prefix.IsSingleIP():
		return false
	case a.prefix.Addr().Is4():
		return a.label == aliasLabel(name)
	default:
		return a.protocol == Protocol || !h.signs && a.flags&aliasFlags6 == aliasFlags6
	}
}

// EnsureAlias puts an external address on parent, or on lo: there, neighbours
// find it by ARP unless ARPTrouble says otherwise, but never by NDP. ErrNotOurs if
// it is there without our mark, ErrNoLink if there is no such interface.
//
// The host must not use it for itself. An IPv4 address is of scope host: the
// kernel never chooses it as a source. IPv6 has no such thing; a deprecated
// address is chosen only by a host that has no other of global scope, link-local
// ones don't count (RFC 6724 §5, rules 2 and 3). Both are as long as can be, so
// that no route comes with them.
func (h *Host) EnsureAlias(parent string, a netip.Addr) error {
	l, err := h.byName(parent)
	if err == nil {
		if a.Is4() {
			err = h.nl.AddrAdd(l, alias4(parent, a))
		} else {
			err = h.addAlias6(l, a)
		}
	}
	if errors.Is(err, unix.EEXIST) {
		var ours bool
		if ours, err = h.hasAlias(l.Attrs().Index, parent, a); err == nil && !ours {
			err = ErrNotOurs
		}
	}
	if errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("%w %s", ErrNoLink, parent) // it went in between
	}
	if err != nil {
		return fmt.Errorf("link: alias %s on %s: %w", a, parent, err)
	}
	return nil
}

func alias4(parent string, a netip.Addr) *netlink.Addr {
	return &netlink.Addr{
		IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())),
		Label: aliasLabel(parent),
		Scope: int(netlink.SCOPE_HOST),
	}
}

// addAlias6 looks first, which costs 6 µs however many addresses there are. The
// kernel goes through all multicast groups of the interface, one for each of its
// addresses, even to say that one exists (ipv6_find_idev, ipv6_mc_up, net/ipv6):
// 1.2 ms with 5,000.
func (h *Host) addAlias6(l netlink.Link, a netip.Addr) error {
	if _, ok, err := h.address6(l.Attrs().Index, a); err != nil {
		return err
	} else if ok {
		return unix.EEXIST
	}
	req := h.request6(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, l.Attrs().Index, a)
	req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(askedFlags6)))
	req.AddData(nl.NewRtAttr(ifaProto, []byte{Protocol}))
	// struct ifa_cacheinfo (linux/if_addr.h): preferred and valid lifetime in
	// seconds, and two times that the kernel fills in.
	lifetimes := make([]byte, unix.SizeofIfaCacheinfo)
	binary.NativeEndian.PutUint32(lifetimes[4:], math.MaxUint32) // forever
	req.AddData(nl.NewRtAttr(unix.IFA_CACHEINFO, lifetimes))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	switch name := l.Attrs().Name; {
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("IPv6 is switched off there: %s=1", conf("ipv6", name, "disable_ipv6"))
	case notInKernel(err):
		return errors.New("this kernel has no IPv6")
	case errors.Is(err, unix.EINVAL) && l.Attrs().MTU < minMTU6:
		return fmt.Errorf("its MTU %d is less than IPv6 needs, %d", l.Attrs().MTU, minMTU6)
	}
	return err
}

// RemoveAlias takes an external address off parent. An address that doesn't
// carry our mark stays.
func (h *Host) RemoveAlias(parent string, a netip.Addr) error {
	l, err := h.byName(parent)
	if errors.Is(err, ErrNoLink) {
		return nil
	}
	if err == nil {
		if a.Is4() {
			err = h.nl.AddrDel(l, alias4(parent, a)) // the kernel compares the label
		} else {
			err = h.removeAlias6(l.Attrs().Index, parent, a)
		}
	}
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("link: remove alias %s from %s: %w", a, parent, err)
	}
	return nil
}

func (h *Host) removeAlias6(index int, parent string, a netip.Addr) error {
	if ours, err := h.hasAlias(index, parent, a); err != nil || !ours {
		return err
	}
	_, err := h.request6(unix.RTM_DELADDR, 0, index, a).Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// hasAlias tells whether a is on the interface with our mark. For IPv4 its cost
// grows with the host's addresses; it is off the path of calls that go well.
func (h *Host) hasAlias(index int, name string, a netip.Addr) (bool, error) {
	if a.Is6() {
		found, ok, err := h.address6(index, a)
		return ok && h.isAlias(found, name), err
	}
	list, err := h.addresses(unix.AF_INET, index)
	for _, have := range list {
		if have.prefix.Addr() == a && h.isAlias(have, name) {
			return true, nil
		}
	}
	return false, err
}
