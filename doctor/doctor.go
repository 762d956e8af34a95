// Package doctor says why traffic doesn't reach a container by its external
// address, and what to do about it. It looks at the host as it is, and changes
// nothing, but that Live has rules in the kernel for as long as it lasts.
//
// Examine goes through a table of checks, each of which knows one way in which
// hosts are unfit. Trace follows a packet step by step and says where it ends.
// Both go by the kernel's own answers: its routes, rules, neighbours, ports.
package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
)

// A Subject is what there should be: what is on record.
type Subject struct {
	Networks  []Network
	Addresses []Address
	// Cluster is nil unless this host shares its addresses with others.
	Cluster *Cluster
}

// A Cluster is how this host stands in one.
type Cluster struct {
	// ApartSince is since when it can't reach what the hosts share their claims
	// by; zero if it can.
	ApartSince time.Time
}

// A Network is one of extip's.
type Network struct {
	nat.Network
	// Parent is the interface of its external addresses; On is the one that
	// they are put on: Parent, lo, or none if that is empty.
	Parent, On string
	// Gateways are the bridge's own addresses.
	Gateways []netip.Prefix

	// in is where packets from outside come in: by Parent, or where that is
	// lo, by the interface of the default route.
	in string
}

// An Address is an external one that belongs to a container.
type Address struct {
	nat.Mapping
	// Network is the ID of one in the Subject.
	Network string
	// Port is the host's end of the container's veth pair.
	Port string
	// Container is its name or id, empty if that isn't known.
	Container string
	// Withheld says why the address is not put on its parent now, as the
	// end of a sentence about it; empty if it is.
	Withheld string
	// HeldBy is the host of the cluster that has it now, empty if none does.
	HeldBy string
}

// A Doctor looks at a host: the network namespace that its Host was made in,
// and that of the calling thread, which must be the same.
type Doctor struct {
	Host *link.Host
	// Backend is what translates: "nftables" or "iptables".
	Backend string
	// IPTables is the name or path of the iptables that is used; "" for the
	// one on PATH.
	IPTables string
	// Probe asks the neighbours on a parent who else has addresses, the
	// first 64 of each; nil if nobody is to be asked.
	Probe func(ctx context.Context, parent string, addrs []netip.Addr) (map[netip.Addr]net.HardwareAddr, error)
	// Nftables tells whether the kernel can translate with nftables; nil if
	// that isn't to be tried.
	Nftables func() error
	// Engine and Plugin are sockets: the engine's API and the plugin's for
	// the engine. Empty ones are not looked at.
	Engine, Plugin string
}

// A Level is how bad a finding is.
type Level string

// The levels. Fail: something doesn't work. Warn: something may not, or won't
// after the next change.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// A Finding is what a check has to say.
type Finding struct {
	Level Level  `json:"level"`
	Check string `json:"check"`
	// Seen is what there is, Why what comes of it.
	Seen string `json:"seen"`
	Why  string `json:"why,omitempty"`
	// Remedy is a command for a shell. It is empty if no command helps.
	Remedy string `json:"remedy,omitempty"`
}

// A check looks for one kind of trouble. It returns no finding of level OK:
// without any, all is well.
type check struct {
	name string
	// well is what to say if nothing was found.
	well string
	look func(*exam) []Finding
}

func (s Subject) checks() []check {
	list := []check{
		{"kernel", "it can translate with nftables", (*exam).kernel},
		{"parent", "the parents are there and up", (*exam).parents},
		{"forwarding", "the host forwards", (*exam).forwarding},
		{"router", "router advertisements are heard where they should be", (*exam).routers},
		{"bridge", "bridges and ports are there and up", (*exam).bridges},
		{"hairpin", "containers can reach themselves by their external address", (*exam).hairpins},
		{"alias", "the external addresses are on their parents", (*exam).aliases},
		{"arp", "the parents answer for them", (*exam).answers},
		{"conflict", "nobody else uses them", (*exam).conflicts},
		{"source", "packets may come from anywhere", (*exam).sources},
		{"mapping", "each leads to its container", (*exam).mappings},
		{"owner", "nobody else translates them", (*exam).owners},
		{"filter", "no firewall drops what must pass", (*exam).filters},
		{"conntrack", "there is room for connections", (*exam).conntrack},
		{"limit", "no address is at its limit", (*exam).limits},
		{"engine", "the engine answers", (*exam).engine},
		{"plugin", "the engine can reach the plugin", (*exam).plugin},
	}
	if s.Cluster != nil {
		list = append(list, check{"cluster", "the claims of this host's containers hold", (*exam).cluster})
	}
	return list
}

// Examine goes through all checks, in order. Each has at least one finding. An
// error says what could not be looked at.
func (d *Doctor) Examine(ctx context.Context, s Subject) ([]Finding, error) {
	x, err := d.exam(ctx, s)
	if err != nil {
		return nil, err
	}
	var all []Finding
	for _, c := range s.checks() {
		found := c.look(x)
		if len(found) == 0 {
			found = []Finding{{Level: OK, Seen: c.well}}
		}
		for _, f := range found {
			f.Check = c.name
			all = append(all, f)
		}
	}
	return all, x.errs()
}

// group gathers addresses with the same trouble, so that ten thousand of them
// make one finding.
type group[K comparable] struct {
	keys []K
	of   map[K][]string
}

func (g *group[K]) add(key K, name string) {
	if g.of == nil {
		g.of = map[K][]string{}
	}
	if _, ok := g.of[key]; !ok {
		g.keys = append(g.keys, key)
	}
	if !slices.Contains(g.of[key], name) {
		g.of[key] = append(g.of[key], name)
	}
}

// names lists a few of many, with the verb's ending: "a and b are".
func names(list []string) string {
	const few = 4
	if len(list) > few {
		list = append(slices.Clone(list[:few]), fmt.Sprintf("%d more", len(list)-few))
	}
	if len(list) > 1 {
		return strings.Join(list[:len(list)-1], ", ") + " and " + list[len(list)-1] + " are"
	}
	return strings.Join(list, "") + " is"
}
