package driver

import (
	"errors"
	"net/netip"
)

// Reserve keeps addresses under a name, beside those that it has: free ones, or
// those of a container that was started with extip.reservation=name.
func (d *Driver) Reserve(name string, addrs []netip.Addr, dryRun bool) (Report, error) {
	return Report{}, errors.ErrUnsupported
}

// Unreserve forgets a reservation. Who has its addresses keeps them.
func (d *Driver) Unreserve(name string, dryRun bool) (Report, error) {
	return Report{}, errors.ErrUnsupported
}
