package driver

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/extip/extip/store"
)

// Cluster is this host's membership among several that share their claims. Its
// methods may be called concurrently; only Await and Offer wait.
type Cluster interface {
	// Host is this host's name among them.
	Host() string
	// Apart says since when this host can't prove that its claims still hold;
	// ok is false if it can.
	Apart() (since time.Time, ok bool)
	// MayDefend tells whether another host on the wire that uses an address of
	// ours is in the wrong for certain: our claim of it is proven.
	MayDefend(a netip.Addr) bool
	// Member is the host that has a MAC; "" for none of the cluster.
	Member(mac net.HardwareAddr) string
	// Await waits for another host's lease to end: nil once it has,
	// store.ErrAlive as soon as it is renewed meanwhile, or ctx's error.
	Await(ctx context.Context, host string) error
	// Offer asks another host whether its container can have an address, and
	// waits for its answer, until Withdraw takes the offer back.
	Offer(ctx context.Context, o store.Offer) (store.Acceptance, error)
	Withdraw(a netip.Addr)
	// Hosts are the members, this one among them.
	Hosts() []store.HostInfo
}

// A Follower is told by the member of a cluster what it learns. *Driver is one.
// LedgerJoined and ClaimsChanged never wait, and may be called under any lock of
// the caller's.
type Follower interface {
	// LedgerJoined: the ledger can be reached, again or for the first time,
	// with a lease that holds.
	LedgerJoined()
	// ClaimsChanged: who claims these addresses may be another now, or nobody.
	ClaimsChanged(addrs []netip.Addr)
	// Offered answers another host's offer; nothing is changed by that. It
	// waits for calls that are under way about the container.
	Offered(o store.Offer) (store.Acceptance, error)
}
