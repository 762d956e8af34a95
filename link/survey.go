package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A Survey is what carries our mark on the host.
type Survey struct {
	// Links by name: bridges, and the host ends of veth pairs.
	Links map[string]Found
	// Aliases are external addresses with the interface each is on: its
	// parent, or lo. If one is being moved, there are two for a moment.
	Aliases map[netip.Addr][]string
}

// Found is a link of ours.
type Found struct {
	Owner, Note string
	// Bridge is that the link is a port of; empty if it is none, or is a
	// bridge itself.
	Bridge string
	// IsBridge tells bridges from ports.
	IsBridge bool
	Up       bool
	MTU      int
	// Addresses of the link, with their prefix lengths; without the
	// link-local ones, which the kernel makes.
	Addresses []netip.Prefix
}

// Survey looks at all links and addresses; its cost grows with their number.
func (h *Host) Survey() (Survey, error) {
	s := Survey{Links: map[string]Found{}, Aliases: map[netip.Addr][]string{}}
	links, err := h.listLinks()
	if err != nil {
		return s, fmt.Errorf("link: list links: %w", err)
	}
	for _, l := range links {
		if owner, note, ok := parseMark(l.alias); ok {
			s.Links[l.name] = Found{
				Owner: owner, Note: note, MTU: l.mtu,
				Bridge: links[l.master].name, IsBridge: l.isBridge, Up: l.up,
			}
		}
	}
	addrs, err := h.addresses(unix.AF_UNSPEC, 0)
	if err != nil {
		return s, fmt.Errorf("link: list addresses: %w", err)
	}
	for _, a := range addrs {
		name, ip := links[a.index].name, a.prefix.Addr()
		if f, ours := s.Links[name]; ours {
			if !ip.IsLinkLocalUnicast() {
				f.Addresses = append(f.Addresses, a.prefix)
				s.Links[name] = f
			}
		} else if h.isAlias(a, name) {
			s.Aliases[ip] = append(s.Aliases[ip], name)
		}
	}
	return s, nil
}

// listed is what Survey wants to know of a link.
type listed struct {
	name, alias string
	master, mtu int
	mac         net.HardwareAddr // of Ethernet links
	isBridge    bool
	up, carrier bool
}

// skipStats asks for links without their counters: RTEXT_FILTER_SKIP_STATS
// (linux/rtnetlink.h).
const skipStats = 1 << 3

// listLinks returns all links by index. It leaves out what makes most of the
// kernel's answer, and most of the work of reading it: counters.
func (h *Host) listLinks() (map[int]listed, error) {
	messages, err := h.list(unix.RTM_GETLINK, unix.RTM_NEWLINK,
		nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	if err != nil {
		return nil, err
	}
	links := make(map[int]listed, len(messages))
	for _, m := range messages {
		msg := nl.DeserializeIfInfomsg(m)
		l := listed{up: msg.Flags&unix.IFF_UP != 0, carrier: msg.Flags&unix.IFF_LOWER_UP != 0}
		for kind, attr := range attrs(m[msg.Len():]) {
			value := attr[unix.NLA_HDRLEN:]
			switch kind {
			case unix.IFLA_IFNAME:
				l.name = unix.ByteSliceToString(value)
			case unix.IFLA_IFALIAS:
				l.alias = unix.ByteSliceToString(value)
			case unix.IFLA_MASTER:
				l.master = int(binary.NativeEndian.Uint32(value))
			case unix.IFLA_ADDRESS:
				if msg.Type == unix.ARPHRD_ETHER {
					l.mac = bytes.Clone(value[:min(len(value), 6)]) // the rest is padding
				}
			case unix.IFLA_MTU:
				l.mtu = int(binary.NativeEndian.Uint32(value))
			case unix.IFLA_LINKINFO:
				for kind, attr := range attrs(value) {
					l.isBridge = l.isBridge || kind == unix.IFLA_INFO_KIND && unix.ByteSliceToString(attr[unix.NLA_HDRLEN:]) == "bridge"
				}
			}
		}
		links[int(msg.Index)] = l
	}
	return links, nil
}

// HasLink tells whether the host has a link of that name.
func (h *Host) HasLink(name string) (bool, error) {
	l, err := h.byName(name)
	if errors.Is(err, ErrNoLink) {
		return false, nil
	}
	return l != nil, err
}
