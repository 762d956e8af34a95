package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Families are address families, some of two.
type Families struct{ V4, V6 bool }

// FamiliesOf are those of the addresses.
func FamiliesOf(addrs []netip.Prefix) Families {
	var f Families
	for _, p := range addrs {
		f.V4 = f.V4 || p.Addr().Is4()
		f.V6 = f.V6 || p.Addr().Is6()
	}
	return f
}

// A setting is a sysctl, by its path below /proc/sys/net: "ipv4/ip_forward".
type setting string

// conf is a setting of an interface, or of "all".
func conf(family, name, key string) setting {
	return setting(family + "/conf/" + name + "/" + key)
}

// String is what sysctl(8) calls it: dots and slashes change places, as in
// "net.ipv4.conf.eth0/100.rp_filter".
func (s setting) String() string {
	return strings.NewReplacer("/", ".", ".", "/").Replace("net/" + string(s))
}

// get reads a setting. What the kernel doesn't have is os.ErrNotExist.
func (h *Host) get(s setting) (int, error) {
	b, err := os.ReadFile(filepath.Join(h.sysctls, string(s)))
	if err != nil {
		return 0, fmt.Errorf("link: read %s: %w", s, err)
	}
	value, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("link: read %s: %w", s, err)
	}
	return value, nil
}

// set writes a setting, unless it has the value already: an unneeded write
// fails where /proc/sys is mounted read-only. It returns what it changed, as
// "net.ipv4.ip_forward=1".
func (h *Host) set(s setting, value int) (changed []string, err error) {
	have, err := h.get(s)
	if err != nil || have == value {
		return nil, err
	}
	text := strconv.Itoa(value)
	if err := os.WriteFile(filepath.Join(h.sysctls, string(s)), []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("link: set %s=%s: %w", s, text, err)
	}
	return []string{s.String() + "=" + text}, nil
}

// effective reads an IPv4 setting of an interface where the larger of its own
// and the one of "all" counts: rp_filter, arp_ignore, arp_announce (IN_DEV_MAXCONF,
// linux/inetdevice.h).
func (h *Host) effective(name, key string) (int, error) {
	all, err := h.get(conf("ipv4", "all", key))
	if err != nil {
		return 0, err
	}
	own, err := h.get(conf("ipv4", name, key))
	return max(all, own), err
}

// atLeast raises an IPv4 setting of an interface whose effective value is less.
func (h *Host) atLeast(name, key string, value int) (changed []string, err error) {
	have, err := h.effective(name, key)
	if err != nil || have >= value {
		return nil, err
	}
	return h.set(conf("ipv4", name, key), value)
}

// setIPv6 switches IPv6 on a link of ours. Off, it keeps the kernel from giving
// the link a link-local address, by which containers could reach the host. On,
// containers must not tell the host by router advertisements where its routes
// lead.
func (h *Host) setIPv6(name string, on bool) error {
	disabled := conf("ipv6", name, "disable_ipv6")
	if !on {
		_, err := h.set(disabled, 1)
		if errors.Is(err, os.ErrNotExist) {
			return nil // a kernel without IPv6
		}
		return err
	}
	if _, err := h.set(conf("ipv6", name, "accept_ra"), 0); err != nil {
		return err
	}
	_, err := h.set(disabled, 0)
	return err
}

// EnableForwarding lets the host route what comes in by these interfaces, and
// returns the settings that it changed for it, as "net.ipv4.conf.eth0.forwarding=1".
// They stay. Our bridges route without it. Where the host routes already,
// nothing changes; an interface that doesn't exist is left out.
//
// The host as a whole is left as it is: engines until 27 close their FORWARD
// chain only if they were the ones who let the host route. IPv6 has a setting
// for single interfaces since Linux 6.17 (force_forwarding); on kernels before,
// the host routes IPv6 as a whole, and then no longer listens to router
// advertisements where accept_ra is 1 (ipv6_accept_ra, net/ipv6/addrconf.c): it
// would lose at once the default routes that it has from them, and in time its
// addresses. So there accept_ra becomes 2, "even when forwarding", on the
// interfaces that have heard a router since they came up, and on these, which
// may yet hear one.
func (h *Host) EnableForwarding(interfaces []string, of Families) (changed []string, err error) {
	if of.V4 {
		changed, _, err = h.switchOnEach("ipv4/ip_forward", "ipv4", "forwarding", interfaces)
	}
	if err != nil || !of.V6 {
		return changed, err
	}
	c, ok, err := h.switchOnEach(routesIPv6, "ipv6", "force_forwarding", interfaces)
	if err == nil && !ok {
		c, err = h.routeIPv6(interfaces)
	}
	return append(changed, c...), err
}

const routesIPv6 = setting("ipv6/conf/all/forwarding")

// routeIPv6 lets the host as a whole route IPv6.
func (h *Host) routeIPv6(interfaces []string) (changed []string, err error) {
	listeners, err := h.listeners(interfaces)
	if err != nil {
		return changed, err
	}
	for _, name := range listeners {
		c, err := h.set(conf("ipv6", name, "accept_ra"), 2)
		if changed = append(changed, c...); err != nil {
			return changed, err
		}
	}
	c, err := h.switchOn(routesIPv6)
	return append(changed, c...), err
}

// switchOnEach sets a key of each interface, unless the setting of the whole
// host is on. ok is false if the kernel doesn't have the key.
func (h *Host) switchOnEach(whole setting, family, key string, interfaces []string) (changed []string, ok bool, err error) {
	if on, err := h.get(whole); err != nil || on != 0 {
		return nil, true, err
	}
	if _, err := h.get(conf(family, "all", key)); errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	for _, name := range interfaces {
		c, err := h.switchOn(conf(family, name, key))
		if changed = append(changed, c...); err != nil && !errors.Is(err, os.ErrNotExist) {
			return changed, true, err
		}
	}
	return changed, true, nil
}

// routeFrom lets the host route what comes in by a bridge of ours.
func (h *Host) routeFrom(bridge string, of Families) error {
	for _, key := range []struct {
		needed bool
		setting
	}{{of.V4, conf("ipv4", bridge, "forwarding")}, {of.V6, conf("ipv6", bridge, "force_forwarding")}} {
		if !key.needed {
			continue
		}
		if _, err := h.switchOn(key.setting); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// switchOn sets what is 0 to 1.
func (h *Host) switchOn(s setting) (changed []string, err error) {
	if on, err := h.get(s); err != nil || on != 0 {
		return nil, err
	}
	return h.set(s, 1)
}

// What RTM_GETLINK of AF_INET6 tells of an interface, in IFLA_PROTINFO
// (linux/if_link.h, linux/ipv6.h, net/if_inet6.h).
const (
	inet6Flags   = 1    // IFLA_INET6_FLAGS
	inet6Conf    = 2    // IFLA_INET6_CONF, an array of 32 bits each
	raReceived   = 0x20 // IF_RA_RCVD, in the flags
	confAcceptRA = 3    // DEVCONF_ACCEPT_RA, an index of the array
)

// listeners are the interfaces that forwarding would make deaf to a router: see
// EnableForwarding.
func (h *Host) listeners(interfaces []string) ([]string, error) {
	messages, err := h.list(unix.RTM_GETLINK, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_INET6))
	if err != nil {
		return nil, fmt.Errorf("link: list IPv6 interfaces: %w", err)
	}
	var names []string
	for _, m := range messages {
		var name string
		var heard, accepts bool
		for kind, attr := range attrs(m[unix.SizeofIfInfomsg:]) {
			value := attr[unix.NLA_HDRLEN:]
			switch kind {
			case unix.IFLA_IFNAME:
				name = unix.ByteSliceToString(value)
			case unix.IFLA_PROTINFO:
				for kind, attr := range attrs(value) {
					value := attr[unix.NLA_HDRLEN:]
					switch {
					case kind == inet6Flags && len(value) >= 4:
						heard = binary.NativeEndian.Uint32(value)&raReceived != 0
					case kind == inet6Conf && len(value) >= 4*(confAcceptRA+1):
						accepts = binary.NativeEndian.Uint32(value[4*confAcceptRA:]) == 1
					}
				}
			}
		}
		if accepts && (heard || slices.Contains(interfaces, name)) {
			names = append(names, name)
		}
	}
	return names, nil
}
