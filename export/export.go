// Package export writes what extip holds so that it works without extip: as a
// file for nft, as a script with input for iptables-restore, or as JSON.
package export

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/extip/extip/nat"
	"github.com/extip/extip/nat/iptables"
	"github.com/extip/extip/nat/nftables"
)

// A Setup is what there should be on the host, beside bridges and containers.
type Setup struct {
	nat.State
	Aliases []Alias
}

// An Alias is an external address and the interface that it is on.
type Alias struct {
	Address netip.Addr `json:"address"`
	On      string     `json:"on"`
}

// Formats are what Write knows, the first by default.
func Formats() []string { return []string{"nft", "iptables", "json"} }

// Write writes a setup in one of the Formats. Networks and mappings that can't
// be written are left out and reported as errors.
func Write(w io.Writer, format string, s Setup) error {
	s.Sort()
	var text string
	var err error
	switch format {
	case "nft":
		text, err = nftFile(s)
	case "iptables":
		text, err = iptablesScript(s)
	case "json":
		return writeJSON(w, s)
	default:
		return fmt.Errorf("format %q: allowed are %s", format, strings.Join(Formats(), ", "))
	}
	if _, werr := io.WriteString(w, text); werr != nil {
		return werr
	}
	return err
}

// nftFile is a file for nft -f, with what nft can't do as comments.
func nftFile(s Setup) (string, error) {
	rules, err := nftables.Export(s.State)
	var out strings.Builder
	fmt.Fprintf(&out, "#!/usr/sbin/nft -f\n# %s. Loading it again replaces it.\n# What nft can't do, to be run before:\n#\n", s.title())
	for _, c := range s.commands() {
		out.WriteString("#\t" + c + "\n")
	}
	out.WriteString("#\n# Where iptables' FORWARD chain drops, it must be told to accept, too: see\n# extip export --format iptables, table filter.\n\n")
	out.WriteString(rules)
	return out.String(), err
}

// iptablesScript is a shell script.
func iptablesScript(s Setup) (string, error) {
	v4, v6, err := iptables.Export(s.State)
	var out strings.Builder
	fmt.Fprintf(&out, "#!/bin/sh\n# %s. To be run once.\nset -e\n", s.title())
	for _, c := range s.commands() {
		out.WriteString(c + "\n")
	}
	for _, part := range []struct{ program, rules string }{{"iptables-restore", v4}, {"ip6tables-restore", v6}} {
		if part.rules != "" {
			fmt.Fprintf(&out, "%s --noflush <<'END'\n%sEND\n", part.program, part.rules)
		}
	}
	return out.String(), err
}

func (s Setup) title() string {
	return fmt.Sprintf("extip's networks (%d) and external addresses (%d), without extip", len(s.Networks), len(s.Mappings))
}

// commands are those that set up what rules don't.
func (s Setup) commands() (commands []string) {
	var v4, v6 bool
	for _, n := range s.Networks {
		for _, p := range n.Subnets {
			v4, v6 = v4 || p.Addr().Is4(), v6 || p.Addr().Is6()
		}
	}
	if v4 {
		commands = append(commands, "sysctl -w net.ipv4.ip_forward=1")
	}
	if v6 {
		commands = append(commands, "sysctl -w net.ipv6.conf.all.forwarding=1")
	}
	for _, a := range s.Aliases {
		// As extip does, but without its mark: the host must not choose the
		// address for itself.
		how := "scope host"
		if a.Address.Is6() {
			how = "nodad noprefixroute preferred_lft 0"
		}
		commands = append(commands, fmt.Sprintf("ip addr replace %s dev %s %s", netip.PrefixFrom(a.Address, a.Address.BitLen()), a.On, how))
	}
	for _, n := range s.Networks {
		if n.Mark != 0 {
			commands = append(commands, fmt.Sprintf(": %s is to leave by its own uplink: ip rule and ip route for fwmark %#x", n.Bridge, n.Mark))
		}
	}
	return commands
}

// The JSON. Names never change.
type document struct {
	Networks []network `json:"networks"`
	Mappings []mapping `json:"mappings"`
	Aliases  []Alias   `json:"aliases"`
}

type network struct {
	ID       string         `json:"id"`
	Bridge   string         `json:"bridge"`
	Uplinks  []string       `json:"uplinks,omitempty"`
	Subnets  []netip.Prefix `json:"subnets"`
	Internal bool           `json:"internal,omitempty"`
	Mark     uint32         `json:"mark,omitempty"`
}

type mapping struct {
	Endpoint string     `json:"endpoint"`
	External netip.Addr `json:"external"`
	Internal netip.Addr `json:"internal"`
	Gateway  bool       `json:"gateway,omitempty"`
	Egress   bool       `json:"egress"`
	Filter   *filter    `json:"filter,omitempty"`
	Limit    limit      `json:"limit,omitzero"`
}

// limit is how many connections an address may have, and how many new ones a
// second.
type limit struct {
	Connections uint32 `json:"connections,omitempty"`
	Rate        uint32 `json:"rate,omitempty"`
}

// filter is who may connect to what; proto is IANA's number.
type filter struct {
	Ports  []ports        `json:"ports,omitempty"`
	Allow  []netip.Prefix `json:"allow,omitempty"`
	Reject bool           `json:"reject,omitempty"`
}

type ports struct {
	Proto uint8  `json:"proto"`
	First uint16 `json:"first,omitempty"`
	Last  uint16 `json:"last,omitempty"`
}

func filterOf(f *nat.Filter) *filter {
	if f == nil {
		return nil
	}
	out := &filter{Allow: f.Allow, Reject: f.Reject}
	for _, p := range f.Ports {
		out.Ports = append(out.Ports, ports(p))
	}
	return out
}

func writeJSON(w io.Writer, s Setup) error {
	d := document{Networks: []network{}, Mappings: []mapping{}, Aliases: append([]Alias{}, s.Aliases...)}
	for _, n := range s.Networks {
		d.Networks = append(d.Networks, network{n.ID, n.Bridge, n.Uplinks, n.Subnets, n.Internal, n.Mark})
	}
	for _, m := range s.Mappings {
		d.Mappings = append(d.Mappings, mapping{m.Endpoint, m.External, m.Internal, m.Gateway, m.Egress, filterOf(m.Filter), limit(m.Limit)})
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(d)
}
