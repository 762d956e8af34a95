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
}

// A tracer walks the rules of a model as the kernel would.
type tracer struct{ model *model }

// trace is what becomes of the first packet of a connection.
func (t tracer) trace(p packet) packet {
	if target := t.walk(chainMark, p); !p.local && target != "" {
		if _, err := fmt.Sscanf(target, "MARK --set-xmark %v/0xffffffff", &p.mark); err != nil {
			panic(err)
		}
	}
	if target := t.walk(chainPre, p); target != "" {
		p.dst, p.mapped = netip.MustParseAddr(lastField(target)), true
	}
	p.out = "eth0"
	for _, n := range t.model.sorted() {
		if t.model.family.subnet(n).Contains(p.dst) {
			p.out = n.Bridge
		}
	}
	if !p.local && t.walk(chainIsolate, p) == "DROP" {
		return packet{}
	}
	if target := t.walk(chainPost, p); target == "MASQUERADE" {
		p.src = netip.Addr{}
	} else if target != "" {
		p.src = netip.MustParseAddr(lastField(target))
	}
	return p
}

// walk is the target that ends the packet's way through a chain, "" if none does.
func (t tracer) walk(chain string, p packet) string {
	for _, rule := range t.model.rules(chain) {
		opts := options(rule)
		if slices.ContainsFunc(opts, func(o string) bool { return !p.matches(o) }) {
			continue
		}
		_, target, _ := strings.Cut(rule, " -j ")
		if target == "RETURN" {
			return ""
		}
		if !strings.HasPrefix(target, "XIP-") {
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
		return within(p.src, value)
	case "-d":
		return within(p.dst, value)
	case "-i":
		return p.in == value
	case "-o":
		return p.out == value
	case "--src-type":
		return p.local && value == "LOCAL"
	case "--ctstate":
		states := strings.Split(value, ",")
		return slices.Contains(states, p.state) || p.mapped && slices.Contains(states, "DNAT")
	case "-m", "--comment", "-j", "--to-destination", "--to-source", "--set-xmark":
		return true
	}
	panic("the tracer does not know " + option)
}

// within tells whether an address is in a prefix or an address/mask pair,
// whose mask need not be contiguous.
func within(a netip.Addr, spec string) bool {
	if p, err := netip.ParsePrefix(spec); err == nil {
		return p.Contains(a)
	}
	base, mask, _ := strings.Cut(spec, "/")
	b, m := netip.MustParseAddr(base).AsSlice(), netip.MustParseAddr(mask).AsSlice()
	for i, x := range a.AsSlice() {
		if (x^b[i])&m[i] != 0 {
			return false
		}
	}
	return true
}

func lastField(s string) string { return s[strings.LastIndex(s, " ")+1:] }
