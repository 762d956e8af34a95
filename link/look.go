package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What is here only looks: it is what a person asks when something doesn't work.

// Setting reads a setting by its path below the settings' folder, such as
// "ipv4/conf/eth0/rp_filter"; os.ErrNotExist if the kernel hasn't got it.
func (h *Host) Setting(path string) (int, error) { return h.get(setting(path)) }

// SettingName is what sysctl(8) calls such a path.
func SettingName(path string) string { return setting(path).String() }

// Effective reads an IPv4 setting of an interface where the larger of its own
// and that of "all" counts: rp_filter, arp_ignore, arp_announce.
func (h *Host) Effective(name, key string) (int, error) { return h.effective(name, key) }

// LinkInfo is what an interface is like.
type LinkInfo struct {
	Name  string
	Index int
	// On is whether it is switched on, Carrier whether its other end is.
	On, Carrier bool
	// Master is the bridge or the like that it is a port of; empty if none.
	Master string
	// Forwards and Hairpin are of a bridge's port: whether frames pass, and
	// may go back where they came from.
	Forwards, Hairpin bool
	// Owner is whose it is, of a link with our mark.
	Owner     string
	Addresses []AddressInfo
}

// AddressInfo is an address of an interface. Ours says that it carries our mark.
type AddressInfo struct {
	netip.Prefix
	Ours bool
}

// MACs are those by which the host itself can answer for addresses: of its
// Ethernet links, but for those with our mark, and for ports of bridges, which answer
// for them.
// Its cost grows with their number.
func (h *Host) MACs() ([]net.HardwareAddr, error) {
	links, err := h.listLinks()
	if err != nil {
		return nil, fmt.Errorf("link: list links: %w", err)
	}
	var macs []net.HardwareAddr
	for _, l := range links {
		if _, _, ours := parseMark(l.alias); !ours && l.mac != nil && !links[l.master].isBridge {
			macs = append(macs, l.mac)
		}
	}
	return macs, nil
}

// Links describes all interfaces, by name. Its cost grows with their number.
func (h *Host) Links() (map[string]LinkInfo, error) {
	links, err := h.listLinks()
	if err != nil {
		return nil, fmt.Errorf("link: list links: %w", err)
	}
	infos := map[string]LinkInfo{}
	for index, l := range links {
		owner, _, _ := parseMark(l.alias)
		infos[l.name] = LinkInfo{Name: l.name, Index: index, On: l.up, Carrier: l.carrier, Master: links[l.master].name, Owner: owner}
	}
	list, err := h.addresses(unix.AF_UNSPEC, 0)
	if err != nil {
		return nil, fmt.Errorf("link: list addresses: %w", err)
	}
	for _, a := range list {
		info, known := infos[links[a.index].name]
		if known {
			info.Addresses = append(info.Addresses, AddressInfo{a.prefix, h.isAlias(a, info.Name)})
			infos[info.Name] = info
		}
	}
	ports, err := h.list(unix.RTM_GETLINK, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_BRIDGE))
	if err != nil {
		return nil, fmt.Errorf("link: list bridge ports: %w", err)
	}
	for _, m := range ports {
		info, known := infos[links[int(nl.DeserializeIfInfomsg(m).Index)].name]
		for kind, attr := range attrs(m[unix.SizeofIfInfomsg:]) {
			if kind != unix.IFLA_PROTINFO || !known {
				continue
			}
			for kind, attr := range attrs(attr[unix.NLA_HDRLEN:]) {
				value := attr[unix.NLA_HDRLEN:]
				switch {
				case len(value) == 0:
				case kind == nl.IFLA_BRPORT_STATE:
					info.Forwards = value[0] == portForwards
				case kind == nl.IFLA_BRPORT_MODE:
					info.Hairpin = value[0] != 0
				}
			}
			infos[info.Name] = info
		}
	}
	return infos, nil
}

// portForwards is BR_STATE_FORWARDING (linux/if_bridge.h).
const portForwards = 3

// A Way is where the kernel would send a packet.
type Way struct {
	// Out is the interface, lo for the host's own addresses.
	Out string
	// Via is the next hop, not valid if the destination is on the link.
	Via netip.Addr
	// Local says that the packet is for the host itself.
	Local bool
	// Refused says why the kernel would not send it, as the end of a
	// sentence about the packet; the rest is then empty.
	Refused string
	// Source says that it is refused for where it comes from: by rp_filter,
	// or as no host's.
	Source bool
}

// A Journey is what the kernel is asked about: a packet from an address to
// another, which comes in by an interface, or from the host if In is empty.
type Journey struct {
	From, To netip.Addr
	In       string
	Mark     uint32
}

// Way asks the kernel for the route of a packet. Of one that comes in, its
// answer includes what rp_filter says, and of IPv4 forwarding.
func (h *Host) Way(j Journey) (Way, error) {
	opts := &netlink.RouteGetOptions{Iif: j.In, Mark: j.Mark}
	if j.From.IsValid() {
		opts.SrcAddr = j.From.AsSlice()
	}
	routes, err := h.nl.RouteGetWithOptions(j.To.AsSlice(), opts)
	for _, refusal := range []struct {
		errno  error
		why    string
		source bool
	}{
		// One or the other, by the kernel's version (ip_route_input_slow,
		// net/ipv4/route.c).
		{unix.EXDEV, "is dropped for where it comes from", true},
		{unix.EINVAL, "is dropped for where it comes from", true},
		{unix.ENETUNREACH, "has no route", false},
		{unix.EHOSTUNREACH, "has no route, or is not forwarded", false},
		{unix.EACCES, "is prohibited by a route or rule", false},
	} {
		if errors.Is(err, refusal.errno) {
			return Way{Refused: refusal.why, Source: refusal.source}, nil
		}
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return Way{}, fmt.Errorf("link: %w %s", ErrNoLink, j.In)
	}
	if err != nil || len(routes) == 0 {
		return Way{}, fmt.Errorf("link: route to %s: %w", j.To, err)
	}
	r := routes[0]
	w := Way{Local: r.Type == unix.RTN_LOCAL}
	if refused := map[int]string{unix.RTN_UNREACHABLE: "is unreachable by a route", unix.RTN_PROHIBIT: "is prohibited by a route",
		unix.RTN_BLACKHOLE: "is swallowed by a blackhole route"}[r.Type]; refused != "" {
		return Way{Refused: refused}, nil
	}
	w.Via, _ = netip.AddrFromSlice(r.Gw)
	w.Via = w.Via.Unmap()
	if l, err := h.nl.LinkByIndex(r.LinkIndex); err == nil {
		w.Out = l.Attrs().Name
	}
	return w, nil
}

// A Neighbour is what the kernel knows of an address on a link.
type Neighbour struct {
	// MAC is empty if it isn't known.
	MAC string
	// Failed says that nobody answered when the host asked last.
	Failed bool
	// Port is the bridge's port behind which the MAC was seen; empty if it
	// wasn't, or the link is no bridge.
	Port string
}

// Neighbour looks up who has an address on a link; the zero Neighbour if
// nobody was asked for yet.
func (h *Host) Neighbour(on string, a netip.Addr) (Neighbour, error) {
	l, err := h.byName(on)
	if err != nil {
		return Neighbour{}, fmt.Errorf("link: %w", err)
	}
	list, err := retry(func() ([]netlink.Neigh, error) { return h.nl.NeighList(l.Attrs().Index, netlink.FAMILY_ALL) })
	if err != nil {
		return Neighbour{}, fmt.Errorf("link: neighbours on %s: %w", on, err)
	}
	var n Neighbour
	for _, found := range list {
		if ip, ok := netip.AddrFromSlice(found.IP); ok && ip.Unmap() == a {
			n.MAC, n.Failed = found.HardwareAddr.String(), found.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0
		}
	}
	if n.MAC == "" || l.Type() != "bridge" {
		return n, nil
	}
	macs, err := retry(func() ([]netlink.Neigh, error) { return h.nl.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return n, fmt.Errorf("link: forwarding table of %s: %w", on, err)
	}
	for _, found := range macs {
		if found.MasterIndex == l.Attrs().Index && found.HardwareAddr.String() == n.MAC {
			if port, err := h.nl.LinkByIndex(found.LinkIndex); err == nil {
				n.Port = port.Attrs().Name
			}
		}
	}
	return n, nil
}

// CountFlows tells how many connections to each of the external addresses
// connection tracking has.
func (h *Host) CountFlows(external netip.Addr) (count int, err error) {
	family := uint8(unix.AF_INET)
	if external.Is6() {
		family = unix.AF_INET6
	}
	err = h.dump(family, nil, func(f flow) {
		if f.addrs[origDst] == external {
			count++
		}
	})
	if err != nil {
		return 0, fmt.Errorf("link: count flows: %w", err)
	}
	return count, nil
}

// TableFull tells how many connections there are, and how many there may be;
// ok is false where there is no connection tracking.
func (h *Host) TableFull() (count, most int, ok bool, err error) {
	count, err = h.get("netfilter/nf_conntrack_count")
	if err == nil {
		most, err = h.get("netfilter/nf_conntrack_max")
	}
	if errors.Is(err, os.ErrNotExist) {
		return 0, 0, false, nil
	}
	return count, most, err == nil, err
}
