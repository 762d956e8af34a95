package e2e

import (
	"net/netip"
	"sync"
	"time"

	"github.com/extip/extip/driver"
	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
)

// A clock tells what the driver spends its time on in the kernel. What it
// can't account for is the store's, but for very little.
type clock struct {
	mu    sync.Mutex
	spent map[string]float64
}

// kernel is k with a clock in it.
func (c *clock) kernel(k driver.Kernel) driver.Kernel {
	k.Links = timedLinks{k.Links, c}
	k.Addresses = timedAddresses{k.Addresses, c}
	k.Neighbours = timedNeighbours{k.Neighbours, c}
	k.NAT = timedNAT{k.NAT, c}
	return k
}

// reset forgets what was, and returns it.
func (c *clock) reset() map[string]float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	spent := c.spent
	c.spent = map[string]float64{}
	return spent
}

func (c *clock) time(what string, fn func() error) error {
	began := time.Now()
	err := fn()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spent == nil {
		c.spent = map[string]float64{}
	}
	c.spent[what] += float64(time.Since(began).Nanoseconds()) / 1e6
	return err
}

type timedLinks struct {
	driver.Links
	c *clock
}

func (l timedLinks) EnsureVeth(v link.Veth) error {
	return l.c.time("veth pair", func() error { return l.Links.EnsureVeth(v) })
}

type timedAddresses struct {
	driver.Addresses
	c *clock
}

func (a timedAddresses) EnsureAlias(parent string, ip netip.Addr) error {
	return a.c.time("alias", func() error { return a.Addresses.EnsureAlias(parent, ip) })
}

func (a timedAddresses) RemoveAlias(parent string, ip netip.Addr) error {
	return a.c.time("alias, removed", func() error { return a.Addresses.RemoveAlias(parent, ip) })
}

func (a timedAddresses) Unusable(parent string, ip netip.Addr) (reason string, err error) {
	err = a.c.time("may it be used", func() error {
		var err error
		reason, err = a.Addresses.Unusable(parent, ip)
		return err
	})
	return reason, err
}

func (a timedAddresses) Forget(f link.Flows) error {
	return a.c.time("flows", func() error { return a.Addresses.Forget(f) })
}

type timedNeighbours struct {
	driver.Neighbours
	c *clock
}

func (a timedNeighbours) Announce(parent string, ip netip.Addr) error {
	return a.c.time("announcement", func() error { return a.Neighbours.Announce(parent, ip) })
}

type timedNAT struct {
	nat.Backend
	c *clock
}

func (n timedNAT) Add(ms ...nat.Mapping) error {
	return n.c.time("mapping", func() error { return n.Backend.Add(ms...) })
}

func (n timedNAT) Remove(ms ...nat.Mapping) error {
	return n.c.time("mapping, removed", func() error { return n.Backend.Remove(ms...) })
}
