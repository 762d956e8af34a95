package iptables

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/extip/extip/nat"
)

// A judge leads a packet through the rules of a built-in chain.
type judge struct {
	rules    *Ruleset
	listing  listing
	table    string
	base     string
	priority int
	held     held
	packet   nat.Packet
	// doubt says that a rule came by which may, or may not, have decided.
	doubt  bool
	ruling *nat.Ruling
}

// An outcome is what becomes of a packet at the end of a chain or rule.
type outcome int

const (
	passes  outcome = iota // on to the next rule, or chain
	returns                // back to where the chain was called
	ends                   // decided
)

// maxDepth bounds how deep chains are followed; the kernel refuses loops.
const maxDepth = 64

func (j *judge) chain(name string, depth int) outcome {
	if depth > maxDepth {
		return passes
	}
	for i, rule := range j.held.chains[name] {
		switch o := j.rule(name, i, rule, depth); o {
		case ends:
			return ends
		case returns:
			return passes
		}
	}
	return passes
}

func (j *judge) rule(chain string, at int, rule string, depth int) outcome {
	words := j.rules.split(rule)
	end := slices.IndexFunc(words, func(w string) bool { return w == "-j" || w == "-g" })
	if end < 0 || end+1 >= len(words) {
		return passes // counts only
	}
	if isOurs(chain) && slices.ContainsFunc(words[:end], func(w string) bool { return w == "hashlimit" || w == "connlimit" }) {
		return passes // whoever is beyond a limit is so for a moment
	}
	fit := j.matches(words[:end])
	if fit == no {
		return passes
	}
	target, options := words[end+1], words[end+2:]
	if fit == maybe {
		j.doubt = j.doubt || !harmless(target)
		return passes
	}
	value := func(option string) string {
		if i := slices.Index(options, option); i >= 0 && i+1 < len(options) {
			return options[i+1]
		}
		return ""
	}
	switch target {
	case "ACCEPT":
		return ends
	case "DROP", "REJECT":
		return j.decide(chain, at, nat.Ruling{Drop: true})
	case "RETURN":
		return returns
	case "DNAT", "SNAT":
		to, err := addrOf(value("--to-destination") + value("--to-source"))
		if err != nil {
			return ends // the port only
		}
		return j.decide(chain, at, nat.Ruling{To: to})
	case "MASQUERADE", "REDIRECT":
		return j.decide(chain, at, nat.Ruling{})
	case "MARK":
		j.mark(value("--set-xmark"))
		return passes
	}
	if _, ours := j.held.chains[target]; ours {
		o := j.chain(target, depth+1)
		if o == passes && words[end] == "-g" {
			return returns
		}
		return o
	}
	if !harmless(target) {
		j.doubt = true
	}
	return passes
}

// harmless tells whether a target lets the packet go on.
func harmless(target string) bool {
	return slices.Contains([]string{"LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "CT", "NOTRACK", "TRACE", "CHECKSUM", "CLASSIFY", "TOS", "DSCP", "SET", "ACCOUNT"}, target)
}

// addrOf reads the first address of a translation's target.
func addrOf(value string) (netip.Addr, error) {
	value, _, _ = strings.Cut(value, "-")
	if ap, err := netip.ParseAddrPort(value); err == nil {
		return ap.Addr(), nil
	}
	return netip.ParseAddr(value)
}

func (j *judge) mark(xmark string) {
	value, mask, _ := strings.Cut(xmark, "/")
	v, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		return
	}
	m, err := strconv.ParseUint(mask, 0, 32)
	if err != nil {
		m = 0xffffffff
	}
	j.packet.Mark = j.packet.Mark&^uint32(m) ^ uint32(v)
}

func isOurs(chain string) bool {
	return strings.HasPrefix(chain, ourPrefix) || strings.HasPrefix(chain, chainForward)
}

func (j *judge) decide(chain string, at int, ruling nat.Ruling) outcome {
	ruling.Tool, ruling.Table, ruling.Base, ruling.Chain = j.listing.tool, j.table, j.base, chain
	ruling.Priority = j.priority
	ruling.Ours = isOurs(chain)
	if ruling.Rule == "" {
		rule := j.held.chains[chain][at]
		ruling.Rule = "-A " + chain + " " + rule
		ruling.Undo = nat.Shell(append([]string{j.listing.tool, "-t", j.table, "-D", chain}, j.rules.split(rule)...)...)
	}
	j.ruling = &ruling
	return ends
}

// A match is whether a packet has what options ask for.
type match int

const (
	yes match = iota
	no
	maybe
)

func matching(ok bool) match {
	if ok {
		return yes
	}
	return no
}

// matches tells whether a packet has all that the options of a rule ask for.
func (j *judge) matches(words []string) match {
	result := yes
	for i := 0; i < len(words); i++ {
		negated := words[i] == "!"
		if negated {
			i++
		}
		var values []string
		option := words[min(i, len(words)-1)]
		for i+1 < len(words) && words[i+1] != "!" && !strings.HasPrefix(words[i+1], "-") {
			i++
			values = append(values, words[i])
		}
		fit := j.option(option, strings.Join(values, " "))
		if negated && fit != maybe {
			fit = matching(fit == no)
		}
		switch fit {
		case no:
			return no
		case maybe:
			result = maybe
		}
	}
	return result
}

func (j *judge) option(option, value string) match {
	p := j.packet
	switch option {
	case "-s":
		if !p.Src.IsValid() {
			return maybe
		}
		return matching(inside(p.Src, value))
	case "-d":
		return matching(inside(p.Dst, value))
	case "-i":
		return matching(sameInterface(p.In.Name, value))
	case "-o":
		return matching(sameInterface(p.Out.Name, value))
	case "-p":
		return j.protocol(value)
	case "--dport", "--dports":
		return j.ports(value)
	case "--ctstate", "--state":
		return matching(j.state(strings.Split(value, ",")))
	case "--ctstatus":
		if value != "CONFIRMED" {
			return maybe
		}
		return matching(p.Established || p.Reply)
	case "--ctdir":
		return matching((value == "REPLY") == p.Reply)
	case "--ctorigdst":
		if !p.OrigDst.IsValid() {
			return maybe
		}
		return matching(inside(p.OrigDst, value))
	case "--mark":
		return j.hasMark(value)
	case "--src-type":
		return j.addrType(p.Src, value)
	case "--dst-type":
		return j.addrType(p.Dst, value)
	case "--comment":
		return yes
	case "-m":
		if slices.Contains([]string{"comment", "conntrack", "state", "tcp", "udp", "multiport", "addrtype", "mark"}, value) {
			return yes
		}
	}
	return maybe
}

func (j *judge) protocol(value string) match {
	numbers := map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58, "icmpv6": 58, "sctp": 132}
	want, ok := numbers[value]
	switch {
	case value == "all":
		return yes
	case !ok || j.packet.Proto == 0:
		return maybe
	}
	return matching(j.packet.Proto == want)
}

// ports reads what --dport and --dports take.
func (j *judge) ports(value string) match {
	if j.packet.Port == 0 {
		return maybe
	}
	for _, part := range strings.Split(value, ",") {
		first, last, ranged := strings.Cut(part, ":")
		if !ranged {
			last = first
		}
		from, err := strconv.ParseUint("0"+first, 10, 16)
		if err != nil {
			return maybe
		}
		to, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			to = 65535
		}
		if uint64(j.packet.Port) >= from && uint64(j.packet.Port) <= to {
			return yes
		}
	}
	return no
}

func (j *judge) state(states []string) bool {
	p := j.packet
	for _, s := range states {
		established := p.Established || p.Reply
		if s == "NEW" && !established || s == "ESTABLISHED" && established || s == "DNAT" && p.DNAT || s == "SNAT" && p.SNAT {
			return true
		}
	}
	return false
}

func (j *judge) hasMark(value string) match {
	value, mask, _ := strings.Cut(value, "/")
	v, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		return maybe
	}
	m, err := strconv.ParseUint(mask, 0, 32)
	if err != nil {
		m = 0xffffffff
	}
	return matching(j.packet.Mark&uint32(m) == uint32(v))
}

func (j *judge) addrType(a netip.Addr, value string) match {
	if value != "LOCAL" || j.packet.Local == nil || !a.IsValid() {
		return maybe
	}
	return matching(j.packet.Local(a))
}

func sameInterface(name, pattern string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "+"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return name == pattern
}

// inside tells whether an address is in a prefix or an address/mask pair,
// whose mask need not be contiguous.
func inside(a netip.Addr, spec string) bool {
	if p, err := netip.ParsePrefix(spec); err == nil {
		return p.Contains(a)
	}
	base, mask, ok := strings.Cut(spec, "/")
	b, err := netip.ParseAddr(base)
	if err != nil {
		return false
	}
	if !ok {
		return a == b
	}
	m, err := netip.ParseAddr(mask)
	if err != nil || a.BitLen() != b.BitLen() || a.BitLen() != m.BitLen() {
		return false
	}
	value, bits := b.AsSlice(), m.AsSlice()
	for i, x := range a.AsSlice() {
		if (x^value[i])&bits[i] != 0 {
			return false
		}
	}
	return true
}
