package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Kind is what has happened to the host's network.
type Kind string

// Kinds of changes.
const (
	LinkGone    Kind = "link gone"
	LinkUp      Kind = "link up" // also: a new link
	LinkDown    Kind = "link down"
	PortGone    Kind = "port left its bridge"
	AddressGone Kind = "address gone"
	AddressCame Kind = "address came" // not one of ours
	RouteGone   Kind = "route gone"
	RuleGone    Kind = "rule gone" // of the barrier; whoever takes all takes these
	// DefaultRoute says that one came or went, or that its link did.
	DefaultRoute Kind = "default route"
	// Missed says that the kernel had more to tell than we could take:
	// anything may have changed.
	Missed Kind = "events missed"
)

// A Change is a hint: by the time it is read, it may be undone again.
type Change struct {
	Kind Kind
	Link string
	// Prefix is the address or the route's destination; not valid if a
	// default route went with its link.
	Prefix netip.Prefix
}

// watchBuffer holds some ten thousand events, in bytes.
const watchBuffer = 4 << 20

// drained is how long there must be no event, in microseconds, for the queue to
// count as empty.
const drained = 1000

// A Watcher turns the kernel's route messages into changes.
type Watcher struct {
	host   *Host
	socket *nl.NetlinkSocket
	names  map[int]string
	up     map[int]bool
	master map[int]int
	// leads are links that a default route led through once.
	leads map[int]bool
}

// Watch begins to collect what changes from now on; Run delivers it.
func (h *Host) Watch() (*Watcher, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return nil, fmt.Errorf("link: watch: %w", err)
	}
	if err := s.SetReceiveBufferSize(watchBuffer, true); err != nil {
		// Without CAP_NET_ADMIN the size is limited; a smaller one does.
		_ = s.SetReceiveBufferSize(watchBuffer, false)
	}
	w := &Watcher{host: h, socket: s, names: map[int]string{}, up: map[int]bool{}, master: map[int]int{}, leads: map[int]bool{}}
	if err := w.begin(h); err != nil {
		s.Close()
		return nil, fmt.Errorf("link: watch: %w", err)
	}
	return w, nil
}

// begin learns what there is.
func (w *Watcher) begin(h *Host) error {
	links, err := retry(h.nl.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		w.learn(l)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.defaultRoutes(family)
		if err != nil {
			return err
		}
		for _, r := range routes {
			for _, hop := range hops(r) {
				w.leads[hop.LinkIndex] = true
			}
		}
	}
	return nil
}

func (w *Watcher) learn(l netlink.Link) {
	a := l.Attrs()
	w.names[a.Index], w.up[a.Index], w.master[a.Index] = a.Name, isUp(a), a.MasterIndex
}

func isUp(a *netlink.LinkAttrs) bool {
	return a.Flags&net.FlagUp != 0 && a.RawFlags&unix.IFF_RUNNING != 0
}

// Run calls fn for each change until ctx ends. Links and addresses of all
// owners are reported; fn must be quick.
func (w *Watcher) Run(ctx context.Context, fn func(Change)) error {
	stop := context.AfterFunc(ctx, w.socket.Close)
	defer func() {
		if stop() {
			w.socket.Close()
		}
	}()
	// After an overrun the kernel goes on to drop events, without another
	// word, until all that it did queue is read (netlink_overrun,
	// net/netlink/af_netlink.c).
	overrun := false
	for {
		messages, _, err := w.socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			overrun = true
			if err := w.socket.SetReceiveTimeout(&unix.Timeval{Usec: drained}); err != nil {
				return fmt.Errorf("link: watch: %w", err)
			}
			continue
		case overrun && errors.Is(err, unix.EAGAIN):
			overrun = false
			if err := w.socket.SetReceiveTimeout(&unix.Timeval{}); err != nil {
				return fmt.Errorf("link: watch: %w", err)
			}
			fn(Change{Kind: Missed})
			continue
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return fmt.Errorf("link: watch: %w", err)
		}
		for _, m := range messages {
			w.read(m.Header.Type, m.Data, fn)
		}
	}
}

// read makes changes of a message, if it is one that matters.
func (w *Watcher) read(kind uint16, data []byte, fn func(Change)) {
	switch kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		w.link(kind, data, fn)
	case unix.RTM_DELADDR:
		if a, ok := parseAddress(data); ok {
			fn(Change{Kind: AddressGone, Link: w.names[a.index], Prefix: a.prefix})
		}
	case unix.RTM_NEWADDR:
		if a, ok := parseAddress(data); ok && !w.host.isAlias(a, w.names[a.index]) {
			fn(Change{Kind: AddressCame, Link: w.names[a.index], Prefix: a.prefix})
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		w.route(kind, data, fn)
	case unix.RTM_DELRULE:
		if len(data) < unix.SizeofRtMsg {
			return
		}
		for kind, attr := range attrs(data[unix.SizeofRtMsg:]) {
			if kind == nl.FRA_PRIORITY && len(attr) >= unix.NLA_HDRLEN+4 && binary.NativeEndian.Uint32(attr[unix.NLA_HDRLEN:]) == barrierDrop {
				fn(Change{Kind: RuleGone})
			}
		}
	}
}

// route reports what concerns the main table. Our own routes are in others.
func (w *Watcher) route(kind uint16, data []byte, fn func(Change)) {
	if len(data) < unix.SizeofRtMsg {
		return
	}
	msg := nl.DeserializeRtMsg(data)
	if msg.Table != unix.RT_TABLE_MAIN || msg.Flags&unix.RTM_F_CLONED != 0 {
		return
	}
	if msg.Dst_len == 0 && msg.Type == unix.RTN_UNICAST {
		c := Change{Kind: DefaultRoute, Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
		if msg.Family == unix.AF_INET6 {
			c.Prefix = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		for _, index := range leadsThrough(data[unix.SizeofRtMsg:]) {
			w.leads[index] = true
			c.Link = w.names[index]
		}
		fn(c)
		return
	}
	if kind == unix.RTM_DELROUTE {
		for kind, attr := range attrs(data[unix.SizeofRtMsg:]) {
			if a, ok := netip.AddrFromSlice(attr[unix.NLA_HDRLEN:]); ok && kind == unix.RTA_DST {
				fn(Change{Kind: RouteGone, Prefix: netip.PrefixFrom(a, int(msg.Dst_len))})
			}
		}
	}
}

// leadsThrough are the indexes of the links that a route goes through.
func leadsThrough(data []byte) []int {
	var indexes []int
	for kind, attr := range attrs(data) {
		value := attr[unix.NLA_HDRLEN:]
		switch kind {
		case unix.RTA_OIF:
			indexes = append(indexes, int(binary.NativeEndian.Uint32(value)))
		case unix.RTA_MULTIPATH:
			for len(value) >= unix.SizeofRtNexthop {
				// struct rtnexthop (linux/rtnetlink.h): length, flags,
				// weight, index; then its attributes.
				size := int(binary.NativeEndian.Uint16(value))
				indexes = append(indexes, int(binary.NativeEndian.Uint32(value[4:])))
				value = value[min(max(size, unix.SizeofRtNexthop), len(value)):]
			}
		}
	}
	return indexes
}

// link compares a link with what was known of it.
func (w *Watcher) link(kind uint16, data []byte, fn func(Change)) {
	l, err := netlink.LinkDeserialize(nil, data)
	if err != nil {
		fn(Change{Kind: Missed})
		return
	}
	a := l.Attrs()
	// A bridge reports the loss of a port, too, as a link that goes.
	if data[0] == unix.AF_BRIDGE {
		return
	}
	wasUp, wasMaster, leads := w.up[a.Index], w.master[a.Index], w.leads[a.Index]
	c := Change{Link: a.Name}
	if kind == unix.RTM_DELLINK {
		delete(w.names, a.Index)
		delete(w.up, a.Index)
		delete(w.master, a.Index)
		delete(w.leads, a.Index)
		c.Kind = LinkGone
	} else {
		w.learn(l)
	}
	switch {
	case c.Kind == LinkGone:
	case isUp(a) && !wasUp:
		c.Kind = LinkUp
	case !isUp(a) && wasUp:
		c.Kind = LinkDown
	case wasMaster != 0 && a.MasterIndex != wasMaster:
		c.Kind = PortGone
	default:
		return
	}
	fn(c)
	// The kernel says nothing of IPv4 routes that go with their link.
	if leads && (c.Kind == LinkGone || c.Kind == LinkDown) {
		fn(Change{Kind: DefaultRoute, Link: a.Name})
	}
}
