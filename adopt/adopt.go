// Package adopt takes over what people set up by hand before there was extip: an
// address added to an interface, and iptables rules that lead it to a container.
// The container keeps the address, and no packet is lost.
package adopt

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/nat/iptables"
)

// An Endpoint is a container on one of extip's networks.
type Endpoint struct {
	ID, Container string
	// On is the interface that its network's external addresses are put on;
	// empty if they are not put anywhere.
	On string
	// Internal are its addresses, External what it has already.
	Internal, External []netip.Addr
}

// A Plan is what was found for one external address, and what would become of it.
type Plan struct {
	External  netip.Addr `json:"external"`
	Internal  netip.Addr `json:"internal"`
	Endpoint  string     `json:"endpoint"`
	Container string     `json:"container,omitempty"`
	// Found are the rules and addresses that would go, as they are listed.
	Found []string `json:"found"`
	// Ports are what the rules let through, such as "tcp/80"; none stands
	// for everything, which is what the container has afterwards.
	Ports []string `json:"ports,omitempty"`
	// Gateway says that the container sees the bridge's address instead of
	// its clients', Egress that its own connections leave from External.
	Gateway bool `json:"gateway"`
	Egress  bool `json:"egress"`
	// Left is what stays, with the reason.
	Left []string `json:"left,omitempty"`

	on       string
	commands []string
	aliases  []link.AddressInfo
}

// Find looks for hand-made rules that lead to the endpoints, and plans to take
// them over, by external address. Nothing is changed.
func Find(rules *iptables.Ruleset, links map[string]link.LinkInfo, endpoints []Endpoint) []Plan {
	plans := map[netip.Addr]*Plan{}
	all := rules.Translations()
	for _, t := range all {
		e, ok := endpointOf(endpoints, t.To)
		if t.Source || !t.For.IsValid() || !ok || slices.Contains(e.External, t.For) {
			continue
		}
		p := plans[t.For]
		if p == nil {
			p = &Plan{External: t.For, Internal: t.To, Endpoint: e.ID, Container: e.Container, on: e.On}
			plans[t.For] = p
		}
		if t.To != p.Internal {
			p.Left = append(p.Left, fmt.Sprintf("%s leads to another container: one address has one", t.Rule))
			continue
		}
		p.take(t)
		if ports := portsOf(t.Rest); ports == "" {
			p.Ports = []string{}
		} else if p.Ports == nil || len(p.Ports) > 0 {
			p.Ports = append(p.Ports, ports)
		}
	}
	list := slices.SortedFunc(maps.Values(plans), func(a, b *Plan) int { return a.External.Compare(b.External) })
	for _, t := range all {
		i := slices.IndexFunc(list, func(p *Plan) bool {
			return t.Source && (t.From == p.Internal && t.To == p.External || t.For == p.Internal)
		})
		if i < 0 {
			continue
		}
		list[i].take(t)
		list[i].Egress = list[i].Egress || t.From == list[i].Internal
		list[i].Gateway = list[i].Gateway || t.For == list[i].Internal
	}
	out := []Plan{}
	for _, p := range list {
		p.takeAliases(links)
		out = append(out, *p)
	}
	return out
}

func endpointOf(endpoints []Endpoint, internal netip.Addr) (Endpoint, bool) {
	i := slices.IndexFunc(endpoints, func(e Endpoint) bool { return slices.Contains(e.Internal, internal) })
	if i < 0 {
		return Endpoint{}, false
	}
	return endpoints[i], true
}

func (p *Plan) take(t iptables.Translation) {
	p.Found = append(p.Found, t.Tool+" -t "+t.Table+" "+t.Rule)
	p.commands = append(p.commands, t.Undo)
}

// takeAliases notes where the address is. One that would take others with it
// stays: of several addresses in a subnet, the first is their primary.
func (p *Plan) takeAliases(links map[string]link.LinkInfo) {
	for _, l := range links {
		for i, a := range l.Addresses {
			if a.Addr() != p.External || a.Ours {
				continue
			}
			others := slices.ContainsFunc(l.Addresses[i+1:], func(o link.AddressInfo) bool { return o.Masked() == a.Masked() })
			first := !slices.ContainsFunc(l.Addresses[:i], func(o link.AddressInfo) bool { return o.Masked() == a.Masked() })
			switch {
			case l.Name != p.on:
				p.Left = append(p.Left, fmt.Sprintf("%s on %s: extip puts it on %s", a.Prefix, l.Name, cmp.Or(p.on, "no interface")))
			case first && others && !a.IsSingleIP():
				p.Left = append(p.Left, fmt.Sprintf("%s on %s: the host's other addresses of %s would go with it", a.Prefix, l.Name, a.Masked()))
			default:
				p.Found = append(p.Found, fmt.Sprintf("ip addr %s dev %s", a.Prefix, l.Name))
				p.aliases = append(p.aliases, a)
			}
		}
	}
}

// portsOf says what a rule's other options let through, "" if everything.
func portsOf(rest []string) string {
	value := func(option string) string {
		if i := slices.Index(rest, option); i >= 0 && i+1 < len(rest) {
			return rest[i+1]
		}
		return ""
	}
	proto := value("-p")
	ports := strings.ReplaceAll(cmp.Or(value("--dport"), value("--dports")), ":", "-")
	switch {
	case proto == "":
		return ""
	case ports == "" || ports == "1-65535" || ports == "0-65535":
		return proto
	}
	return proto + "/" + ports
}

// A Host is what is changed beside the plugin's records: link.Host.
type Host interface {
	// Borrow keeps an address on an interface by another hand-made entry, so
	// that the one of this length can go; Return ends that.
	Borrow(on string, p netip.Prefix) error
	Return(on string, a netip.Addr) error
	RemoveAddress(on string, p netip.Prefix) error
}

// Do takes an address over: attach has the plugin give it to the endpoint, which
// is when its rules come before the others; then those go, and the hand-made
// address. run runs a command. It returns what it did, and stops at the first
// error: running Find again shows what is left.
func (p Plan) Do(h Host, attach func(Plan) error, run func(command string) error) (done []string, err error) {
	// The plugin adds its own entry, which is as long as can be. Where
	// there is one like that, it has to step aside first, but not the address.
	for _, a := range p.aliases {
		if a.IsSingleIP() {
			if err := h.Borrow(p.on, a.Prefix); err != nil {
				return done, err
			}
		}
	}
	if err := attach(p); err != nil {
		return done, err
	}
	done = append(done, fmt.Sprintf("%s belongs to %s", p.External, cmp.Or(p.Container, p.Endpoint)))
	for _, c := range p.commands {
		if err := run(c); err != nil {
			return done, err
		}
		done = append(done, c)
	}
	for _, a := range p.aliases {
		if a.IsSingleIP() {
			err = h.Return(p.on, p.External)
		} else {
			err = h.RemoveAddress(p.on, a.Prefix)
		}
		if err != nil {
			return done, err
		}
		done = append(done, "ip addr del "+nat.Shell(a.String(), "dev", p.on))
	}
	return done, nil
}
