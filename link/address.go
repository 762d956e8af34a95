package link

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// An address is one that an interface of the host has.
type address struct {
	index  int // of the interface
	prefix netip.Prefix
	label  string // IPv4 only
	flags  uint32
	// protocol says who made it, IFA_PROTO; 0 before Linux 5.18.
	protocol uint8
}

// ifaProto is IFA_PROTO (linux/if_addr.h), which golang.org/x/sys/unix doesn't name.
const ifaProto = 11

// parseAddress reads an RTM_NEWADDR or RTM_DELADDR; ok is false if it has no address.
func parseAddress(m []byte) (a address, ok bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return a, false
	}
	msg := nl.DeserializeIfAddrmsg(m)
	a.index, a.flags = int(msg.Index), uint32(msg.Flags)
	var ip netip.Addr
	local := false
	for kind, attr := range attrs(m[unix.SizeofIfAddrmsg:]) {
		value := attr[unix.NLA_HDRLEN:]
		switch kind {
		case unix.IFA_LOCAL:
			ip, local = netip.AddrFromSlice(value)
		case unix.IFA_ADDRESS:
			// With IFA_LOCAL, which IPv6 hasn't without a peer, it is the peer's.
			if !local {
				ip, _ = netip.AddrFromSlice(value)
			}
		case unix.IFA_LABEL:
			a.label = unix.ByteSliceToString(value)
		case unix.IFA_FLAGS:
			if len(value) >= 4 {
				a.flags = binary.NativeEndian.Uint32(value)
			}
		case ifaProto:
			if len(value) >= 1 {
				a.protocol = value[0]
			}
		}
	}
	a.prefix = netip.PrefixFrom(ip, int(msg.Prefixlen))
	return a, a.prefix.IsValid()
}

// addresses lists those of a family, all if it is AF_UNSPEC; of one interface
// if index is not 0.
func (h *Host) addresses(family, index int) ([]address, error) {
	msg := nl.NewIfAddrmsg(family)
	messages, err := h.list(unix.RTM_GETADDR, unix.RTM_NEWADDR, msg)
	if err != nil {
		return nil, err
	}
	list := make([]address, 0, len(messages))
	for _, m := range messages {
		if a, ok := parseAddress(m); ok && (index == 0 || a.index == index) {
			list = append(list, a)
		}
	}
	return list, nil
}

// address6 returns what an interface, any if index is 0, has of a; not ok if
// nothing. The kernel finds it without a list, which it can't for IPv4.
func (h *Host) address6(index int, a netip.Addr) (found address, ok bool, err error) {
	answers, err := h.request6(unix.RTM_GETADDR, 0, index, a).Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		return address{}, false, nil
	}
	if err == nil && len(answers) > 0 {
		found, ok = parseAddress(answers[0])
	}
	return found, ok, err
}

// request6 prepares a message about an IPv6 address, a /128, of an interface.
func (h *Host) request6(operation, flags, index int, a netip.Addr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(operation, flags|unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: h.addrs}
	msg := nl.NewIfAddrmsg(unix.AF_INET6)
	msg.Index, msg.Prefixlen = uint32(index), uint8(a.BitLen())
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.AsSlice()))
	return req
}

// list asks for a list, and again if it changed meanwhile.
func (h *Host) list(operation int, answer uint16, parts ...nl.NetlinkRequestData) ([][]byte, error) {
	return retry(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(operation, unix.NLM_F_DUMP)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: h.lists}
		for _, p := range parts {
			req.AddData(p)
		}
		return req.Execute(unix.NETLINK_ROUTE, answer)
	})
}
