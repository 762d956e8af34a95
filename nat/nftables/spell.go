package nftables

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// spell writes a rule as nft lists it; what isn't understood is a word in
// angle brackets.
func (rs *Ruleset) spell(c *held, r heldRule) string {
	return spellRule(familyOfChain(c.family), r.exprs, func(set string) *heldSet { return rs.sets[place{c.family, c.table, set}] })
}

func spellRule(f family, exprs []heldExpr, set func(name string) *heldSet) string {
	s := &speller{family: f, subjects: map[int]string{}, sizes: map[int]int{}, values: map[int][]byte{}, masks: map[int][]byte{}, set: set}
	for _, e := range exprs {
		s.expr(e)
	}
	// nft leaves out what the next words imply.
	words := slices.Clone(s.words)
	for i := len(words) - 2; i >= 0; i-- {
		for _, implied := range [][2]string{{"meta nfproto ipv4", "ip "}, {"meta nfproto ipv6", "ip6 "}, {"meta l4proto tcp", "tcp "}, {"meta l4proto udp", "udp "}} {
			if words[i] == implied[0] && strings.HasPrefix(words[i+1], implied[1]) {
				words = slices.Delete(words, i, i+1)
				break
			}
		}
	}
	return strings.Join(words, " ")
}

// familyOfChain is by which family's header a chain's rules go; of inet, IPv4's
// until a rule says otherwise.
func familyOfChain(f uint8) family { return family{v6: f == unix.NFPROTO_IPV6} }

// A speller writes a rule. What is in a register it knows by the words for it.
type speller struct {
	family   family
	subjects map[int]string // by offset of the register
	sizes    map[int]int    // of what is there, in bytes
	values   map[int][]byte // of immediates
	masks    map[int][]byte
	proto    byte // of the transport, once a rule has asked for it
	set      func(name string) *heldSet
	words    []string
}

func (s *speller) say(format string, args ...any) {
	s.words = append(s.words, fmt.Sprintf(format, args...))
}

func (s *speller) expr(e heldExpr) {
	a := e.data
	switch e.name {
	case "meta":
		s.meta(a)
	case "payload":
		s.subject(a.number32(unix.NFTA_PAYLOAD_DREG), s.payload(a))
		s.sizes[offset(a.number32(unix.NFTA_PAYLOAD_DREG))] = int(a.number32(unix.NFTA_PAYLOAD_LEN))
	case "ct":
		s.subject(a.number32(unix.NFTA_CT_DREG), spellCt(a))
	case "fib":
		s.subject(a.number32(unix.NFTA_FIB_DREG), spellFib(a))
	case "immediate":
		if v := a.find(unix.NFTA_IMMEDIATE_DATA, unix.NFTA_DATA_VERDICT); v != nil {
			s.say("%s", spellCode(v))
			return
		}
		at := offset(a.number32(unix.NFTA_IMMEDIATE_DREG))
		s.values[at] = a.find(unix.NFTA_IMMEDIATE_DATA, unix.NFTA_DATA_VALUE)
	case "bitwise":
		from, to := offset(a.number32(unix.NFTA_BITWISE_SREG)), offset(a.number32(unix.NFTA_BITWISE_DREG))
		s.subjects[to], s.masks[to] = s.subjects[from], a.find(unix.NFTA_BITWISE_MASK, unix.NFTA_DATA_VALUE)
	case "cmp":
		s.cmp(a)
	case "range":
		s.say("%s %s%s-%s", s.subjects[offset(a.number32(unix.NFTA_RANGE_SREG))], map[bool]string{true: "!= "}[a.number32(unix.NFTA_RANGE_OP) != 0],
			s.value(s.subjects[offset(a.number32(unix.NFTA_RANGE_SREG))], a.find(unix.NFTA_RANGE_FROM_DATA, unix.NFTA_DATA_VALUE)),
			s.value(s.subjects[offset(a.number32(unix.NFTA_RANGE_SREG))], a.find(unix.NFTA_RANGE_TO_DATA, unix.NFTA_DATA_VALUE)))
	case "lookup":
		s.lookup(a)
	case "nat":
		s.nat(a)
	case "masq":
		s.say("masquerade")
	case "redir":
		s.say("redirect")
	case "byteorder": // nft doesn't show it either
	case "dynset":
		s.say("add @%s { %s }", a.find(unix.NFTA_DYNSET_SET_NAME).string(), s.subjects[offset(a.number32(unix.NFTA_DYNSET_SREG_KEY))])
	case "counter", "log", "reject", "notrack":
		s.say("%s", e.name)
	default:
		s.say("<%s>", e.name)
	}
}

// subject says what a register holds from now on.
func (s *speller) subject(reg uint32, words string) {
	if reg != 0 {
		at := offset(reg)
		delete(s.masks, at)
		delete(s.values, at)
		s.subjects[at], s.sizes[at] = words, 4
		if strings.HasSuffix(words, "ifname") {
			s.sizes[at] = unix.IFNAMSIZ
		}
	}
}

func (s *speller) meta(a attrs) {
	names := map[uint32]string{
		unix.NFT_META_IIFNAME: "iifname", unix.NFT_META_OIFNAME: "oifname", unix.NFT_META_IIF: "iif", unix.NFT_META_OIF: "oif",
		unix.NFT_META_MARK: "meta mark", unix.NFT_META_L4PROTO: "meta l4proto", unix.NFT_META_NFPROTO: "meta nfproto",
		unix.NFT_META_PKTTYPE: "meta pkttype", unix.NFT_META_SKUID: "meta skuid", unix.NFT_META_NFTRACE: "meta nftrace",
		unix.NFT_META_IIFGROUP: "iifgroup", unix.NFT_META_OIFGROUP: "oifgroup", unix.NFT_META_PROTOCOL: "meta protocol",
	}
	name := names[a.number32(unix.NFTA_META_KEY)]
	if name == "" {
		name = "<meta>"
	}
	if from := a.number32(unix.NFTA_META_SREG); from != 0 {
		s.say("%s set %s", name, s.operand(name, from))
		return
	}
	s.subject(a.number32(unix.NFTA_META_DREG), name)
}

// operand is a value that was put into a register, or what was looked up.
func (s *speller) operand(subject string, reg uint32) string {
	if v, ok := s.values[offset(reg)]; ok {
		return s.value(subject, v)
	}
	return s.subjects[offset(reg)]
}

func (s *speller) payload(a attrs) string {
	base, at, size := a.number32(unix.NFTA_PAYLOAD_BASE), a.number32(unix.NFTA_PAYLOAD_OFFSET), a.number32(unix.NFTA_PAYLOAD_LEN)
	f := s.family
	switch {
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && size <= f.addrLen() && at == f.source():
		return f.String() + " saddr"
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && size <= f.addrLen() && at == f.target():
		return f.String() + " daddr"
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && size == 1 && at == 9 && !f.v6:
		return "ip protocol"
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && size == 2 && at <= 2:
		proto := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[s.proto]
		if proto == "" {
			proto = "th"
		}
		return proto + [...]string{" sport", "", " dport"}[at]
	}
	return fmt.Sprintf("@%s,%d,%d", [...]string{"ll", "nh", "th", "ih", "tun"}[min(base, 4)], at*8, size*8)
}

func spellCt(a attrs) string {
	names := map[uint32]string{
		unix.NFT_CT_STATE: "ct state", unix.NFT_CT_STATUS: "ct status", unix.NFT_CT_DIRECTION: "ct direction", unix.NFT_CT_MARK: "ct mark",
		unix.NFT_CT_SRC: "saddr", unix.NFT_CT_SRC_IP: "ip saddr", unix.NFT_CT_SRC_IP6: "ip6 saddr",
		unix.NFT_CT_DST: "daddr", unix.NFT_CT_DST_IP: "ip daddr", unix.NFT_CT_DST_IP6: "ip6 daddr",
	}
	name := names[a.number32(unix.NFTA_CT_KEY)]
	switch dir := a.find(unix.NFTA_CT_DIRECTION); {
	case name == "":
		return "<ct>"
	case len(dir) == 1:
		return "ct " + [...]string{"original ", "reply "}[dir[0]&1] + name
	}
	return name
}

func spellFib(a attrs) string {
	words := []string{}
	for _, f := range []struct {
		flag uint32
		name string
	}{{unix.NFTA_FIB_F_SADDR, "saddr"}, {unix.NFTA_FIB_F_DADDR, "daddr"}, {unix.NFTA_FIB_F_MARK, "mark"}, {unix.NFTA_FIB_F_IIF, "iif"}, {unix.NFTA_FIB_F_OIF, "oif"}} {
		if a.number32(unix.NFTA_FIB_FLAGS)&f.flag != 0 {
			words = append(words, f.name)
		}
	}
	result := a.number32(unix.NFTA_FIB_RESULT)
	return "fib " + strings.Join(words, " . ") + " " + [...]string{"", "oif", "oifname", "type"}[min(result, 3)]
}

func (s *speller) cmp(a attrs) {
	at := offset(a.number32(unix.NFTA_CMP_SREG))
	subject, value := s.subjects[at], []byte(a.find(unix.NFTA_CMP_DATA, unix.NFTA_DATA_VALUE))
	op := a.number32(unix.NFTA_CMP_OP)
	sign := map[uint32]string{unix.NFT_CMP_NEQ: "!= ", unix.NFT_CMP_LT: "< ", unix.NFT_CMP_LTE: "<= ", unix.NFT_CMP_GT: "> ", unix.NFT_CMP_GTE: ">= "}[op]
	switch mask := s.masks[at]; {
	case strings.HasSuffix(subject, "addr"):
		s.say("%s %s%s", subject, sign, s.prefix(value, mask))
		return
	case len(mask) > 0 && bytes.Equal(value, make([]byte, len(value))):
		// Any of the bits, or with "==" none.
		if op == unix.NFT_CMP_EQ {
			sign = "! "
		} else {
			sign = ""
		}
		value = mask
	case len(mask) > 0:
		s.say("%s and %#x", subject, number(mask))
		subject, sign = "", map[bool]string{true: "== ", false: "!= "}[op == unix.NFT_CMP_EQ]
	}
	switch {
	case subject == "meta l4proto" || subject == "ip protocol":
		s.proto = value[0]
	case subject == "meta nfproto":
		s.family = familyOfChain(value[0])
	}
	s.say("%s", strings.TrimSpace(subject+" "+sign+s.value(subject, value)))
}

// prefix writes an address, or the part of one that is compared.
func (s *speller) prefix(value, mask []byte) string {
	bits := len(value) * 8
	if len(mask) > 0 {
		bits = 0
		for _, b := range mask {
			for ; b&0x80 != 0; b <<= 1 {
				bits++
			}
		}
	}
	size := 4
	if s.family.v6 {
		size = 16
	}
	full := make([]byte, size)
	copy(full, value)
	addr, _ := netip.AddrFromSlice(full)
	if bits == size*8 {
		return addr.String()
	}
	return netip.PrefixFrom(addr, bits).String()
}

// value writes one that a subject is compared with, or may be.
func (s *speller) value(subject string, v []byte) string {
	switch {
	case len(v) == 0:
		return "?"
	case strings.HasSuffix(subject, "ifname"):
		name := string(bytes.TrimRight(v, "\x00"))
		if len(v) < unix.IFNAMSIZ {
			name += "*"
		}
		return fmt.Sprintf("%q", name)
	case strings.HasSuffix(subject, "addr"):
		if a, ok := netip.AddrFromSlice(v); ok {
			return a.String()
		}
	case subject == "ct state":
		return bits(number(v), map[uint32]string{1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked"})
	case subject == "ct status":
		return bits(number(v), map[uint32]string{1: "expected", 2: "seen-reply", 4: "assured", 8: "confirmed", 16: "snat", 32: "dnat"})
	case subject == "ct direction":
		return [...]string{"original", "reply"}[v[0]&1]
	case strings.HasSuffix(subject, "type"):
		if name, ok := map[uint32]string{unix.RTN_UNICAST: "unicast", unix.RTN_LOCAL: "local", unix.RTN_BROADCAST: "broadcast", unix.RTN_MULTICAST: "multicast"}[number(v)]; ok {
			return name
		}
	case subject == "meta nfproto":
		return map[byte]string{unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"}[v[0]]
	case strings.HasSuffix(subject, "proto") || subject == "ip protocol":
		if name, ok := map[byte]string{1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}[v[0]]; ok {
			return name
		}
		return fmt.Sprint(v[0])
	case strings.HasSuffix(subject, "port"):
		return fmt.Sprint(binary.BigEndian.Uint16(append([]byte{0, 0}, v...)[len(v):]))
	case strings.HasSuffix(subject, "mark"):
		return fmt.Sprintf("0x%08x", number(v))
	}
	return fmt.Sprintf("0x%x", v)
}

// number is one in the host's byte order, as marks and states are.
func number(v []byte) uint32 {
	return binary.NativeEndian.Uint32(append(bytes.Clone(v), 0, 0, 0, 0))
}

// bits names those that are set.
func bits(v uint32, names map[uint32]string) string {
	var words []string
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if v&bit == 0 {
			continue
		}
		name := names[bit]
		if name == "" {
			name = fmt.Sprintf("%#x", bit)
		}
		words = append(words, name)
	}
	return strings.Join(words, ",")
}

func (s *speller) lookup(a attrs) {
	name := a.find(unix.NFTA_LOOKUP_SET).string()
	at := offset(a.number32(unix.NFTA_LOOKUP_SREG))
	subject := s.subjects[at]
	words := "@" + name
	if set := s.set(name); set != nil {
		if strings.HasPrefix(name, "__") {
			words = s.anonymous(subject, set)
		}
		for next := at + (s.sizes[at]+3)&^3; next-at < set.size && s.sizes[next] > 0; next += (s.sizes[next] + 3) &^ 3 {
			subject += " . " + s.subjects[next]
		}
	}
	to := a.find(unix.NFTA_LOOKUP_DREG)
	switch {
	case to == nil && a.number32(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0:
		s.say("%s != %s", subject, words)
	case to == nil:
		s.say("%s %s", subject, words)
	case a.number32(unix.NFTA_LOOKUP_DREG) == unix.NFT_REG_VERDICT:
		s.say("%s vmap %s", subject, words)
	default:
		s.subject(a.number32(unix.NFTA_LOOKUP_DREG), subject+" map "+words)
	}
}

// anonymous writes what is in a set that belongs to its rule.
func (s *speller) anonymous(subject string, set *heldSet) string {
	const most = 8
	var words []string
	for _, e := range set.elements {
		word := s.value(subject, []byte(e.key))
		switch {
		case len(set.fields) > 0:
			return "{ … }"
		case e.last && len(words) == 0:
			continue
		case e.last:
			words[len(words)-1] += "-…"
			continue
		}
		if v := e.value.find(unix.NFTA_DATA_VERDICT); v != nil {
			word += " : " + spellCode(v)
		}
		words = append(words, word)
	}
	if len(words) > most {
		words = append(words[:most], "…")
	}
	return "{ " + strings.Join(words, ", ") + " }"
}

func (s *speller) nat(a attrs) {
	words := [...]string{"snat", "dnat"}[a.number32(unix.NFTA_NAT_TYPE)&1]
	if reg := a.number32(unix.NFTA_NAT_REG_ADDR_MIN); reg != 0 {
		words += " to " + s.operand("addr", reg)
	}
	if reg := a.number32(unix.NFTA_NAT_REG_PROTO_MIN); reg != 0 {
		words += ":" + s.operand("port", reg)
	}
	s.say("%s", words)
}

// spellCode writes any verdict.
func spellCode(v attrs) string {
	chain := v.find(unix.NFTA_VERDICT_CHAIN).string()
	switch code := int32(v.number32(unix.NFTA_VERDICT_CODE)); code {
	case 0:
		return "drop"
	case 1:
		return "accept"
	case unix.NFT_JUMP:
		return "jump " + chain
	case unix.NFT_GOTO:
		return "goto " + chain
	case unix.NFT_RETURN:
		return "return"
	case unix.NFT_CONTINUE:
		return "continue"
	default:
		return fmt.Sprintf("<verdict %d>", code)
	}
}
