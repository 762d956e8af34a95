package doctor

import (
	"context"
	"fmt"
	"slices"

	"github.com/extip/extip/nat"
	"github.com/extip/extip/nat/nftables"
)

// A Sighting is a packet seen by a chain of nftables.
type Sighting = nat.Sighting

// Live calls fn for each chain and rule that packets to and from an external
// address meet, until ctx ends or fn returns an error. Rules in the kernel mark
// some packets a second for that, and go when it ends. One at a time may run.
func (d *Doctor) Live(ctx context.Context, s Subject, q Question, fn func(Sighting) error) error {
	if d.Backend != "nftables" {
		return fmt.Errorf("packets can be followed with --backend=nftables only, and it is %s", d.Backend)
	}
	i := slices.IndexFunc(s.Addresses, func(a Address) bool { return a.External == q.To })
	if i < 0 {
		return fmt.Errorf("%s is no external address of a container", q.To)
	}
	return nftables.Live(ctx, nat.Flow{External: q.To, Internal: s.Addresses[i].Internal, Port: q.Port, Proto: q.Proto}, fn)
}
