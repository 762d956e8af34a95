package driver

import (
	"context"
	"errors"
	"net/netip"
)

// Attach gives a running endpoint, named by its id or the beginning of that,
// further external addresses; with none, the next of its network's pool, of each
// family. It waits until the neighbours had time to object, or ctx ends.
func (d *Driver) Attach(ctx context.Context, endpoint string, addrs []netip.Addr, dryRun bool) (Report, error) {
	return Report{}, errors.ErrUnsupported
}

// Detach takes an external address from its endpoint, which goes on running, and
// releases it.
func (d *Driver) Detach(ctx context.Context, a netip.Addr, dryRun bool) (Report, error) {
	return Report{}, errors.ErrUnsupported
}
