package hosttest

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/extip/extip/nat"
)

// NAT is the machine's nat.Backend.
func (h *Host) NAT() nat.Backend { return backend{h} }

type backend struct{ h *Host }

func (b backend) AddNetwork(n nat.Network) error {
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	if err := b.h.write("add NAT network " + n.ID); err != nil {
		return err
	}
	b.h.networks[n.ID] = n
	return nil
}

func (b backend) RemoveNetwork(n nat.Network) error {
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	if err := b.h.write("remove NAT network " + n.ID); err != nil {
		return err
	}
	for _, m := range b.h.mappings {
		if within(n, m.Internal) {
			return fmt.Errorf("network %s goes before its mapping of %s", n.ID, m.External)
		}
	}
	delete(b.h.networks, n.ID)
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
		if !slices.ContainsFunc(b.h.networkList(), func(n nat.Network) bool { return within(n, m.Internal) && !n.Internal }) {
			return fmt.Errorf("mapping of %s comes before its network", m.External)
		}
	}
	for _, m := range ms {
		b.h.mappings[m.External] = m
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
		delete(b.h.mappings, m.External)
	}
	return nil
}

func (b backend) Sync(want nat.State) (repaired []string, err error) {
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	if err := b.h.write("sync NAT"); err != nil {
		return nil, err
	}
	networks, mappings := map[string]nat.Network{}, map[netip.Addr]nat.Mapping{}
	for _, n := range want.Networks {
		if have, ok := b.h.networks[n.ID]; !ok || fmt.Sprint(have) != fmt.Sprint(n) {
			repaired = append(repaired, "network "+n.ID)
		}
		networks[n.ID] = n
	}
	for _, m := range want.Mappings {
		if have, ok := b.h.mappings[m.External]; !ok || have != m {
			repaired = append(repaired, "mapping of "+m.External.String())
		}
		mappings[m.External] = m
	}
	for id := range b.h.networks {
		if _, ok := networks[id]; !ok {
			repaired = append(repaired, "extra network "+id)
		}
	}
	for a := range b.h.mappings {
		if _, ok := mappings[a]; !ok {
			repaired = append(repaired, "extra mapping of "+a.String())
		}
	}
	b.h.networks, b.h.mappings = networks, mappings
	slices.Sort(repaired)
	return repaired, nil
}

func (b backend) Close() error { return nil }
