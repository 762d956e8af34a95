package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A packet is what the rules look at. The zero packet is a dropped one, the
// zero Addr as src that of the interface the packet leaves by.
type packet struct {
	src, dst netip.Addr
	in, out  string // out is chosen by the tracer: a network's bridge, or eth0
	state    string // conntrack's
	mapped   bool   // its destination was translated
	local    bool   // it comes from a process on the host
	mark     uint32
	proto    string // of IP, with the port it goes to
	port     int
	reply    bool       // it has the direction of a connection's answers
	asked    netip.Addr // what dst was before it was translated
}

// A tracer walks the rules of a model as the kernel would.
type tracer struct{ model *model }

// trace is what becomes of the first packet of a connection.
func (t tracer) trace(p packet) packet {
	if !p.local && t.walk(chainEarly, &p) == "DROP" {
		return packet{}
	}
	if target := t.walk(chainPre, &p); target != "" {
		p.dst, p.mapped, p.asked = netip.MustParseAddr(lastField(target)), true, p.dst
	}
	p.out = "eth0"
	for _, n := range t.model.sorted() {
		if t.model.family.subnet(n).Contains(p.dst) {
			p.out = n.Bridge
		}
	}
	if !p.local && (t.walk(chainIsolate, &p) == "DROP" || strings.HasPrefix(t.walk(chainForward, &p), "REJECT")) {
		return packet{}
	}
	if target := t.walk(chainPost, &p); target == "MASQUERADE" {
		p.src = netip.Addr{}
	} else if target != "" {
		p.src = netip.MustParseAddr(lastField(target))
	}
	p.asked = netip.Addr{}
	return p
}

// walk is the target that ends the packet's way through a chain, "" if none
// does. It may mark the packet.
func (t tracer) walk(chain string, p *packet) string {
	for _, rule := range t.model.rules(chain) {
		opts := options(rule)
		if slices.ContainsFunc(opts, func(o string) bool { return !p.matches(o) }) {
			continue
		}
		_, target, _ := strings.Cut(rule, " -j ")
		if target == "RETURN" {
			return ""
		}
		if _, err := fmt.Sscanf(target, "MARK --set-xmark %v/0xffffffff", &p.mark); err == nil {
			continue
		}
		if !strings.HasPrefix(target, "XIP-") && !strings.HasPrefix(target, "EXTIP-") {
			return target
		}
		if end := t.walk(target, p); end != "" {
			return end
		}
	}
	return ""
}

func (p packet) matches(option string) bool {
	if negated, ok := strings.CutPrefix(option, "! "); ok {
		return !p.matches(negated)
	}
	name, value, _ := strings.Cut(option, " ")
	switch name {
	case "-s":
		return inside(p.src, value)
	case "-d":
		return inside(p.dst, value)
	case "-i":
		return p.in == value
	case "-o":
		return p.out == value
	case "--src-type":
		return p.local && value == "LOCAL"
	case "--ctstate":
		states := strings.Split(value, ",")
		return slices.Contains(states, p.state) || p.mapped && slices.Contains(states, "DNAT")
	case "-p":
		return p.proto == value
	case "--dports":
		return slices.ContainsFunc(strings.Split(value, ","), func(r string) bool {
			var first, last int
			if n, _ := fmt.Sscanf(r, "%d:%d", &first, &last); n == 1 {
				last = first
			}
			return first <= p.port && p.port <= last
		})
	case "--ctdir":
		return p.reply == (value == "REPLY")
	case "--ctorigdst":
		return p.asked.String() == value
	case "-m", "--comment", "-j", "--to-destination", "--to-source", "--set-xmark", "--reject-with":
		return true
	}
	panic("the tracer does not know " + option)
}

func lastField(s string) string { return s[strings.LastIndex(s, " ")+1:] }
