package nftables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// liveTable holds the rules that have packets traced, while somebody follows
// them.
const liveTable = "extip-live"

const (
	// beforeAll is before any other chain, those of raw included.
	beforeAll = -400
	// livePackets is how many packets a second are followed at most, each way.
	// Each is told of some twenty times.
	livePackets = 10
)

// Live calls fn for each chain and rule that packets of a flow meet, of
// whichever table of nftables, until ctx ends or fn returns an error. It has the
// kernel tell of ten packets a second, each way. At most one Live may run in a
// network namespace, which is the calling thread's. The rules of iptables-legacy
// can't be followed.
func Live(ctx context.Context, flow nat.Flow, fn func(nat.Sighting) error) (err error) {
	k, err := dial()
	if err != nil {
		return fmt.Errorf("nat: follow packets: %w", err)
	}
	defer func() { err = errors.Join(err, k.close()) }()
	rules, err := k.readAll()
	if err != nil {
		return fmt.Errorf("nat: follow packets: %w", err)
	}
	socket, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("nat: follow packets: %w", err)
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	if err := errors.Join(socket.SetReadBuffer(buffer), socket.JoinGroup(unix.NFNLGRP_NFTRACE)); err != nil {
		return fmt.Errorf("nat: follow packets: %w", err)
	}
	f := familyOf(flow.External)
	if err := k.commit(f.liveBatch(flow)); err != nil {
		return fmt.Errorf("nat: follow packets: %w", err)
	}
	defer func() { err = errors.Join(err, k.endLive(f)) }()
	stop := context.AfterFunc(ctx, func() { _ = socket.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	w := &witness{kernel: k, rules: rules, read: time.Now()}
	for {
		messages, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			continue // some were lost
		case err != nil:
			return fmt.Errorf("nat: follow packets: %w", err)
		}
		for _, m := range messages {
			s, ok := w.sighting(payload(m))
			if m.Header.Type != messageType(unix.NFT_MSG_TRACE) || !ok {
				continue
			}
			if err := fn(s); err != nil {
				return err
			}
		}
	}
}

// EndLive takes away what a process has left that was killed while it followed
// packets, in the calling thread's network namespace.
func EndLive() error {
	k, err := dial()
	if err != nil {
		return fmt.Errorf("nat: end following packets: %w", err)
	}
	for _, f := range families() {
		if e := k.endLive(f); e != nil && !errors.Is(e, unix.EAFNOSUPPORT) {
			err = errors.Join(err, fmt.Errorf("nat: end following packets: %w", e))
		}
	}
	return errors.Join(err, k.close())
}

func (k *kernel) endLive(f family) error {
	b := &batch{name: liveTable}
	b.table(f, 0, false) // so that it is no error if there is none
	b.deleteTable(f)
	return k.commit(b)
}

// liveBatch makes the table, anew if there is one.
func (f family) liveBatch(flow nat.Flow) *batch {
	b := &batch{name: liveTable}
	b.table(f, 0, false)
	b.deleteTable(f)
	b.table(f, 0, true)
	to, from := f.traced(f.target(), flow.External, 2, flow), f.traced(f.source(), flow.Internal, 0, flow)
	for _, c := range []struct {
		name   string
		number uint32
		rules  []rule
	}{
		{chainPrerouting, unix.NF_INET_PRE_ROUTING, []rule{to, from}},
		{chainOutput, unix.NF_INET_LOCAL_OUT, []rule{to}},
	} {
		b.chain(f, c.name, hook{nftables.ChainTypeFilter, c.number, beforeAll, nftables.ChainPolicyAccept})
		for _, r := range c.rules {
			b.rule(f, c.name, r)
		}
	}
	return b
}

// traced has packets traced that have an address at an offset of their header,
// and the flow's port at one of what is in them.
func (f family) traced(at uint32, addr netip.Addr, port uint32, flow nat.Flow) rule {
	parts := []any{f.load(at), equals(addr.AsSlice())}
	if flow.Port != 0 {
		parts = append(parts, meta(expr.MetaKeyL4PROTO), equals([]byte{flow.Proto}),
			&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: port, Len: 2},
			equals(binary.BigEndian.AppendUint16(nil, flow.Port)))
	}
	return f.rule(append(parts,
		&expr.Limit{Type: expr.LimitTypePkts, Rate: livePackets, Unit: expr.LimitTimeSecond, Burst: livePackets},
		&expr.Immediate{Register: register, Data: []byte{1}},
		&expr.Meta{Key: expr.MetaKeyNFTRACE, SourceRegister: true, Register: register})...)
}

// A witness makes sightings of what the kernel tells.
type witness struct {
	kernel *kernel
	rules  *Ruleset
	read   time.Time // when the rules were
}

// sighting is not ok of what concerns our own table only.
func (w *witness) sighting(a attrs) (s nat.Sighting, ok bool) {
	s = nat.Sighting{
		Time: time.Now(), Packet: fmt.Sprintf("%08x", a.number32(unix.NFTA_TRACE_ID)), Header: headerOf(a),
		Table: a.find(unix.NFTA_TRACE_TABLE).string(), Chain: a.find(unix.NFTA_TRACE_CHAIN).string(),
	}
	family := uint8(a.number32(unix.NFTA_TRACE_NFPROTO))
	s.Family = map[uint8]string{
		unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_ARP: "arp", unix.NFPROTO_NETDEV: "netdev",
	}[family]
	switch a.number32(unix.NFTA_TRACE_TYPE) {
	case unix.NFT_TRACETYPE_POLICY:
		s.Rule = "policy"
		s.Verdict = map[uint32]string{0: "drop", 1: "accept"}[a.number32(unix.NFTA_TRACE_POLICY)]
	default:
		s.Rule, s.Verdict = w.rule(place{family, s.Table, s.Chain}, a.find(unix.NFTA_TRACE_RULE_HANDLE)), spellCode(a.find(unix.NFTA_TRACE_VERDICT))
	}
	return s, s.Table != liveTable
}

// rule is a rule's text. The rules are read again, at most once a second, if it
// is a new one.
func (w *witness) rule(in place, number attrs) string {
	var handle uint64
	for _, b := range number {
		handle = handle<<8 | uint64(b)
	}
	if handle == 0 {
		return "end"
	}
	for {
		if c := w.rules.chains[in]; c != nil {
			for _, r := range c.rules {
				if r.handle == handle {
					return w.rules.spell(c, r)
				}
			}
		}
		if time.Since(w.read) < time.Second {
			return fmt.Sprintf("rule %d", handle)
		}
		if rules, err := w.kernel.readAll(); err == nil {
			w.rules = rules
		}
		w.read = time.Now()
	}
}

// headerOf is what a packet looks like, "" if that isn't told.
func headerOf(a attrs) string {
	ip, transport := a.find(unix.NFTA_TRACE_NETWORK_HEADER), a.find(unix.NFTA_TRACE_TRANSPORT_HEADER)
	if len(ip) == 0 {
		return ""
	}
	f, proto := family{v6: ip[0]>>4 == 6}, 9 // where IPv4's protocol is
	if f.v6 {
		proto = 6 // the next header; of one with extensions that is not the transport's
	}
	if int(f.target()+f.addrLen()) > len(ip) {
		return ""
	}
	from, _ := netip.AddrFromSlice(ip[f.source() : f.source()+f.addrLen()])
	to, _ := netip.AddrFromSlice(ip[f.target() : f.target()+f.addrLen()])
	text := from.String() + " > " + to.String()
	if nat.HasPorts(ip[proto]) && len(transport) >= 4 {
		text = fmt.Sprintf("%s > %s", netip.AddrPortFrom(from, binary.BigEndian.Uint16(transport)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(transport[2:])))
	}
	text += " " + spellProto(ip[proto])
	if flags := 13; ip[proto] == unix.IPPROTO_TCP && len(transport) > flags {
		text += tcpFlags(transport[flags])
	}
	return text
}

func spellProto(proto byte) string {
	if name, ok := map[byte]string{1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}[proto]; ok {
		return name
	}
	return fmt.Sprintf("protocol %d", proto)
}

// tcpFlags names those that say where a connection is: RFC 9293 §3.1.
func tcpFlags(flags byte) (words string) {
	for i, name := range []string{"fin", "syn", "rst", "", "ack"} {
		if name != "" && flags&(1<<i) != 0 {
			words += " " + name
		}
	}
	return words
}
