package driver

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/extip/extip/link"
	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
)

// maxBarred is how many prefixes of a family the barrier takes: each costs every
// route that the host looks up. What is beyond is left to the rules alone.
const maxBarred = 32

// barrier is from where the host itself must send nothing: the pools of all
// networks, and what is published of other addresses, whether it is put on an
// interface or not; the widest prefixes of each family. rest is how many it
// can't take.
func (d *Driver) barrier(but []netip.Addr) (prefixes []netip.Prefix, rest int) {
	var pools []pool.Pool
	d.mu.Lock()
	for _, p := range d.pools {
		pools = append(pools, p)
	}
	d.mu.Unlock()
	var addrs []netip.Addr
	d.publishing.Lock()
	for a := range d.published {
		if !slices.Contains(but, a) {
			addrs = append(addrs, a)
		}
	}
	d.publishing.Unlock()
	cover := pool.Cover(pools, addrs)
	slices.SortStableFunc(cover, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	taken := map[bool]int{}
	for _, p := range cover {
		if v4 := p.Addr().Is4(); taken[v4] < maxBarred {
			taken[v4]++
			prefixes = append(prefixes, p)
		}
	}
	return prefixes, len(cover) - len(prefixes)
}

// syncBarrier makes the barrier what the records ask for, without some
// addresses, and returns what it changed.
func (d *Driver) syncBarrier(but ...netip.Addr) (changed []string, err error) {
	d.barring.Lock()
	defer d.barring.Unlock()
	prefixes, rest := d.barrier(but)
	changed, err = d.kernel.Bar(prefixes)
	if errors.Is(err, link.ErrNoBarrier) {
		if !d.unbarred {
			d.log.WithError(err).Warn("while rules are missing, this host may answer on external addresses")
		}
		d.unbarred, err = true, nil
	}
	if rest > d.beyond {
		d.log.Warnf("external addresses are spread over so many ranges that %d are left out of the barrier: while rules are missing, this host may answer on these", rest)
	}
	if d.beyond = rest; err == nil {
		d.bars = prefixes
	}
	return changed, err
}

// isBarred tells whether the host itself sends nothing from an address, as far
// as we know.
func (d *Driver) isBarred(a netip.Addr) bool {
	d.barring.Lock()
	defer d.barring.Unlock()
	return slices.ContainsFunc(d.bars, func(p netip.Prefix) bool { return p.Contains(a) })
}

// barrierStep is for addresses about to be published. Those of a pool are barred
// as long as there is its network; the cost of others grows with the host's
// addresses, as Bar's does.
func (d *Driver) barrierStep(n store.Network, addrs []netip.Addr) step {
	sync := func(but ...netip.Addr) error {
		_, err := d.syncBarrier(but...)
		return err
	}
	return step{
		name: "barrier",
		do: func() error {
			if !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !d.isBarred(a) }) {
				return nil
			}
			return sync()
		},
		undo: func() error {
			if !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !n.Pool.Contains(a) }) {
				return nil
			}
			return sync(addrs...)
		},
	}
}

// barrier compares the barrier with what the records ask for.
func (r *repair) barrier() {
	look := r.syncBarrier
	if r.dry {
		look = func(...netip.Addr) ([]string, error) {
			prefixes, _ := r.Driver.barrier(nil)
			lines, err := r.kernel.CheckBar(prefixes)
			if errors.Is(err, link.ErrNoBarrier) {
				err = nil
			}
			return lines, err
		}
	}
	lines, err := look()
	r.lines = append(r.lines, lines...)
	r.failed(err)
}
