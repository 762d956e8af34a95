package driver

import (
	"context"
	"errors"
	"net/netip"
)

// Move gives an external address of one running endpoint to another, at once.
// Connections through it break, so that clients connect again; with drain they
// stay where they are until they end.
func (d *Driver) Move(ctx context.Context, a netip.Addr, endpoint string, drain, dryRun bool) (Report, error) {
	return Report{}, errors.ErrUnsupported
}
