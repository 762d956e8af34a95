package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/extip/extip/nat"
)

// Filters. A tree finds the chain of an address, which returns for what may
// pass and drops the rest, before the destination is translated: only there
// does a packet show which of a container's external addresses was asked.
//
// iptables rejects in filter only. There, the first packet of a connection that
// is to be rejected is found by another tree, by the container's address and
// the one that was asked. Somebody who accepts it before us can't let the
// connection come about: its next packet is dropped.
const (
	chainFilter = "XIP-F"
	chainReject = chainForward + "-R"
)

func filterTree() treeKind {
	return treeKind{
		table: tableMangle, root: chainFilter, match: "-d",
		key: func(m nat.Mapping) netip.Addr { return only(m.Filter.Canonical() != nil, m.External) },
		rules: func(m nat.Mapping) []string {
			f, rules := m.Filter.Canonical(), passRules(m)
			if f.Reject {
				rules = append(rules, rule("-m conntrack --ctstate NEW", owned(m.Endpoint), "RETURN"))
			}
			return append(rules, rule("", owned(m.Endpoint), "DROP"))
		},
	}
}

func rejectTree() treeKind {
	return treeKind{
		table: tableFilter, root: chainReject, match: "-d",
		key: func(m nat.Mapping) netip.Addr {
			f := m.Filter.Canonical()
			return only(f != nil && f.Reject, m.Internal)
		},
		more: func(m nat.Mapping) string { return "-m conntrack --ctorigdst " + m.External.String() },
		rules: func(m nat.Mapping) []string {
			how := "icmp-port-unreachable"
			if m.External.Is6() {
				how = "icmp6-port-unreachable"
			}
			return append(passRules(m), rule("", owned(m.Endpoint), "REJECT --reject-with "+how))
		},
	}
}

// arriveRules lead to the filters what they are about: not answers to what a
// container began, nor errors about connections there are, nor the search for
// neighbours, which the host answers.
func arriveRules(f family) []string {
	about := "-p icmp -m conntrack --ctstate RELATED"
	if f.v6 {
		about = "-p ipv6-icmp -m conntrack --ctstate RELATED,UNTRACKED"
	}
	return []string{
		rule("-m conntrack --ctdir REPLY", mark, "RETURN"),
		rule(about, mark, "RETURN"),
		rule("", mark, chainFilter),
	}
}

// passRules return for what a mapping's filter lets pass: each prefix with
// each protocol and its ports.
func passRules(m nat.Mapping) []string {
	f := m.Filter.Canonical()
	sources := []string{""}
	if len(f.Allow) > 0 {
		sources = nil
		for _, p := range f.Allow {
			sources = append(sources, "-s "+p.String())
		}
	}
	var rules []string
	for _, s := range sources {
		for _, p := range portMatches(f.Ports) {
			rules = append(rules, rule(strings.TrimSpace(s+" "+p), owned(m.Endpoint), "RETURN"))
		}
	}
	return rules
}

// portMatches spells ports as iptables-save does, "" if there are none: of a
// protocol as many as a rule can hold.
func portMatches(ports []nat.Ports) []string {
	const most = 15 // XT_MULTI_PORTS, linux/netfilter/xt_multiport.h; a range counts twice
	if len(ports) == 0 {
		return []string{""}
	}
	var matches, list []string
	size := 0
	for i, p := range ports {
		proto := "-p " + protocols()[p.Proto]
		if !nat.HasPorts(p.Proto) {
			matches = append(matches, proto)
			continue
		}
		spelled, takes := fmt.Sprint(p.First), 1
		if p.Last > p.First {
			spelled, takes = fmt.Sprintf("%d:%d", p.First, p.Last), 2
		}
		list, size = append(list, spelled), size+takes
		if last := i == len(ports)-1 || ports[i+1].Proto != p.Proto; last || size+2 > most {
			matches = append(matches, proto+" -m multiport --dports "+strings.Join(list, ","))
			list, size = nil, 0
		}
	}
	return matches
}

// protocols is how iptables-save spells those that it spells the same
// everywhere. The names of others depend on /etc/protocols.
func protocols() map[uint8]string {
	return map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 50: "esp", 51: "ah", 58: "ipv6-icmp", 132: "sctp", 136: "udplite"}
}

// checkFilter refuses what can't be spelled.
func checkFilter(m nat.Mapping) error {
	if m.Filter == nil {
		return nil
	}
	for _, p := range m.Filter.Ports {
		if protocols()[p.Proto] == "" {
			return fmt.Errorf("nat: mapping %q: filter: iptables can't be told of protocol %d", m.External, p.Proto)
		}
	}
	return nil
}

// usable is State.Usable for this backend.
func usable(s nat.State) (good nat.State, err error) {
	good, err = s.Usable()
	errs := []error{err}
	good.Mappings = slices.DeleteFunc(good.Mappings, func(m nat.Mapping) bool {
		err := checkFilter(m)
		errs = append(errs, err)
		return err != nil
	})
	return good, errors.Join(errs...)
}
