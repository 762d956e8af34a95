package iptables

import (
	"fmt"
	"net/netip"

	"github.com/extip/extip/nat"
)

// Limits. Trees find the chain of a limited address, by where a packet goes and
// by whence it comes; its rules drop what goes beyond.
//
// How many are open, the kernel counts for each rule by itself. It goes through
// all of them for that, at most once per tick of its clock; there is nothing to
// remember a full address by, as with nftables, so that only a rate bounds what a
// flood costs. And it begins anew with the rule: that of iptables-nft stays while
// its chain does, but iptables-legacy makes all rules of a table anew whenever one
// changes.
const (
	chainLimitIn  = "XIP-L"
	chainLimitOut = "XIP-O"
)

func limitTrees() []treeKind {
	limited := func(m nat.Mapping) bool { return m.Limit != (nat.Limit{}) }
	return []treeKind{
		{
			table: tableMangle, root: chainLimitIn, match: "-d",
			key:   func(m nat.Mapping) netip.Addr { return only(limited(m), m.External) },
			rules: func(m nat.Mapping) []string { return limitRules(m, "in", "dst", "daddr") },
		},
		{
			table: tableMangle, root: chainLimitOut, match: "-s", once: true,
			key:   func(m nat.Mapping) netip.Addr { return only(limited(m), m.Internal) },
			rules: func(m nat.Mapping) []string { return limitRules(m, "out", "src", "saddr") },
		},
	}
}

// openRules lead to the limits the packets that would make an entry of
// connection tracking.
func openRules() []string {
	const unconfirmed = "-m conntrack --ctstate NEW,RELATED ! --ctstatus CONFIRMED"
	return []string{rule(unconfirmed, mark, chainLimitIn), rule(unconfirmed, mark, chainLimitOut)}
}

func limitRules(m nat.Mapping, name, rateBy, countBy string) []string {
	var rules []string
	if r := m.Limit.Rate; r > 0 {
		// Addresses with the same rate share the table of that name, which
		// must never be used with another rate.
		match := fmt.Sprintf("-m hashlimit --hashlimit-above %d/sec --hashlimit-burst %d --hashlimit-mode %sip --hashlimit-name xip-%s-%d", spelledRate(r), r, rateBy, name, r)
		rules = append(rules, rule(match, owned(m.Endpoint), "DROP"))
	}
	if n := m.Limit.Connections; n > 0 {
		match := fmt.Sprintf("-m connlimit --connlimit-above %d --connlimit-mask %d --connlimit-%s", n, m.External.BitLen(), countBy)
		rules = append(rules, rule(match, owned(m.Endpoint), "DROP"))
	}
	return rules
}

// spelledRate is what iptables-save makes of a rate, and the kernel as well: it
// holds the time from one to the next, in whole microseconds
// (XT_HASHLIMIT_SCALE_v2, linux/netfilter/xt_hashlimit.h).
func spelledRate(rate uint32) uint32 {
	const second = 1_000_000
	return second / (second / rate)
}
