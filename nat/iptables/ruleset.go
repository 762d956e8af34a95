package iptables

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/extip/extip/nat"
)

// A Ruleset is everybody's rules of iptables, of both families and of each
// flavour that there is a program for, as they were when it was read. It answers
// what becomes of a packet, as far as it understands them.
type Ruleset struct {
	listings []listing
	words    map[string][]string // of rules that were asked before
}

// A listing is what one program lists.
type listing struct {
	tool   string // iptables, ip6tables-legacy, …
	v6     bool
	tables map[string]held
}

// Read reads the rules of the calling thread's network namespace, first those of
// the iptables of that name or path, "" being the one on PATH. Without any
// iptables there are none.
func Read(path string) (*Ruleset, error) {
	if path == "" {
		path = "iptables"
	}
	rs := &Ruleset{words: map[string][]string{}}
	var errs []error
	var flavours []string
	for _, program := range []string{path, "iptables-nft", "iptables-legacy"} {
		program, err := exec.LookPath(program)
		if err != nil {
			continue
		}
		flavour, err := flavourOf(program, tool{save: program + "-save", restore: program + "-restore"})
		if err != nil || slices.Contains(flavours, flavour) {
			errs = append(errs, err)
			continue
		}
		flavours = append(flavours, flavour)
		dir := program[:strings.LastIndex(program, "/")+1]
		suffix := strings.TrimPrefix(program[len(dir):], "iptables")
		for _, f := range families() {
			name := "ip" + f.String() + "tables" + suffix
			text, err := run("", dir+name+"-save")
			if err != nil && !f.v6 {
				errs = append(errs, err)
			}
			// Where IPv6's can't be read there are none.
			rs.listings = append(rs.listings, listing{tool: name, v6: f.v6, tables: parse(text)})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return rs, fmt.Errorf("nat: read iptables: %w", err)
	}
	return rs, nil
}

// A station is a table at a hook; linux/netfilter_ipv4.h, enum nf_ip_hook_priorities.
type station struct {
	table    string
	priority int
	hooks    []nat.Hook
}

func stations() []station {
	all := []nat.Hook{nat.Prerouting, nat.Input, nat.Forward, nat.Output, nat.Postrouting}
	return []station{
		{"raw", -300, []nat.Hook{nat.Prerouting, nat.Output}},
		{tableMangle, -150, all},
		{tableNat, -100, []nat.Hook{nat.Prerouting, nat.Output}},
		{tableFilter, 0, []nat.Hook{nat.Input, nat.Forward, nat.Output}},
		{"security", 50, []nat.Hook{nat.Input, nat.Forward, nat.Output}},
		{tableNat, 100, []nat.Hook{nat.Input, nat.Postrouting}},
	}
}

// Ask returns what the built-in chains of a hook decide about a packet, in the
// order in which the kernel comes to them; as nat/nftables' Ruleset does.
func (rs *Ruleset) Ask(h nat.Hook, p nat.Packet) []nat.Ruling {
	chain := strings.ToUpper(h.String())
	var rulings []nat.Ruling
	for _, s := range stations() {
		if !slices.Contains(s.hooks, h) {
			continue
		}
		for _, l := range rs.listings {
			t, ok := l.tables[s.table]
			if !ok || l.v6 != p.Dst.Is6() {
				continue
			}
			j := &judge{rules: rs, listing: l, table: s.table, base: chain, priority: s.priority, held: t, packet: p}
			if j.chain(chain, 0) == passes && t.drops[chain] {
				j.decide(chain, 0, nat.Ruling{Drop: true, Rule: "policy DROP"})
			}
			if j.ruling != nil {
				j.ruling.Doubt = j.doubt
				rulings = append(rulings, *j.ruling)
			}
		}
	}
	return rulings
}

// Names returns the rules in nat that name an address, other than ours.
func (rs *Ruleset) Names(addr netip.Addr) (rulings []nat.Ruling) {
	for _, l := range rs.listings {
		t := l.tables[tableNat]
		for chain, rules := range t.chains {
			if strings.HasPrefix(chain, ourPrefix) {
				continue
			}
			for i, rule := range rules {
				if slices.ContainsFunc(rs.split(rule), func(word string) bool { return namesAddr(word, addr) }) {
					j := &judge{rules: rs, listing: l, table: tableNat, base: chain, held: t}
					j.decide(chain, i, nat.Ruling{})
					rulings = append(rulings, *j.ruling)
				}
			}
		}
	}
	return rulings
}

// namesAddr tells whether a word is an address, with or without its full length
// or a port.
func namesAddr(word string, addr netip.Addr) bool {
	if p, err := netip.ParsePrefix(word); err == nil {
		return p.IsSingleIP() && p.Addr() == addr
	}
	if ap, err := netip.ParseAddrPort(word); err == nil {
		return ap.Addr() == addr
	}
	a, err := netip.ParseAddr(word)
	return err == nil && a == addr
}

// split is fields, remembered.
func (rs *Ruleset) split(rule string) []string {
	words, known := rs.words[rule]
	if !known {
		words = fields(rule)
		rs.words[rule] = words
	}
	return words
}

// fields splits a rule into words, of which quotes may hold several together.
func fields(rule string) (words []string) {
	var word strings.Builder
	quoted, open := false, false
	for i := 0; i < len(rule); i++ {
		switch c := rule[i]; {
		case c == '"':
			quoted, open = !quoted, true
		case c == '\\' && quoted && i+1 < len(rule):
			i++
			word.WriteByte(rule[i])
		case c == ' ' && !quoted:
			if open {
				words = append(words, word.String())
				word.Reset()
				open = false
			}
		default:
			word.WriteByte(c)
			open = true
		}
	}
	if open {
		words = append(words, word.String())
	}
	return words
}

// Unadmitted tells whether a ruling that drops a forwarded packet is one that
// Admission's rules would keep from doing it, and that these are missing or not
// asked. It is only ever so of the iptables that Admission uses.
func (rs *Ruleset) Unadmitted(r nat.Ruling, p nat.Packet) bool {
	if len(rs.listings) == 0 || r.Table != tableFilter || r.Base != "FORWARD" {
		return false
	}
	for _, l := range rs.listings[:min(2, len(rs.listings))] {
		if l.tool != r.Tool {
			continue
		}
		t := l.tables[tableFilter]
		j := &judge{rules: rs, listing: l, table: tableFilter, base: "FORWARD", held: t, packet: p}
		asked := slices.ContainsFunc(t.chains["FORWARD"], func(rule string) bool { return targetOf(rule) == chainForward })
		return !asked || j.chain(chainForward, 0) != ends
	}
	return false
}

// A Translation is somebody's rule that changes addresses, as far as it goes by
// single addresses.
type Translation struct {
	// Ruling says where the rule is, what it says, and how to remove it.
	nat.Ruling
	// Source says that it is the source that is changed, to To, which is not
	// valid for the address of the interface; otherwise it is the destination.
	Source bool
	// From and For are the single addresses, if any, that a packet must come
	// from and be for.
	From, For netip.Addr
	// Rest are the other options that a packet must match.
	Rest []string
}

// Translations are all but ours.
func (rs *Ruleset) Translations() (list []Translation) {
	for _, l := range rs.listings {
		t := l.tables[tableNat]
		for _, chain := range slices.Sorted(maps.Keys(t.chains)) {
			if strings.HasPrefix(chain, ourPrefix) {
				continue
			}
			for i, rule := range t.chains[chain] {
				if tr, ok := translationOf(rs.split(rule)); ok {
					j := &judge{rules: rs, listing: l, table: tableNat, base: chain, held: t}
					j.decide(chain, i, nat.Ruling{To: tr.To})
					tr.Ruling = *j.ruling
					list = append(list, tr)
				}
			}
		}
	}
	return list
}

// translationOf reads the words of a rule; ok is false if it translates nothing.
func translationOf(words []string) (t Translation, ok bool) {
	end := slices.Index(words, "-j")
	if end < 0 || end+1 >= len(words) {
		return t, false
	}
	switch words[end+1] {
	case "DNAT", "SNAT":
		t.Source = words[end+1] == "SNAT"
		if i := slices.IndexFunc(words, func(w string) bool { return w == "--to-destination" || w == "--to-source" }); i >= 0 && i+1 < len(words) {
			t.To, _ = addrOf(words[i+1])
		}
		if !t.To.IsValid() {
			return t, false
		}
	case "MASQUERADE":
		t.Source = true
	default:
		return t, false
	}
	for i := 0; i < end; i++ {
		p, err := netip.ParsePrefix(words[min(i+1, end)])
		single := err == nil && p.IsSingleIP() && (i == 0 || words[i-1] != "!")
		switch {
		case words[i] == "-s" && single:
			t.From = p.Addr()
			i++
		case words[i] == "-d" && single:
			t.For = p.Addr()
			i++
		case words[i] == "-m" || words[i] == "--comment":
			i++ // says nothing about the packet
		default:
			t.Rest = append(t.Rest, words[i])
		}
	}
	return t, true
}
