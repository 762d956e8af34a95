package driver

import (
	"context"
	"net"
	"net/netip"

	"github.com/extip/extip/announce"
	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
)

// Links makes the interfaces. Its methods are ensures: what is there, or gone,
// already is no error.
type Links interface {
	EnsureBridge(link.Bridge) error
	RemoveBridge(link.Bridge) error
	EnsureVeth(link.Veth) error
	RemoveVeth(link.Veth) error
	// Survey is what carries our mark; its cost grows with the host's links
	// and addresses.
	Survey() (link.Survey, error)
	HasLink(name string) (bool, error)
}

// Addresses puts external addresses on their parent, or on lo.
type Addresses interface {
	// EnsureAlias returns link.ErrNoLink if the interface doesn't exist.
	EnsureAlias(on string, a netip.Addr) error
	RemoveAlias(on string, a netip.Addr) error
	// Unusable says why a can't be an external address on parent, "" if it can.
	Unusable(parent string, a netip.Addr) (string, error)
	// Gateways are the next hops of the host's routes.
	Gateways() ([]netip.Addr, error)
	// Forget ends what connection tracking knows of the addresses.
	Forget(link.Flows) error
	// Remaining counts what it knows of pairs; those without are not in the
	// answer. Its cost grows with all that is tracked.
	Remaining([]link.Pair) (map[link.Pair]int, error)
}

// Settings are the host's own. Those that change some return them, as
// "net.ipv4.ip_forward=1".
type Settings interface {
	DefaultParent() (string, error)
	// Parent returns link.ErrNoLink if there is no such interface.
	Parent(name string) (link.ParentInfo, error)
	// EnableForwarding lets the host route what comes in by interfaces.
	EnableForwarding(interfaces []string, of link.Families) (changed []string, err error)
	// SettleARP keeps other interfaces from answering for addresses on parent.
	SettleARP(parent string) (changed []string, err error)
	// ARPTrouble says why neighbours on parent get no answer for addresses
	// that are put on an interface, "" if they do.
	ARPTrouble(parent, on string) (string, error)
	// DefaultLinks are the interfaces of all default routes.
	DefaultLinks() ([]string, error)
	// SyncUplinks has packets with a mark leave by their parent, and returns
	// what those parents need that are not the host's only way out.
	SyncUplinks(parents []string) (needs map[string]link.Uplink, changed []string, err error)
	// Bar keeps the host itself from sending anything from these prefixes, and
	// from no others; CheckBar changes nothing. Both return a line for each
	// difference, link.ErrNoBarrier where the kernel can't.
	Bar([]netip.Prefix) (changed []string, err error)
	CheckBar([]netip.Prefix) (differences []string, err error)
}

// Neighbours are the other hosts on a parent's segment. All but Probe don't
// wait for them.
type Neighbours interface {
	// Probe returns which addresses somebody else has, by their MAC.
	Probe(ctx context.Context, parent string, addrs []netip.Addr, how announce.Timing) (map[netip.Addr]net.HardwareAddr, error)
	// Announce tells them where an address is, and from then on defends it.
	Announce(parent string, a netip.Addr) error
	// Defend does the latter alone.
	Defend(parent string, a netip.Addr) error
	// Challenge tells them once where an address is.
	Challenge(parent string, a netip.Addr) error
	// Watch listens to what they say of an address, until Unwatch.
	Watch(parent string, a netip.Addr) error
	Unwatch(parent string, a netip.Addr)
}

// Kernel is all that the driver changes outside of its store.
type Kernel struct {
	Links
	Addresses
	Settings
	Neighbours
	NAT nat.Backend
	// Guard is nil where the kernel can't guard.
	Guard nat.Guard
}
