package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/extip/extip/nat"
)

// The chains. Their names never change: a later version finds by them what
// an earlier one left in the kernel.
//
//	nat     PREROUTING, OUTPUT ─ XIP-PRE ─ XIP-D ─ …      external → container
//	        POSTROUTING ─ XIP-POST ┬ XIP-G ─ …            hide the client
//	                               ├ XIP-HAIRPIN ─ XIP-S  within a bridge
//	                               └ XIP-S ─ …            container → external
//	mangle  PREROUTING ─ XIP-EARLY ┬ XIP-F ─ …            networks' marks; filters
//	                               ├ XIP-L ─ …            limits of what others open
//	                               └ XIP-O ─ …            and of what containers do
//	        FORWARD ─ XIP-ISOLATE                         what must not pass
//	filter  FORWARD ─ EXTIP-FORWARD ─ EXTIP-FORWARD-R ─ … what may pass, what is rejected
const (
	chainPre         = "XIP-PRE"
	chainPost        = "XIP-POST"
	chainHairpin     = "XIP-HAIRPIN"
	chainDestination = "XIP-D"
	chainSource      = "XIP-S"
	chainGateway     = "XIP-G"
	chainEarly       = "XIP-EARLY"
	chainIsolate     = "XIP-ISOLATE"
	chainForward     = "EXTIP-FORWARD"
)

// ourPrefix is how the names of our chains in nat and mangle begin. In filter
// only the one chain is ours.
const ourPrefix = "XIP-"

const (
	tableNat    = "nat"
	tableMangle = "mangle"
	tableFilter = "filter"
)

// mark is the comment of rules that belong to no network or endpoint; those
// that do carry it with their owner's id.
const mark = "extip"

func owned(id string) string { return mark + ":" + id }

// rule spells a rule as iptables-save does, without the leading "-A CHAIN".
// matches may be empty.
func rule(matches, comment, target string) string {
	// iptables-save quotes whatever is not plainly a word.
	if strings.Contains(comment, ":") {
		comment = `"` + comment + `"`
	}
	r := "-m comment --comment " + comment + " -j " + target
	if matches != "" {
		r = matches + " " + r
	}
	return r
}

// A family is the part of the rules' spelling that differs between IPv4 and IPv6.
type family struct{ v6 bool }

func familyOf(a netip.Addr) family { return family{v6: a.Is6()} }

// String is what the tools call the family: "" or "6", as in ip6tables.
func (f family) String() string {
	if f.v6 {
		return "6"
	}
	return ""
}

// lowByte is the address whose last byte is b and all others are zero.
func (f family) lowByte(b byte) string {
	switch {
	case !f.v6:
		return "0.0.0." + strconv.Itoa(int(b))
	case b == 0:
		return "::"
	}
	return "::" + strconv.FormatUint(uint64(b), 16)
}

// subnet is a network's subnet of the family; invalid if it has none.
func (f family) subnet(n nat.Network) netip.Prefix {
	for _, p := range n.Subnets {
		if familyOf(p.Addr()) == f {
			return p.Masked()
		}
	}
	return netip.Prefix{}
}

// A jump leads from a built-in chain into one of ours.
type jump struct {
	from, to string
	// first asks for a place before everybody else's rules. Without it any
	// place does.
	first bool
	// after are the chains whose jumps stay before ours, wherever they are.
	after []string
}

func (j jump) rule() string { return rule("", mark, j.to) }

// natJumps must come first: Docker's rule for a port published on 0.0.0.0
// takes every local address, the external ones included, and its masquerade
// would give containers the host's address.
func natJumps() []jump {
	return []jump{
		{from: "PREROUTING", to: chainPre, first: true},
		{from: "OUTPUT", to: chainPre, first: true},
		{from: "POSTROUTING", to: chainPost, first: true},
	}
}

// isolateJumps may stand anywhere: nothing else accepts in mangle, and a drop
// is final wherever it stands. In filter it would matter, since container
// engines keep inserting accepts above it.
func isolateJumps() []jump { return []jump{{from: "FORWARD", to: chainIsolate}} }

// earlyJumps come before an accept that somebody else may have there.
func earlyJumps() []jump { return []jump{{from: "PREROUTING", to: chainEarly, first: true}} }

// preRules translate external destinations, of forwarded packets as well as
// of local ones: an address that is routed to this host need not be local.
func preRules() []string { return []string{rule("", mark, chainDestination)} }

// hairpinRules give a container that reaches a mapping on its own bridge the
// identity it has outside; answers would otherwise bypass the translation.
func hairpinRules() []string {
	return []string{rule("", mark, chainSource), rule("", mark, "MASQUERADE")}
}

const wasMapped = "-m conntrack --ctstate DNAT"

// postRules choose the source address of packets from or to the networks.
// They go by step, not by network: a packet from one network to another must
// pass the receiver's gateway rule before the sender's own translation.
func postRules(f family, networks []nat.Network) []string {
	var gateway, sameBridge, source, local, rest []string
	for _, n := range networks {
		if n.Internal {
			continue
		}
		by, from, out := owned(n.ID), "-s "+f.subnet(n).String(), "-o "+n.Bridge
		gateway = append(gateway, rule(out+" "+wasMapped, by, chainGateway))
		sameBridge = append(sameBridge,
			rule(from+" "+out+" "+wasMapped, by, chainHairpin),
			rule(from+" "+out, by, "RETURN")) // seen only with br_netfilter
		source = append(source, rule(from, by, chainSource))
		// A local client may have picked an address that the container
		// cannot answer to, such as an external one.
		local = append(local, rule(out+" -m addrtype --src-type LOCAL "+wasMapped, by, "MASQUERADE"))
		rest = append(rest, rule(from, by, "MASQUERADE"))
	}
	return slices.Concat(gateway, sameBridge, source, local, rest)
}

// isolateRules drop what must not pass a network's bridge.
func isolateRules(networks []nat.Network) []string {
	var rules []string
	for _, n := range networks {
		by, in, out := owned(n.ID), "-i "+n.Bridge, "-o "+n.Bridge
		if n.Internal {
			rules = append(rules,
				rule(in+" ! "+out, by, "DROP"),
				rule("! "+in+" "+out, by, "DROP"))
			continue
		}
		rules = append(rules,
			// What belongs to no connection is not translated: it
			// would leave with the container's own address.
			rule(in+" -m conntrack --ctstate INVALID", by, "DROP"),
			// Nobody reaches a container but by its external address.
			rule("! "+in+" "+out+" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT", by, "DROP"))
	}
	return rules
}

// markRules mark what comes from the networks that have a mark.
func markRules(networks []nat.Network) []string {
	var rules []string
	for _, n := range networks {
		if n.Mark != 0 {
			rules = append(rules, rule("-i "+n.Bridge, owned(n.ID), fmt.Sprintf("MARK --set-xmark %#x/0xffffffff", n.Mark)))
		}
	}
	return rules
}
