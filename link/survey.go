package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// A Survey is what carries our mark on the host.
type Survey struct {
	// Links by name: bridges, and the host ends of veth pairs.
	Links map[string]Found
	// Aliases are external addresses with the parent each is on.
	Aliases map[netip.Addr]string
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
	// Addresses of the link, with their prefix lengths.
	Addresses []netip.Prefix
}

// Survey looks at all links and addresses; its cost grows with their number.
func (h *Host) Survey() (Survey, error) {
	s := Survey{Links: map[string]Found{}, Aliases: map[netip.Addr]string{}}
	links, err := retry(h.nl.LinkList)
	if err != nil {
		return s, fmt.Errorf("link: list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		a := l.Attrs()
		owner, note, ok := parseMark(a.Alias)
		if !ok {
			continue
		}
		s.Links[a.Name] = Found{
			Owner: owner, Note: note, MTU: a.MTU,
			Bridge: names[a.MasterIndex], IsBridge: l.Type() == "bridge", Up: a.Flags&net.FlagUp != 0,
		}
	}
	addrs, err := retry(func() ([]netlink.Addr, error) { return h.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return s, fmt.Errorf("link: list addresses: %w", err)
	}
	for _, a := range addrs {
		name := names[a.LinkIndex]
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		ip = ip.Unmap()
		if f, ours := s.Links[name]; ours {
			ones, _ := a.Mask.Size()
			f.Addresses = append(f.Addresses, netip.PrefixFrom(ip, ones))
			s.Links[name] = f
		} else if a.Label != "" && a.Label == aliasLabel(name) {
			s.Aliases[ip] = name
		}
	}
	return s, nil
}

// HasLink tells whether the host has a link of that name.
func (h *Host) HasLink(name string) (bool, error) {
	l, err := h.byName(name)
	if notFound(err) {
		return false, nil
	}
	return l != nil, err
}

func notFound(err error) bool { return errors.As(err, &netlink.LinkNotFoundError{}) }
