package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/extip/extip/nat"
)

// ask has all rules decide about a packet at a hook, in the order in which the
// kernel comes to them.
func (x *exam) ask(h nat.Hook, p nat.Packet) []nat.Ruling {
	p.Local = func(a netip.Addr) bool { return x.own[a] }
	return nat.First(append(x.native.Ask(h, p), x.tables.Ask(h, p)...))
}

// drop is the first ruling that ends the packet, nil if none does.
func drop(rulings []nat.Ruling) *nat.Ruling {
	for _, r := range rulings {
		if r.Drop {
			return &r
		}
	}
	return nil
}

// translation is the first ruling that gives the packet another address.
func translation(rulings []nat.Ruling) *nat.Ruling {
	for _, r := range rulings {
		if !r.Drop {
			return &r
		}
	}
	return nil
}

// come is a packet to an external address as it comes in.
func (x *exam) come(a Address, from netip.Addr, in string) nat.Packet {
	return nat.Packet{In: x.iface(in), Src: from, Dst: a.External}
}

// enter leads a packet through prerouting: what is asked after the translation
// sees the new destination. It returns the translation and the drop, nil if
// there are none.
func (x *exam) enter(p nat.Packet) (after nat.Packet, translated, dropped *nat.Ruling) {
	rulings := x.ask(nat.Prerouting, p)
	translated, dropped = translation(rulings), drop(rulings)
	if translated == nil || dropped != nil && dropped.Priority < translated.Priority {
		return p, translated, dropped
	}
	if !translated.To.IsValid() {
		return p, translated, nil // to the host itself
	}
	p.Dst, p.OrigDst, p.DNAT = translated.To, p.Dst, true
	later := slices.DeleteFunc(x.ask(nat.Prerouting, p), func(r nat.Ruling) bool { return r.Priority <= translated.Priority })
	return p, translated, drop(later)
}

// A leg is one way that packets of a network must be able to go through the
// forward hook.
type leg struct {
	what   string
	packet nat.Packet
	// accept is a rule that lets it pass, in words for each tool.
	native, tables string
}

// legs are those of an address: in from its parent, the answer back, out, and
// among the network's containers where rules see that.
func (x *exam) legs(a Address) []leg {
	n := x.networks[a.Network]
	peer := x.somebody(n.in, a.External)
	bridge, parent := x.iface(n.Bridge), x.iface(n.in)
	in := leg{"from " + n.in + " to " + n.Bridge,
		nat.Packet{In: parent, Out: bridge, Src: peer, Dst: a.Internal, DNAT: true, OrigDst: a.External},
		fmt.Sprintf("oifname %q accept", n.Bridge), nat.Shell("-o", n.Bridge, "-j", "ACCEPT")}
	back := leg{"back from " + n.Bridge,
		nat.Packet{In: bridge, Out: parent, Src: a.Internal, Dst: peer, Reply: true, DNAT: true, OrigDst: a.External},
		fmt.Sprintf("iifname %q ct state established,related accept", n.Bridge), nat.Shell("-i", n.Bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")}
	out := leg{"from " + n.Bridge + " to " + n.in,
		nat.Packet{In: bridge, Out: parent, Src: a.Internal, Dst: peer},
		fmt.Sprintf("iifname %q oifname %q accept", n.Bridge, n.in), nat.Shell("-i", n.Bridge, "-o", n.in, "-j", "ACCEPT")}
	legs := []leg{in, back, out}
	if x.bridgeFilters(a.External) {
		within := in
		within.what, within.packet.In, within.packet.Src = "within "+n.Bridge, bridge, a.Internal
		legs = append(legs, within)
	}
	return legs
}

// A blockade is a rule that drops what must pass, and what would let it pass.
type blockade struct {
	rule    nat.Ruling
	legs    []string
	accepts []string
	// ours says that our own accepts are missing, where the plugin keeps them.
	ours bool
}

// filters: a drop anywhere is final, whatever others accept.
func (x *exam) filters() (found []Finding) {
	var blockades []*blockade
	add := func(r nat.Ruling, what, accept string, ours bool) {
		i := slices.IndexFunc(blockades, func(b *blockade) bool {
			return b.rule.Tool == r.Tool && b.rule.Table == r.Table && b.rule.Chain == r.Chain && b.rule.Rule == r.Rule && b.rule.Family == r.Family
		})
		if i < 0 {
			i = len(blockades)
			blockades = append(blockades, &blockade{rule: r})
		}
		b := blockades[i]
		b.ours = b.ours || ours
		if !slices.Contains(b.legs, what) {
			b.legs = append(b.legs, what)
		}
		if accept != "" && !slices.Contains(b.accepts, accept) {
			b.accepts = append(b.accepts, accept)
		}
	}
	for _, a := range x.subject.Addresses {
		n := x.networks[a.Network]
		if n.Internal {
			continue
		}
		for _, l := range x.legs(a) {
			r := drop(x.ask(nat.Forward, l.packet))
			if r == nil || r.Ours {
				continue
			}
			accept := l.tables
			if r.Tool == "nft" {
				accept = l.native
			}
			add(*r, l.what, accept, x.tables.Unadmitted(*r, l.packet))
		}
		p := x.come(a, x.somebody(n.in, a.External), n.in)
		if _, _, r := x.enter(p); r != nil && !r.Ours {
			accept := "-d " + a.External.String() + " -j ACCEPT"
			if r.Tool == "nft" {
				accept = fmt.Sprintf("%s daddr %s accept", familyWord(a.External), a.External)
			}
			add(*r, "to "+a.External.String(), accept, false)
		}
	}
	for _, b := range blockades {
		found = append(found, b.finding())
	}
	return found
}

func familyWord(a netip.Addr) string {
	if a.Is6() {
		return "ip6"
	}
	return "ip"
}

func (b *blockade) finding() Finding {
	f := Finding{Level: Fail, Seen: fmt.Sprintf("%s drops what goes %s", where(b.rule), strings.Join(b.legs, ", "))}
	if b.rule.Doubt {
		f.Level = Warn
		f.Seen += ", unless a rule before it, which is not understood here, accepts it"
	}
	if b.ours {
		f.Why, f.Remedy = "the rules that accept it are missing", repair
		return f
	}
	f.Why = "a drop is final: extip can't accept it in that rule's stead"
	var commands []string
	for _, accept := range b.accepts {
		if b.rule.Tool == "nft" {
			commands = append(commands, fmt.Sprintf("insert rule %s %s %s %s", b.rule.Family, b.rule.Table, b.rule.Chain, accept))
		} else {
			commands = append(commands, nat.Shell(b.rule.Tool, "-t", b.rule.Table, "-I", b.rule.Chain)+" "+accept)
		}
	}
	if b.rule.Tool == "nft" {
		f.Remedy = nat.Shell("nft", strings.Join(commands, "; "))
	} else {
		f.Remedy = strings.Join(commands, " && ")
	}
	return f
}

// where names a rule.
func where(r nat.Ruling) string {
	if r.Tool == "nft" {
		return fmt.Sprintf("nft's %s %s %s: %q", r.Family, r.Table, r.Chain, r.Rule)
	}
	return fmt.Sprintf("%s -t %s: %q", r.Tool, r.Table, strings.TrimSpace(chainOf(r)+r.Rule))
}

// chainOf names the chain of what is no rule in it.
func chainOf(r nat.Ruling) string {
	if strings.HasPrefix(r.Rule, "policy") {
		return r.Chain + " "
	}
	return ""
}

// mappings: is each external address translated as it should be?
func (x *exam) mappings() (found []Finding) {
	var none, wrong, hidden []string
	for _, a := range x.subject.Addresses {
		n := x.networks[a.Network]
		_, in, _ := x.enter(x.come(a, x.somebody(n.in, a.External), n.in))
		switch {
		case in == nil:
			none = append(none, a.External.String())
		case in.Ours && in.To != a.Internal:
			wrong = append(wrong, fmt.Sprintf("%s leads to %s, not %s", a.External, in.To, a.Internal))
		}
		if out := x.leave(a); a.Egress && in != nil && in.Ours && (out == nil || out.Ours && out.To != a.External) {
			hidden = append(hidden, a.External.String())
		}
	}
	if len(none) > 0 {
		found = append(found, Finding{Level: Fail, Seen: names(none) + " not translated", Why: "no packet reaches the container", Remedy: repair})
	}
	if len(wrong) > 0 {
		found = append(found, Finding{Level: Fail, Seen: strings.Join(wrong, ", "), Why: "packets reach another container, or none", Remedy: repair})
	}
	if len(hidden) > 0 {
		found = append(found, Finding{Level: Fail, Seen: names(hidden) + " not what its container's connections leave from", Why: "outside, the container is seen by another address", Remedy: repair})
	}
	return found
}

// leave is the translation of a connection that a container opens.
func (x *exam) leave(a Address) *nat.Ruling {
	n := x.networks[a.Network]
	return translation(x.ask(nat.Postrouting, nat.Packet{Out: x.iface(n.in), Src: a.Internal, Dst: x.somebody(n.in, a.External)}))
}

// owners: somebody else may translate the same addresses.
func (x *exam) owners() (found []Finding) {
	seen := map[string]bool{}
	add := func(level Level, r nat.Ruling, what, why string) {
		if !seen[r.Undo] {
			seen[r.Undo] = true
			found = append(found, Finding{Level: level, Seen: where(r) + " " + what, Why: why, Remedy: r.Undo})
		}
	}
	for _, a := range x.subject.Addresses {
		n := x.networks[a.Network]
		_, in, _ := x.enter(x.come(a, x.somebody(n.in, a.External), n.in))
		if in != nil && !in.Ours {
			add(Fail, *in, fmt.Sprintf("takes %s before extip", a.External), "packets don't reach the container")
		}
		if out := x.leave(a); a.Egress && out != nil && !out.Ours {
			add(Fail, *out, fmt.Sprintf("takes what %s sends before extip", a.Internal), "the container's connections leave from another address")
		}
		for _, r := range append(x.native.Names(a.External), x.tables.Names(a.External)...) {
			if in != nil && in.Ours && r.Priority < in.Priority {
				add(Fail, r, fmt.Sprintf("takes some of what is for %s before extip", a.External), "such packets don't reach the container")
			}
			add(Warn, r, fmt.Sprintf("translates %s, too", a.External), "extip's rule comes first as things are; if that changes, packets go elsewhere")
		}
	}
	return found
}
