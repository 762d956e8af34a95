// Package link makes the interfaces and addresses of the host: bridges, veth
// pairs, and the external addresses as aliases on their parent. It is the only
// door to rtnetlink, to the sysctls of interfaces and to connection tracking.
//
// Every Ensure and Remove may be called twice: what is there already, or gone
// already, is no error. Links of ours carry Mark in their alias (ifalias),
// addresses of ours a label (IPv4) or Protocol (IPv6), rules and routes of
// ours Protocol; what doesn't is not ours and stays untouched.
package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrNotOurs is returned when a name or an address that we were to make
// exists already and doesn't carry our mark.
var ErrNotOurs = errors.New("exists and is not extip's")

// ErrNoLink is returned where an interface is needed that doesn't exist.
var ErrNoLink = errors.New("no interface")

// MaxName is the longest interface name, in bytes: IFNAMSIZ-1 (linux/if.h).
const MaxName = unix.IFNAMSIZ - 1

// markPrefix begins the ifalias of every link of ours; its owner follows.
const markPrefix = "extip:"

// maxMark is the longest ifalias, in bytes: IFALIASZ-1 (linux/if.h).
const maxMark = 255

// Mark is the ifalias of a link that belongs to owner, a network or endpoint
// id. The note goes with it, unless both are longer than an ifalias can be.
func Mark(owner, note string) string {
	mark := markPrefix + owner
	if note != "" && NoteFits(owner, note) {
		mark += " " + note
	}
	return mark
}

// NoteFits tells whether a link can carry the note beside its owner.
func NoteFits(owner, note string) bool {
	return len(markPrefix)+len(owner)+1+len(note) <= maxMark
}

// parseMark reads a Mark; ok is false if the ifalias is none.
func parseMark(ifalias string) (owner, note string, ok bool) {
	rest, ok := strings.CutPrefix(ifalias, markPrefix)
	owner, note, _ = strings.Cut(rest, " ")
	return owner, note, ok
}

// Host is the network namespace it was made in. Its methods may be called
// concurrently.
type Host struct {
	nl *netlink.Handle
	// routes is for lists of routes: the kernel leaves out what isn't asked
	// for, since 4.20; before, the library does.
	routes *netlink.Handle
	// flows, addrs and lists are sockets for requests of our own: about
	// flows, about single addresses, and for lists, which take their time.
	flows, addrs, lists *nl.SocketHandle
	// signs tells whether the kernel keeps Protocol with an address: since 5.18.
	signs bool
	// ways are how flows are deleted, by address family.
	ways [2]atomic.Int32
	// uplinks is held while they are synced.
	uplinks sync.Mutex
	// sysctls is the folder with the settings of the namespace: /proc/sys/net,
	// or where it is mounted writable.
	sysctls string
}

// New returns the Host of the calling thread's network namespace.
func New(sysctls string) (*Host, error) {
	h := &Host{sysctls: sysctls, signs: kernelAtLeast(5, 18)}
	if err := h.open(); err != nil {
		h.Close()
		return nil, fmt.Errorf("link: open netlink: %w", err)
	}
	return h, nil
}

// open opens the calling thread's namespace.
func (h *Host) open() (err error) {
	for _, handle := range []**netlink.Handle{&h.nl, &h.routes} {
		if *handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
	}
	_ = h.routes.SetStrictCheck(true) // a kernel without it lists more
	for _, socket := range []struct {
		to       **nl.SocketHandle
		protocol int
	}{{&h.flows, unix.NETLINK_NETFILTER}, {&h.addrs, unix.NETLINK_ROUTE}, {&h.lists, unix.NETLINK_ROUTE}} {
		s, err := nl.Subscribe(socket.protocol)
		if err != nil {
			return err
		}
		*socket.to = &nl.SocketHandle{Socket: s}
	}
	return nil
}

// Close closes the sockets; nothing in the kernel changes.
func (h *Host) Close() {
	for _, handle := range []*netlink.Handle{h.nl, h.routes} {
		if handle != nil {
			handle.Close()
		}
	}
	for _, socket := range []*nl.SocketHandle{h.flows, h.addrs, h.lists} {
		if socket != nil {
			socket.Close()
		}
	}
}

// A Bridge connects the containers of one network.
type Bridge struct {
	Name string
	// Owner is the network's id; Note is kept with it on the link.
	Owner, Note string
	// Addresses are the bridge's own, with the subnets' prefix lengths: the
	// containers' gateways.
	Addresses []netip.Prefix
	// MTU in bytes.
	MTU int
}

// EnsureBridge makes the bridge, or completes one that is ours.
// ErrNotOurs if the name is in use otherwise.
func (h *Host) EnsureBridge(b Bridge) error {
	l, err := h.ours(b.Name, b.Owner)
	if err == nil && l == nil {
		l, err = h.makeBridge(b)
	}
	if err == nil {
		err = h.mark(l, b.Owner, b.Note)
	}
	if err == nil {
		err = h.configureBridge(l, b)
	}
	if err != nil {
		return fmt.Errorf("link: bridge %s: %w", b.Name, err)
	}
	return nil
}

// makeBridge makes the bridge under a name that is ours and renames it when it
// carries its mark: a crash in between must not leave a link that nobody
// recognises.
func (h *Host) makeBridge(b Bridge) (netlink.Link, error) {
	draft := BridgeName(b.Owner)
	l, err := h.ours(draft, b.Owner)
	if err != nil {
		return nil, err
	}
	if l == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = draft
		attrs.MTU = b.MTU
		// A bridge without an address of its own takes that of a port,
		// and so changes it when containers come and go.
		attrs.HardwareAddr = MAC(b.Addresses)
		if err := h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, GroupFwdMask: new(passLLDP)}); err != nil {
			return nil, fmt.Errorf("create: %w", err)
		}
		if l, err = h.byName(draft); err != nil {
			return nil, err
		}
		if err := h.mark(l, b.Owner, b.Note); err != nil {
			return nil, err
		}
	}
	if draft != b.Name {
		if err := h.nl.LinkSetName(l, b.Name); err != nil {
			return nil, fmt.Errorf("rename: %w", err)
		}
	}
	return h.byName(b.Name)
}

// passLLDP has a bridge forward LLDP's group (bit 14 of group_fwd_mask). It
// would otherwise learn from such frames where a MAC is, and give them to the
// host, past everything that looks at what containers send (br_handle_frame,
// net/bridge/br_input.c).
const passLLDP uint16 = 1 << 0xe

const (
	// minMTU6 is the least MTU for IPv6, in bytes (RFC 8200 §5).
	minMTU6 = 1280
	// prefixMetric6 is the metric that the kernel gives the IPv6 routes of
	// its own addresses: IP6_RT_PRIO_ADDRCONF (net/ip6_route.h).
	prefixMetric6 = 256
)

func (h *Host) configureBridge(l netlink.Link, b Bridge) error {
	if l.Attrs().MTU != b.MTU {
		if err := h.nl.LinkSetMTU(l, b.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", b.MTU, err)
		}
	}
	if have, ok := l.(*netlink.Bridge); ok && (have.GroupFwdMask == nil || *have.GroupFwdMask&passLLDP == 0) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = have.Name, have.Index
		if err := h.nl.LinkModify(&netlink.Bridge{LinkAttrs: attrs, GroupFwdMask: new(passLLDP)}); err != nil {
			return fmt.Errorf("forward LLDP: %w", err)
		}
	}
	of := FamiliesOf(b.Addresses)
	if of.V6 && b.MTU < minMTU6 {
		return fmt.Errorf("MTU %d is less than IPv6 needs, %d", b.MTU, minMTU6)
	}
	if err := h.setIPv6(b.Name, of.V6); err != nil {
		return err
	}
	if err := h.routeFrom(b.Name, of); err != nil {
		return err
	}
	for _, p := range b.Addresses {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			// Nobody else is on the bridge: the address needn't wait a
			// second until it may be used.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.nl.AddrAdd(l, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	if err := h.nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	// The kernel makes the subnets' routes itself, but only once: it does
	// not bring back one that somebody deleted.
	for _, p := range b.Addresses {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(p.Masked()), Protocol: unix.RTPROT_KERNEL}
		if p.Addr().Is4() {
			route.Src, route.Scope = p.Addr().AsSlice(), netlink.SCOPE_LINK
		} else {
			route.Priority = prefixMetric6
		}
		if err := h.nl.RouteReplace(route); err != nil {
			return fmt.Errorf("route of %s: %w", p.Masked(), err)
		}
	}
	return nil
}

// RemoveBridge removes the bridge, unless it is not ours.
func (h *Host) RemoveBridge(b Bridge) error { return h.removeLink(b.Name, b.Owner) }

// A Veth is the pair of links between a container and its bridge.
type Veth struct {
	// Host is the end on the bridge; Peer is the one the container gets.
	Host, Peer string
	// Owner is the endpoint's id; Note is kept with it on the link.
	Owner, Note string
	Bridge      string
	// MTU in bytes, of both ends.
	MTU int
	MAC net.HardwareAddr // of Peer
	// Isolated forbids frames between this port and other isolated ones.
	Isolated bool
}

// EnsureVeth makes the pair with its host end up on the bridge. Peer stays in
// the host's namespace; the engine moves it.
func (h *Host) EnsureVeth(v Veth) error {
	l, err := h.ours(v.Host, v.Owner)
	replug := l != nil && l.Attrs().MasterIndex == 0
	if err == nil && l == nil {
		l, err = h.makeVeth(v)
	}
	if err == nil {
		err = h.mark(l, v.Owner, v.Note)
	}
	if err == nil {
		err = h.plug(l, v)
	}
	if err == nil && replug {
		err = h.resolveAgain(v.Bridge)
	}
	if err != nil {
		return fmt.Errorf("link: veth %s: %w", v.Host, err)
	}
	return nil
}

func (h *Host) makeVeth(v Veth) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = v.Host
	attrs.MTU = v.MTU
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = v.Peer, v.MAC, uint32(v.MTU)
	if err := h.nl.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	return veth, nil // LinkAdd has looked up its index
}

// plug makes the host end a working port of the bridge.
func (h *Host) plug(l netlink.Link, v Veth) error {
	bridge, err := h.byName(v.Bridge)
	if err != nil {
		return err
	}
	if l.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := h.nl.LinkSetMaster(l, bridge); err != nil {
			return fmt.Errorf("join bridge %s: %w", v.Bridge, err)
		}
	}
	// With bridge-nf-call-iptables, a container's connection to its own
	// external address comes back through the port it came from
	// (measured: without hairpin mode it times out).
	if err := h.nl.LinkSetHairpin(l, true); err != nil {
		return fmt.Errorf("set hairpin mode: %w", err)
	}
	if v.Isolated {
		if err := h.nl.LinkSetIsolated(l, true); err != nil {
			return fmt.Errorf("isolate port: %w", err)
		}
	}
	if err := h.setIPv6(v.Host, false); err != nil {
		return err
	}
	if err := h.nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// resolveAgain makes the host ask at once for neighbours on a bridge that it
// could not resolve while their port was off it. It would wait a second between
// two questions (RETRANS_TIMER, RFC 4861 §10; the kernel's for ARP, too).
func (h *Host) resolveAgain(bridge string) error {
	l, err := h.byName(bridge)
	if err != nil {
		return err
	}
	neighbours, err := retry(func() ([]netlink.Neigh, error) { return h.nl.NeighList(l.Attrs().Index, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list neighbours on %s: %w", bridge, err)
	}
	for _, n := range neighbours {
		if n.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) == 0 {
			continue
		}
		if err := h.nl.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget neighbour %s on %s: %w", n.IP, bridge, err)
		}
	}
	return nil
}

// RemoveVeth removes the pair, wherever its other end is.
func (h *Host) RemoveVeth(v Veth) error { return h.removeLink(v.Host, v.Owner) }

// NameLength is how much of an id is part of an interface name: with "xip-"
// before it, MaxName bytes.
const nameLength = MaxName - len("xip-")

// BridgeName is the name of a network's bridge where none is asked for.
func BridgeName(network string) string { return "xip-" + cut(network, nameLength) }

// VethNames are the names of an endpoint's pair: the host's end and the container's.
func VethNames(endpoint string) (host, peer string) {
	id := cut(endpoint, nameLength)
	return "xip" + id, "xic" + id
}

func cut(id string, n int) string { return id[:min(len(id), n)] }

// MAC is a locally administered address made from the first IPv4 address, or
// else from the end of the first IPv6 one, so that who takes the address over
// looks the same to its neighbours; nil if there is none. The two forms never
// meet. Two IPv6 addresses of a subnet do if they have their last 40 bits in
// common: neither those that an engine chooses nor random ones.
func MAC(addrs []netip.Prefix) net.HardwareAddr {
	var from6 net.HardwareAddr
	for _, p := range addrs {
		if p.Addr().Is4() {
			a := p.Addr().As4()
			return net.HardwareAddr{0x02, 0x42, a[0], a[1], a[2], a[3]}
		}
		if from6 == nil {
			a := p.Addr().As16()
			from6 = net.HardwareAddr{0x06, a[11], a[12], a[13], a[14], a[15]}
		}
	}
	return from6
}

// ours returns the link of that name, nil if there is none, ErrNotOurs if it
// lacks the owner's mark. A link in its first instants has no mark yet, but a
// name that nobody else makes.
func (h *Host) ours(name, owner string) (netlink.Link, error) {
	l, err := h.byName(name)
	if errors.Is(err, ErrNoLink) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	marked, _, _ := parseMark(l.Attrs().Alias)
	host, _ := VethNames(owner)
	unmarked := l.Attrs().Alias == "" && (name == BridgeName(owner) || name == host)
	if marked != owner && !unmarked {
		return nil, fmt.Errorf("an interface %s %w", name, ErrNotOurs)
	}
	return l, nil
}

// mark writes the mark of a link that lacks it.
func (h *Host) mark(l netlink.Link, owner, note string) error {
	mark := Mark(owner, note)
	if l.Attrs().Alias == mark {
		return nil
	}
	if err := h.nl.LinkSetAlias(l, mark); err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	l.Attrs().Alias = mark
	return nil
}

func (h *Host) byName(name string) (netlink.Link, error) {
	l, err := h.nl.LinkByName(name)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
		return nil, fmt.Errorf("%w %s", ErrNoLink, name)
	case err != nil:
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	return l, nil
}

func (h *Host) removeLink(name, owner string) error {
	l, err := h.ours(name, owner)
	if errors.Is(err, ErrNotOurs) {
		return nil
	}
	if err == nil && l != nil {
		err = h.nl.LinkDel(l)
	}
	// Its namespace may have taken it away between the two calls.
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("link: remove %s: %w", name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
