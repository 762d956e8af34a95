package link

import (
	"context"
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
	RouteGone   Kind = "route gone"
	// Missed says that the kernel had more to tell than we could take:
	// anything may have changed.
	Missed Kind = "events missed"
)

// A Change is a hint: by the time it is read, it may be undone again.
type Change struct {
	Kind Kind
	Link string
	// Prefix is the address or the route's destination.
	Prefix netip.Prefix
}

// watchBuffer holds some ten thousand events, in bytes.
const watchBuffer = 4 << 20

// drained is how long there must be no event, in microseconds, for the queue to
// count as empty.
const drained = 1000

// A Watcher turns the kernel's route messages into changes.
type Watcher struct {
	socket *nl.NetlinkSocket
	names  map[int]string
	up     map[int]bool
	master map[int]int
}

// Watch begins to collect what changes from now on; Run delivers it.
func (h *Host) Watch() (*Watcher, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("link: watch: %w", err)
	}
	if err := s.SetReceiveBufferSize(watchBuffer, true); err != nil {
		// Without CAP_NET_ADMIN the size is limited; a smaller one does.
		_ = s.SetReceiveBufferSize(watchBuffer, false)
	}
	w := &Watcher{socket: s, names: map[int]string{}, up: map[int]bool{}, master: map[int]int{}}
	links, err := retry(h.nl.LinkList)
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("link: watch: %w", err)
	}
	for _, l := range links {
		w.learn(l)
	}
	return w, nil
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
			if c, ok := w.read(m.Header.Type, m.Data); ok {
				fn(c)
			}
		}
	}
}

// read makes a change of a message; ok is false if it is none that matters.
func (w *Watcher) read(kind uint16, data []byte) (c Change, ok bool) {
	switch kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.link(kind, data)
	case unix.RTM_DELADDR:
		if len(data) < unix.SizeofIfAddrmsg {
			return c, false
		}
		msg := nl.DeserializeIfAddrmsg(data)
		c.Kind, c.Link = AddressGone, w.names[int(msg.Index)]
		c.Prefix = prefixAttr(data[msg.Len():], unix.IFA_LOCAL, int(msg.Prefixlen))
		return c, c.Prefix.IsValid()
	case unix.RTM_DELROUTE:
		if len(data) < unix.SizeofRtMsg {
			return c, false
		}
		msg := nl.DeserializeRtMsg(data)
		c.Kind = RouteGone
		c.Prefix = prefixAttr(data[msg.Len():], unix.RTA_DST, int(msg.Dst_len))
		return c, c.Prefix.IsValid() && msg.Table == unix.RT_TABLE_MAIN
	}
	return c, false
}

// link compares a link with what was known of it.
func (w *Watcher) link(kind uint16, data []byte) (c Change, ok bool) {
	l, err := netlink.LinkDeserialize(nil, data)
	if err != nil {
		return Change{Kind: Missed}, true
	}
	a := l.Attrs()
	c.Link = a.Name
	// A bridge reports the loss of a port, too, as a link that goes.
	if kind == unix.RTM_DELLINK && data[0] != unix.AF_BRIDGE {
		delete(w.names, a.Index)
		delete(w.up, a.Index)
		delete(w.master, a.Index)
		c.Kind = LinkGone
		return c, true
	}
	if data[0] == unix.AF_BRIDGE {
		return c, false
	}
	wasUp, wasMaster := w.up[a.Index], w.master[a.Index]
	w.learn(l)
	switch {
	case isUp(a) && !wasUp:
		c.Kind = LinkUp
	case !isUp(a) && wasUp:
		c.Kind = LinkDown
	case wasMaster != 0 && a.MasterIndex != wasMaster:
		c.Kind = PortGone
	default:
		return c, false
	}
	return c, true
}

// prefixAttr finds an address among route attributes; not valid if there is none.
func prefixAttr(data []byte, kind uint16, bits int) netip.Prefix {
	attrs, err := nl.ParseRouteAttr(data)
	if err != nil {
		return netip.Prefix{}
	}
	for _, attr := range attrs {
		if attr.Attr.Type == kind {
			if a, ok := netip.AddrFromSlice(attr.Value); ok {
				return netip.PrefixFrom(a, bits)
			}
		}
	}
	return netip.Prefix{}
}
