package hosttest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/extip/extip/nat"
)

// NAT is the machine's nat.Backend.
func (h *Host) NAT() nat.Backend { return backend{h} }

type backend struct{ h *Host }

// Mappings are those in the kernel, by external address.
func (h *Host) Mappings() map[netip.Addr]nat.Mapping {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.rules.mappings)
}

func (b backend) AddNetwork(n nat.Network) error {
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	if err := b.h.write("add NAT network " + n.ID); err != nil {
		return err
	}
	b.h.told.networks[n.ID] = n
	b.h.rules.networks[n.ID] = n
	return nil
}

func (b backend) RemoveNetwork(n nat.Network) error {
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	if err := b.h.write("remove NAT network " + n.ID); err != nil {
		return err
	}
	for _, m := range b.h.rules.mappings {
		if within(n, m.Internal) {
			return fmt.Errorf("network %s goes before its mapping of %s", n.ID, m.External)
		}
	}
	delete(b.h.told.networks, n.ID)
	delete(b.h.rules.networks, n.ID)
	return nil
}

func within(n nat.Network, a netip.Addr) bool {
	return slices.ContainsFunc(n.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (b backend) Add(ms ...nat.Mapping) error {
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	if err := b.h.write(fmt.Sprint("add mappings ", len(ms))); err != nil {
		return err
	}
	for _, m := range ms {
		if !b.h.told.reaches(m.Internal) {
			return fmt.Errorf("mapping of %s comes before its network", m.External)
		}
	}
	for _, m := range ms {
		b.h.told.mappings[m.External] = m
		b.h.rules.mappings[m.External] = m
	}
	return nil
}

func (b backend) Remove(ms ...nat.Mapping) error {
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	if err := b.h.write(fmt.Sprint("remove mappings ", len(ms))); err != nil {
		return err
	}
	for _, m := range ms {
		if _, ok := b.h.aliases[m.External]; ok {
			return fmt.Errorf("mapping of %s goes before its alias: the host would answer on it", m.External)
		}
		if have := b.h.told.mappings[m.External]; have.Endpoint != m.Endpoint {
			continue // the address has moved on
		}
		delete(b.h.told.mappings, m.External)
		delete(b.h.rules.mappings, m.External)
	}
	return nil
}

func (b backend) Sync(want nat.State) (repaired []string, err error) {
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	b.h.told = rules{map[string]nat.Network{}, map[netip.Addr]nat.Mapping{}}
	for _, n := range want.Networks {
		b.h.told.networks[n.ID] = n
	}
	for _, m := range want.Mappings {
		b.h.told.mappings[m.External] = m
	}
	return b.repair()
}

func (b backend) Repair() (repaired []string, err error) {
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	return b.repair()
}

func (b backend) repair() (repaired []string, err error) {
	if err := b.h.write("repair NAT"); err != nil {
		return nil, err
	}
	repaired = b.differences()
	b.h.rules = b.h.told.clone()
	return repaired, nil
}

func (b backend) Check() (differences []string, err error) {
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	return b.differences(), nil
}

// Counters says what Count was told, of what is mapped.
func (b backend) Counters() (map[netip.Addr]nat.Counters, error) {
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	counters := map[netip.Addr]nat.Counters{}
	for a := range b.h.told.mappings {
		counters[a] = b.h.counters[a]
	}
	if b.h.uncounted != nil {
		return nil, b.h.uncounted
	}
	return counters, nil
}

// Count has the machine count; with an error nobody can read what.
func (h *Host) Count(a netip.Addr, c nat.Counters, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counters[a], h.uncounted = c, err
}

func (b backend) differences() (lines []string) {
	have, want := b.h.rules.lines(), b.h.told.lines()
	for _, line := range want {
		if !slices.Contains(have, line) {
			lines = append(lines, line+" was missing")
		}
	}
	for _, line := range have {
		if !slices.Contains(want, line) {
			lines = append(lines, line+" was left over")
		}
	}
	return lines
}

// rules is what the machine translates.
type rules struct {
	networks map[string]nat.Network
	mappings map[netip.Addr]nat.Mapping
}

func (r rules) clone() rules { return rules{maps.Clone(r.networks), maps.Clone(r.mappings)} }

// lines prints the rules, sorted.
func (r rules) lines() []string {
	var lines []string
	for _, n := range r.networks {
		lines = append(lines, fmt.Sprintf("nat network %s: %s %v by %s%s%s", n.ID, n.Bridge, n.Subnets, strings.Join(n.Uplinks, ","),
			flag(n.Internal, " internal"), flag(n.Mark != 0, fmt.Sprintf(" mark %#x", n.Mark))))
	}
	for _, m := range r.mappings {
		lines = append(lines, fmt.Sprintf("nat %s <-> %s of %s%s%s", m.External, m.Internal, m.Endpoint, flag(m.Gateway, " gateway"), flag(m.Egress, " egress"))+
			flag(m.Filter != nil, fmt.Sprintf(" filter %v", m.Filter.Canonical()))+
			flag(m.Limit != (nat.Limit{}), fmt.Sprintf(" limit %v", m.Limit)))
	}
	slices.Sort(lines)
	return lines
}

// hasBridge tells whether there are rules for a bridge of that name.
func (r rules) hasBridge(name string) bool {
	for _, n := range r.networks {
		if n.Bridge == name {
			return true
		}
	}
	return false
}

// reaches tells whether a network that translates has the address.
func (r rules) reaches(a netip.Addr) bool {
	for _, n := range r.networks {
		if !n.Internal && within(n, a) {
			return true
		}
	}
	return false
}
