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

// JoinCluster makes this host one of several that share their claims. It is
// called before Restore.
func (d *Driver) JoinCluster(c Cluster) { d.cluster = c }

// isApart tells whether this host is one of several and can't prove its claims.
func (d *Driver) isApart() bool {
	if d.cluster == nil {
		return false
	}
	_, apart := d.cluster.Apart()
	return apart
}

// mayKeep tells whether an address may go on being used here though another host
// uses it, too.
func (d *Driver) mayKeep(a netip.Addr) bool { return d.cluster == nil || d.cluster.MayDefend(a) }

// memberOf is another host of the cluster that has a MAC; "" for none.
func (d *Driver) memberOf(mac net.HardwareAddr) string {
	if d.cluster == nil {
		return ""
	}
	if host := d.cluster.Member(mac); host != d.cluster.Host() {
		return host
	}
	return ""
}

// holder is the other host that has an address by the ledger; "" if none has.
func (d *Driver) holder(a netip.Addr) string {
	if d.cluster == nil {
		return ""
	}
	if c, ok := d.store.Holder(a); ok && c.Host != d.cluster.Host() {
		return c.Host
	}
	return ""
}

// holds tells whether this host has an address by the ledger.
func (d *Driver) holds(a netip.Addr) bool {
	if d.cluster == nil {
		return false
	}
	c, ok := d.store.Holder(a)
	return ok && c.Host == d.cluster.Host()
}

// isSettled tells whether this host has been joined for as long as a lease holds:
// others that were cut off, too, have claimed what they serve by then.
func (d *Driver) isSettled() bool {
	for _, h := range d.cluster.Hosts() {
		if h.Own {
			return time.Since(h.Seen) > h.TTL
		}
	}
	return false
}

// beyondLease is how much longer than its lease holds a host's end is waited for:
// etcd ends leases a second late at most, and tells of it at once.
const beyondLease = 2 * time.Second

// dies waits until it is known whether a host of the cluster is dead, and tells.
func (d *Driver) dies(host string) bool {
	if d.cluster == nil {
		return false
	}
	patience := beyondLease
	for _, h := range d.cluster.Hosts() {
		if h.Name == host {
			patience += h.TTL
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return d.cluster.Await(ctx, host) == nil
}

// neighbour names who has a MAC, for a person.
func (d *Driver) neighbour(mac net.HardwareAddr) string {
	if host := d.memberOf(mac); host != "" {
		return "host " + host
	}
	return mac.String()
}
