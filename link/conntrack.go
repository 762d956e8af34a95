package link

import (
	"encoding/binary"
	"errors"
	"iter"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes of a ctnetlink message that vishvananda/netlink doesn't name
// (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctaFilter           = 25 // CTA_FILTER
	ctaFilterOrigFlags  = 1  // CTA_FILTER_ORIG_FLAGS
	ctaFilterReplyFlags = 2  // CTA_FILTER_REPLY_FLAGS
	// Flags in them (net/netfilter/nf_internals.h), in the host's byte order.
	filterSrc = 1 << 0 // CTA_FILTER_F_CTA_IP_SRC
	filterDst = 1 << 1 // CTA_FILTER_F_CTA_IP_DST
)

// A field is an address of a flow.
type field int

// The original destination is an external address that was connected to, the
// original source a container that connects; the source of replies is the
// container that was connected to, their destination the external address that
// a container connects from.
const (
	none field = iota
	origDst
	origSrc
	replySrc
	replyDst
	fields
)

// filter asks for the flows that have the search's addresses in its fields:
//
//	CTA_TUPLE_ORIG or _REPLY, CTA_TUPLE_IP, one address
//	CTA_FILTER, CTA_FILTER_ORIG_FLAGS or _REPLY_FLAGS, which of the two it is
//
// and both tuples if the fields are one of each.
func (s search) filter() []*nl.RtAttr {
	filter := nl.NewRtAttr(unix.NLA_F_NESTED|ctaFilter, nil)
	var attrs []*nl.RtAttr
	for _, part := range []search{{field: s.field, addr: s.addr}, {field: s.also, addr: s.alsoAddr}} {
		if part.field == none {
			continue
		}
		ip, flag, flags, kind := nl.CTA_IP_V4_SRC, uint32(filterSrc), ctaFilterOrigFlags, nl.CTA_TUPLE_ORIG
		if part.addr.Is6() {
			ip = nl.CTA_IP_V6_SRC
		}
		if part.field == origDst || part.field == replyDst {
			ip, flag = ip+1, filterDst // each CTA_IP_*_DST follows its SRC
		}
		if part.field == replySrc || part.field == replyDst {
			flags, kind = ctaFilterReplyFlags, nl.CTA_TUPLE_REPLY
		}
		tuple := nl.NewRtAttr(unix.NLA_F_NESTED|kind, nil)
		tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil).AddRtAttr(ip, part.addr.AsSlice())
		filter.AddRtAttr(flags, nl.Uint32Attr(flag))
		attrs = append(attrs, tuple)
	}
	return append(attrs, filter)
}

// A flow is an entry of the connection tracking table.
type flow struct {
	addrs [fields]netip.Addr // that of none stays invalid
	attrs []byte             // all that the kernel told of it
}

// parseFlow reads an entry as it is dumped, without copying: a table may have
// hundreds of thousands.
func parseFlow(data []byte) (flow, error) {
	if len(data) < nl.SizeofNfgenmsg {
		return flow{}, errors.New("short message")
	}
	f := flow{attrs: data[nl.SizeofNfgenmsg:]}
	for kind, attr := range attrs(f.attrs) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			f.addrs[origSrc], f.addrs[origDst] = tupleAddrs(attr)
		case nl.CTA_TUPLE_REPLY:
			f.addrs[replySrc], f.addrs[replyDst] = tupleAddrs(attr)
		}
	}
	for _, a := range f.addrs[none+1:] {
		if !a.IsValid() {
			return f, errors.New("a flow without addresses")
		}
	}
	return f, nil
}

// key is what names the flow to the kernel: its original tuple, its zone if it
// has one, and its id, which a later flow of that tuple hardly ever shares. It
// is a copy.
func (f flow) key() []byte {
	var key []byte
	for kind, attr := range attrs(f.attrs) {
		if kind == nl.CTA_TUPLE_ORIG || kind == nl.CTA_ZONE || kind == nl.CTA_ID {
			key = append(key, attr...)
		}
	}
	return key
}

// ended tells whether it is a TCP connection that is closed, and only waits to be
// forgotten.
func (f flow) ended() bool {
	const timeWait, closed = 7, 8 // TCP_CONNTRACK_*, linux/netfilter/nf_conntrack_tcp.h
	for kind, info := range attrs(f.attrs) {
		if kind != nl.CTA_PROTOINFO {
			continue
		}
		for kind, tcp := range attrs(info[unix.NLA_HDRLEN:]) {
			if kind != nl.CTA_PROTOINFO_TCP {
				continue
			}
			for kind, state := range attrs(tcp[unix.NLA_HDRLEN:]) {
				if kind == nl.CTA_PROTOINFO_TCP_STATE && len(state) > unix.NLA_HDRLEN {
					return state[unix.NLA_HDRLEN] == timeWait || state[unix.NLA_HDRLEN] == closed
				}
			}
		}
	}
	return false
}

// tupleAddrs reads the addresses of a CTA_TUPLE_ORIG or CTA_TUPLE_REPLY.
func tupleAddrs(tuple []byte) (src, dst netip.Addr) {
	for kind, attr := range attrs(tuple[unix.NLA_HDRLEN:]) {
		if kind != nl.CTA_TUPLE_IP {
			continue
		}
		for kind, attr := range attrs(attr[unix.NLA_HDRLEN:]) {
			a, _ := netip.AddrFromSlice(attr[unix.NLA_HDRLEN:])
			switch kind {
			case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
				src = a
			case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
				dst = a
			}
		}
	}
	return src, dst
}

// attrs are the attributes in data by kind, each with its header of NLA_HDRLEN
// bytes and its padding (struct nlattr, linux/netlink.h). It ends at what is
// none.
func attrs(data []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(data) >= unix.NLA_HDRLEN {
			size := int(binary.NativeEndian.Uint16(data))
			padded := (size + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1)
			kind := binary.NativeEndian.Uint16(data[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if size < unix.NLA_HDRLEN || padded > len(data) || !yield(kind, data[:padded]) {
				return
			}
			data = data[padded:]
		}
	}
}

// request prepares a ctnetlink message about flows of a family.
func (h *Host) request(family uint8, operation, flags int, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
	const ctnetlink = 1 // NFNL_SUBSYS_CTNETLINK
	req := nl.NewNetlinkRequest(ctnetlink<<8|operation, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: h.flows}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	for _, a := range attrs {
		req.AddData(a)
	}
	return req
}

// dump calls each with the flows of a family that the filter lets through. The
// socket is locked meanwhile: each must not use it, nor keep the key.
func (h *Host) dump(family uint8, filter []*nl.RtAttr, each func(flow)) error {
	var bad error
	req := h.request(family, nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, filter...)
	err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(data []byte) bool {
		f, err := parseFlow(data)
		if err != nil {
			bad = err
			return false
		}
		each(f)
		return true
	})
	return errors.Join(err, bad)
}

// deleteFiltered deletes the flows that a search finds.
//
// A kernel that filters only dumps must not take this for "delete everything",
// which a delete request without a tuple is. It has a tuple, and all kernels
// since 2.6.14 do with one what ctnetlink_del_conntrack did before 6.12 (commit
// 1ef7f50ccc6e): they read it as the name of a single flow, and answer EINVAL,
// since a name needs both addresses and a protocol. Were they content with one
// address, it would still be one look-up, and its answer ENOENT. A kernel that
// filters answers success even if nothing matches; so neither answer means
// "nothing to delete".
func (h *Host) deleteFiltered(family uint8, s search) error {
	_, err := h.request(family, nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, s.filter()...).Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

// delete deletes the flow of that key; one that is gone is no error.
func (h *Host) delete(family uint8, key []byte) error {
	req := h.request(family, nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
	req.AddRawData(key)
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// tracked tells whether the flow of that key is still there.
func (h *Host) tracked(family uint8, key []byte) (bool, error) {
	req := h.request(family, nl.IPCTNL_MSG_CT_GET, unix.NLM_F_ACK)
	req.AddRawData(key)
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}
