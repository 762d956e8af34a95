package nftables

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// The guard's sets. A container has an element in the first, one for each of
// its addresses in the next two, and one for each IPv6 address in the fourth;
// or one in the last only.
const (
	setMACs    = "macs"    // link, MAC that it may send from
	setAddrs   = "addrs"   // link, IPv4 address
	setAddrs6  = "addrs6"  // link, IPv6 address
	setTargets = "targets" // link, IPv6 address that it may speak for
	setTrusted = "trusted" // links that may send whatever they like
)

// The guard's chains. What a port sends comes to chainPort, and has passed
// when it leaves one of the others with an accept.
const (
	chainPort        = "port"
	chainOwn         = "port-own" // from the port's own MAC
	chainIP          = "port-ip"
	chainIP6         = "port-ip6"
	chainICMP6       = "port-icmp6"
	chainTarget      = "port-target"
	chainUnspecified = "port-unspecified"
	chainARP         = "port-arp"
)

// beforeBridge is the priority of the guard: before others translate on
// bridges (NF_BR_PRI_NAT_DST_BRIDGED, -300), and before br_netfilter shows the
// packets to the rules for IP.
const beforeBridge = -310

// keyTarget is a link and what stands where neighbour discovery has its target.
// It is a number to nft: a name for that place came with a later version, and
// would not be understood by earlier ones.
var keyTarget = nftables.TypeIFName.Name + joined + nftables.TypeInteger.Name

// guardTable is the guard's table without ports; framed, with its rules.
func guardTable(framed bool) *table {
	named := nftables.TypeIFName.Name + joined
	t := &table{sets: map[string]*set{
		setMACs:    newSet(named+nftables.TypeEtherAddr.Name, ""),
		setAddrs:   newSet(named+nftables.TypeIPAddr.Name, ""),
		setAddrs6:  newSet(named+nftables.TypeIP6Addr.Name, ""),
		setTargets: newSet(keyTarget, ""),
		setTrusted: newSet(nftables.TypeIFName.Name, ""),
	}}
	if framed {
		t.chains = guardChains()
	}
	return t
}

// fillPort adds a port's elements.
func fillPort(t *table, p nat.Port) {
	link := string(ifname(p.Link))
	if p.Trusted {
		t.sets[setTrusted].elements[link] = ""
		return
	}
	t.sets[setMACs].elements[link+string(p.MAC)+"\x00\x00"] = "" // filled up to registers
	add6 := func(a netip.Addr) {
		t.sets[setAddrs6].elements[link+raw(a)] = ""
		t.sets[setTargets].elements[link+raw(a)] = ""
	}
	for _, a := range p.Addresses {
		if a.Is4() {
			t.sets[setAddrs].elements[link+raw(a)] = ""
			continue
		}
		add6(a)
		add6(linkLocal(p.MAC))
	}
}

// linkLocal is the address that a kernel gives an interface by its MAC: RFC
// 4291, appendix A.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// guardChains is the same for any number of ports. The expressions are those
// that nft makes of the rules as it lists them.
func guardChains() map[string]chain {
	f := bridging
	refuse := f.rule(&expr.Counter{}, drop())
	refuseIf := func(parts ...any) rule { return f.rule(append(parts, &expr.Counter{}, drop())...) }
	hooked := func(hook uint32, rules ...rule) chain {
		return chain{chainHook(hook), rules}
	}
	return map[string]chain{
		"prerouting": hooked(nfBridgePreRouting,
			f.rule(isPort(), jump(unix.NFT_JUMP, chainPort))),
		// Frames to the addresses that bridges keep to themselves (IEEE
		// 802.1D §7.12.6) come this way. The bridge would learn from them
		// where a MAC is, and the host takes them for its own.
		"input": hooked(nfBridgeLocalIn,
			refuseIf(ether(0, 6), masked([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xf0}), equals([]byte{1, 0x80, 0xc2, 0, 0, 0}), isPort())),
		chainPort: {rules: []rule{
			f.rule(linkAnd(ether(6, 6)), contains(setMACs), jump(unix.NFT_GOTO, chainOwn)),
			f.rule(meta(expr.MetaKeyIIFNAME), contains(setTrusted), accept()),
			refuse,
		}},
		// Whatever else there is, tags of VLANs among it, could hide what
		// is forbidden from these rules, but not from who receives it.
		chainOwn: {rules: []rule{
			f.rule(etherType(unix.ETH_P_IP), jump(unix.NFT_GOTO, chainIP)),
			f.rule(etherType(unix.ETH_P_IPV6), jump(unix.NFT_GOTO, chainIP6)),
			f.rule(etherType(unix.ETH_P_ARP), jump(unix.NFT_GOTO, chainARP)),
			refuse,
		}},
		chainIP: {rules: []rule{
			refuseIf(protocol(unix.ETH_P_IP), linkAnd(network(12, 4)), except(setAddrs)),
			refuseIf(udpTo(68)), // DHCP clients: RFC 2131 §4.1
			refuseIf(etherType(unix.ETH_P_IP), l4proto(unix.IPPROTO_ICMP), transport(0, 1), equals([]byte{5})), // redirect: RFC 792
			f.rule(accept()),
		}},
		chainIP6: {rules: []rule{
			f.rule(protocol(unix.ETH_P_IPV6), linkAnd(network(8, 16)), except(setAddrs6), jump(unix.NFT_GOTO, chainUnspecified)),
			f.rule(l4proto(unix.IPPROTO_ICMPV6), jump(unix.NFT_GOTO, chainICMP6)),
			refuseIf(udpTo(546)), // DHCP clients: RFC 8415 §7.2
			f.rule(accept()),
		}},
		// Types of RFC 4861 §4.
		chainICMP6: {rules: []rule{
			f.rule(icmp6(136), jump(unix.NFT_GOTO, chainTarget)), // neighbour advertisement
			refuseIf(icmp6(134)), // router advertisement
			refuseIf(icmp6(137)), // redirect
			f.rule(accept()),
		}},
		// On its own, so that nft of any version lists a number here.
		chainTarget: {rules: []rule{
			f.rule(linkAnd(transport(8, 16)), contains(setTargets), accept()),
			refuse,
		}},
		// Who has no address yet asks whether its own is free (RFC 4862
		// §5.4.2), and says which groups it joins (RFC 3810 §5.2.13).
		chainUnspecified: {rules: []rule{
			f.rule(unspecified(), icmp6Type(135), jump(unix.NFT_GOTO, chainTarget)),
			f.rule(unspecified(), icmp6Type(143), accept()),
			refuse,
		}},
		// RFC 826; the second rule is about probes: RFC 5227 §1.1.
		chainARP: {rules: []rule{
			f.rule(etherType(unix.ETH_P_ARP),
				network(0, 4), equals([]byte{0, 1, 8, 0}), network(4, 2), equals([]byte{6, 4}),
				linkAnd(network(8, 6)), contains(setMACs), linkAnd(network(14, 4)), contains(setAddrs), accept()),
			f.rule(etherType(unix.ETH_P_ARP), network(6, 2), equals([]byte{0, 1}), network(14, 4), equals(make([]byte, 4)),
				linkAnd(network(24, 4)), contains(setAddrs), accept()),
			refuse,
		}},
	}
}

// Hooks of bridges: linux/netfilter_bridge.h.
const (
	nfBridgePreRouting = 0
	nfBridgeLocalIn    = 1
)

func chainHook(number uint32) hook {
	return hook{nftables.ChainTypeFilter, number, beforeBridge, nftables.ChainPolicyAccept}
}

func isPort() []expr.Any {
	return []expr.Any{meta(expr.MetaKeyIIFNAME), equals([]byte(nat.PortPrefix))}
}

// linkAnd loads the name of the link and, behind it, what load does.
func linkAnd(load *expr.Payload) []expr.Any {
	load.DestRegister = register + 1
	return []expr.Any{meta(expr.MetaKeyIIFNAME), load}
}

func ether(offset, size uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseLLHeader, Offset: offset, Len: size}
}

func network(offset, size uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
}

func transport(offset, size uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size}
}

// etherType is the type that stands in the frame: 802.1Q if it has a tag.
func etherType(t uint16) []expr.Any { return []expr.Any{ether(12, 2), equals(big16(t))} }

// protocol is the type as the kernel keeps it.
func protocol(t uint16) []expr.Any { return []expr.Any{meta(expr.MetaKeyPROTOCOL), equals(big16(t))} }

func l4proto(p byte) []expr.Any { return []expr.Any{meta(expr.MetaKeyL4PROTO), equals([]byte{p})} }

func udpTo(port uint16) []expr.Any {
	return append(l4proto(unix.IPPROTO_UDP), transport(2, 2), equals(big16(port)))
}

func icmp6Type(t byte) []expr.Any {
	return append(l4proto(unix.IPPROTO_ICMPV6), transport(0, 1), equals([]byte{t}))
}

func icmp6(t byte) []expr.Any { return append(etherType(unix.ETH_P_IPV6), icmp6Type(t)...) }

func unspecified() []expr.Any {
	return append(protocol(unix.ETH_P_IPV6), network(8, 16), equals(make([]byte, 16)))
}

// except matches what a set does not contain.
func except(name string) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: name, Invert: true}
}

func jump(how expr.VerdictKind, chain string) expr.Any { return &expr.Verdict{Kind: how, Chain: chain} }

func big16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// targetType tells nft what a key of keyTarget is: a list of types, lengths
// and contents as nft keeps it with a set (set_make_key of its netlink.c, and
// NFTNL_UDATA_SET_KEY_TYPEOF of libnftnl). Its numbers are those of nft's
// enums.
func targetType() []byte {
	number := func(kind byte, n uint32) []byte { return append([]byte{kind, 4}, native(n)...) }
	nest := func(kind byte, parts ...[]byte) []byte {
		var inner []byte
		for _, p := range parts {
			inner = append(inner, p...)
		}
		return append([]byte{kind, byte(len(inner))}, inner...)
	}
	const (
		keyTypeof                           = 3
		exprType, exprData                  = 0, 1
		concatExpr, metaExpr, payloadExpr   = 13, 9, 7
		metaKey, iifname                    = 0, 6
		header, field, base, offset, length = 0, 1, 2, 3, 4
		transportBase                       = 3
	)
	link := nest(0, number(exprType, metaExpr), nest(exprData, number(metaKey, iifname)))
	target := nest(1, number(exprType, payloadExpr), nest(exprData,
		number(header, 0), number(field, 0), number(base, transportBase), number(offset, 8*8), number(length, 16*8)))
	return nest(keyTypeof, number(exprType, concatExpr), nest(exprData, link, target))
}

// spellSender writes a key that begins with a link's name.
func spellSender(key string) string {
	link, sender := strings.TrimRight(key[:unix.IFNAMSIZ], "\x00"), key[unix.IFNAMSIZ:]
	if len(sender) == 8 {
		return link + joined + net.HardwareAddr(sender[:6]).String()
	}
	if a, ok := netip.AddrFromSlice([]byte(sender)); ok {
		return link + joined + a.String()
	}
	return fmt.Sprintf("%s%s%x", link, joined, sender)
}
