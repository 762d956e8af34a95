package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoBarrier is returned where the kernel can't keep a Barrier: before Linux
// 4.17, or built without policy routing.
var ErrNoBarrier = errors.New("this kernel has no rules for protocols and ports")

// The barrier keeps the host itself from answering on external addresses, also
// while no rules of netfilter hold it off: what is not translated arrives at the
// host, but what the host sends from there over TCP and UDP finds no route. What
// containers send is still under their own address when it is routed.
//
//	11899: from 203.0.113.10 iif lo goto 11901                                   the host's own, if within
//	11900: from 203.0.113.0/26 iif lo ipproto tcp sport 1-65534 blackhole
//	11900: from 203.0.113.0/26 iif lo ipproto udp sport 1-65534 blackhole
//	11901: from all nop
//
// The protocol spares ICMP, by which packets are refused in a container's place,
// the check of ARP's senders (arp_process, fib_validate_source, net/ipv4), and what
// output translates and routes again (ip_route_me_harder, net/ipv4/netfilter.c);
// the port spares look-ups of rpfilter and fib in netfilter, which have none. With
// iif lo, no packet that is forwarded is dissected for either
// (fib_rule_requires_fldissect, net/fib_rules.h).
//
// It can't hold port 65535 (fib_rule_port_range_valid, there), nor, in IPv4, what
// a socket sends to a neighbour by an interface that it names: the kernel then
// takes no route for a route (ip_route_output_key_hash_rcu, net/ipv4/route.c).
const (
	barrierOwn = rulePriority - 101 + iota
	barrierDrop
	barrierEnd
)

// Bar makes exactly the rules of a barrier for what is sent from these
// prefixes, but for addresses of the host's own that are in them, and returns a
// line for each rule that it changed. Each prefix costs every route that the
// kernel looks up two rules more: 32 of them 0.3 µs, one too little to measure.
// Its own cost grows with the host's addresses.
func (h *Host) Bar(prefixes []netip.Prefix) (changed []string, err error) {
	return h.bar(prefixes, func(do func(*netlink.Rule) error, r netlink.Rule) error { return do(&r) })
}

// CheckBar returns the lines that Bar would, and changes nothing.
func (h *Host) CheckBar(prefixes []netip.Prefix) (differences []string, err error) {
	return h.bar(prefixes, func(func(*netlink.Rule) error, netlink.Rule) error { return nil })
}

func (h *Host) bar(prefixes []netip.Prefix, change func(func(*netlink.Rule) error, netlink.Rule) error) (lines []string, err error) {
	if !kernelAtLeast(4, 17) {
		return nil, ErrNoBarrier
	}
	own, err := h.ownAddresses()
	if err != nil {
		return nil, fmt.Errorf("link: barrier: %w", err)
	}
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := h.rulesBetween(family, barrierOwn, barrierEnd)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		want := barrierRules(family, prefixes, own)
		is := func(r netlink.Rule) func(netlink.Rule) bool {
			return func(o netlink.Rule) bool { return sameBarrier(r, o) }
		}
		// Exceptions are first and go last.
		for _, r := range want {
			if slices.ContainsFunc(have, is(r)) {
				continue
			}
			switch err := change(h.nl.RuleAdd, r); {
			case err == nil:
				lines = append(lines, barrierText(r)+" was missing")
			case notInKernel(err):
				return lines, ErrNoBarrier
			case !errors.Is(err, unix.EEXIST): // somebody else's, that does the same
				errs = append(errs, fmt.Errorf("add %s: %w", barrierText(r), err))
			}
		}
		slices.SortFunc(have, func(a, b netlink.Rule) int { return order(a) - order(b) })
		for _, r := range slices.Backward(have) {
			if slices.ContainsFunc(want, is(r)) {
				continue
			}
			if err := change(h.nl.RuleDel, r); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove %s: %w", barrierText(r), err))
				continue
			}
			lines = append(lines, barrierText(r)+" was left over")
		}
	}
	if err := errors.Join(errs...); err != nil {
		return lines, fmt.Errorf("link: barrier: %w", err)
	}
	return lines, nil
}

// order is the one in which rules of a barrier are added.
func order(r netlink.Rule) int {
	return slices.Index([]int{barrierEnd, barrierOwn, barrierDrop}, r.Priority)
}

// barrierRules are a family's rules in the order in which they are added.
func barrierRules(family int, prefixes []netip.Prefix, own []netip.Addr) []netlink.Rule {
	rule := func(priority int, kind uint8) netlink.Rule {
		r := netlink.NewRule()
		r.Family, r.Protocol, r.Priority, r.Type = family, Protocol, priority, kind
		return *r
	}
	var rules, drops []netlink.Rule
	within := false
	for _, p := range prefixes {
		if p.Addr().Is4() != (family == netlink.FAMILY_V4) {
			continue
		}
		for _, a := range own {
			if p.Contains(a) {
				within = true
				r := rule(barrierOwn, 0)
				r.Src, r.IifName, r.Goto = ipNet(netip.PrefixFrom(a, a.BitLen())), "lo", barrierEnd
				rules = append(rules, r)
			}
		}
		for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			r := rule(barrierDrop, unix.RTN_BLACKHOLE)
			r.Src, r.IifName, r.IPProto, r.Sport = ipNet(p), "lo", protocol, netlink.NewRulePortRange(1, 65534)
			drops = append(drops, r)
		}
	}
	if within {
		const nop = 3 // FR_ACT_NOP, linux/fib_rules.h
		rules = append([]netlink.Rule{rule(barrierEnd, nop)}, rules...)
	}
	return append(rules, drops...)
}

// sameBarrier compares what differs between rules of a barrier.
func sameBarrier(a, b netlink.Rule) bool {
	port := func(r netlink.Rule) netlink.RulePortRange {
		if r.Sport == nil {
			return netlink.RulePortRange{}
		}
		return *r.Sport
	}
	return a.Priority == b.Priority && a.IPProto == b.IPProto && a.IifName == b.IifName && a.Goto == b.Goto &&
		port(a) == port(b) && srcText(a) == srcText(b)
}

func srcText(r netlink.Rule) string {
	if r.Src == nil {
		return "all"
	}
	return r.Src.String()
}

// barrierText is a rule of a barrier as ip-rule(8) takes it.
func barrierText(r netlink.Rule) string {
	text := fmt.Sprintf("%s pref %d from %s", command(r.Family, "rule"), r.Priority, srcText(r))
	switch r.Priority {
	case barrierOwn:
		return text + fmt.Sprintf(" iif lo goto %d", r.Goto)
	case barrierEnd:
		return text + " nop"
	}
	protocol := map[int]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[r.IPProto]
	return text + " iif lo ipproto " + protocol + " sport 1-65534 blackhole"
}

// ownAddresses are the host's, without external ones.
func (h *Host) ownAddresses() ([]netip.Addr, error) {
	links, err := h.listLinks()
	if err != nil {
		return nil, err
	}
	addrs, err := h.addresses(unix.AF_UNSPEC, 0)
	if err != nil {
		return nil, err
	}
	var own []netip.Addr
	for _, a := range addrs {
		if !h.isAlias(a, links[a.index].name) && !slices.Contains(own, a.prefix.Addr()) {
			own = append(own, a.prefix.Addr())
		}
	}
	return own, nil
}
