package iptables

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/extip/extip/nat"
)

// Every rule counts. The one that translates an address is looked at for the
// first packet of a connection only; the last one of a filter drops the rest.
// But whoever fills a chain begins to count anew, here a bucket with all its
// addresses: what was counted since the last reading is lost then.

// A counter is a rule's that counts: by its chain and, where several addresses
// share that, the external one, or where it has several of an address, by what it
// asks for.
type counter struct {
	chain    string
	external netip.Addr
	match    string
}

// counterOf is that of a rule of one of our chains, and what it counts; not ok
// of a rule that counts for no single address.
func counterOf(chain, rule string) (c counter, what nat.Count, ok bool) {
	c.chain = chain
	in := func(root string) bool { return strings.HasPrefix(chain, root+"-") }
	switch target := targetOf(rule); {
	case in(chainDestination) && target == "DNAT":
		c.external, ok = addressAfter(rule, "-d")
		return c, nat.Incoming, ok
	case in(chainSource) && target == "SNAT":
		c.external, ok = addressAfter(rule, "--to-source")
		return c, nat.Outgoing, ok
	case in(chainLimitIn) && target == "DROP":
		c.match = limitMatch(rule)
		return c, nat.LimitedIn, true
	case in(chainLimitOut) && target == "DROP":
		c.match = limitMatch(rule)
		return c, nat.LimitedOut, true
	}
	return c, nat.Refused, in(chainFilter) && targetOf(rule) == "DROP" || in(chainReject) && targetOf(rule) == "REJECT"
}

// limitMatch is the match by which a rule limits.
func limitMatch(rule string) string {
	if strings.Contains(rule, "-m hashlimit ") {
		return "hashlimit"
	}
	return "connlimit"
}

// addressAfter is the value of a rule's option.
func addressAfter(rule, option string) (netip.Addr, bool) {
	fields := strings.Fields(rule)
	for i, f := range fields[:max(len(fields)-1, 0)] {
		if f == option {
			text, _, _ := strings.Cut(fields[i+1], "/")
			a, err := netip.ParseAddr(text)
			return a, err == nil
		}
	}
	return netip.Addr{}, false
}

// restarted tells the tally which counters a batch puts back to zero.
func (b *Backend) restarted(bt *batch) {
	for _, s := range bt.sections {
		for _, line := range s.fill {
			chain, rule, _ := strings.Cut(strings.TrimPrefix(line, "-A "), " ")
			if c, _, ok := counterOf(chain, rule); ok {
				b.tally.Restart(c)
			}
		}
	}
}

// Counters implements nat.Backend. It runs iptables-save for either family.
func (b *Backend) Counters() (map[netip.Addr]nat.Counters, error) {
	b.reading.Lock()
	defer b.reading.Unlock()
	b.tally.Begin()
	var readings []nat.Reading[counter]
	for _, t := range b.saves {
		text, err := t.run("", t.save, "--counters")
		if err != nil && t.family.v6 {
			continue // a kernel without IPv6 has no rules of it
		}
		if err != nil {
			return nil, fmt.Errorf("nat: read counters: %w", err)
		}
		readings = append(readings, parseCounters(text)...)
	}
	b.writing.Lock()
	defer b.writing.Unlock()
	mapped := map[netip.Addr]bool{}
	for _, s := range b.sides {
		for a := range s.model.Mappings {
			mapped[a] = true
		}
	}
	for i, r := range readings {
		if !r.External.IsValid() {
			readings[i].External = b.ownerOf(r.Counter.chain)
		}
	}
	return b.tally.End(readings, mapped), nil
}

// ownerOf is the external address that a chain is there for alone; b.writing is
// held.
func (b *Backend) ownerOf(chain string) netip.Addr {
	for _, s := range b.sides {
		for _, t := range s.model.trees {
			if m, ok := t.own[chain]; ok {
				return m.External
			}
		}
	}
	return netip.Addr{}
}

// parseCounters reads the output of iptables-save --counters, in which a line is
// [PACKETS:BYTES] -A CHAIN RULE.
func parseCounters(save string) (readings []nat.Reading[counter]) {
	for line := range strings.Lines(save) {
		numbers, rest, found := strings.Cut(strings.TrimSpace(line), " -A ")
		if !found {
			continue
		}
		chain, rule, _ := strings.Cut(rest, " ")
		c, what, ok := counterOf(chain, rule)
		r := nat.Reading[counter]{Counter: c, External: c.external, What: what}
		if _, err := fmt.Sscanf(numbers, "[%d:%d]", &r.Shows.Packets, &r.Shows.Bytes); ok && err == nil {
			readings = append(readings, r)
		}
	}
	return readings
}
