package driver

import (
	"net/netip"

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

// Addresses puts external addresses on their parent.
type Addresses interface {
	EnsureAlias(parent string, a netip.Addr) error
	RemoveAlias(parent string, a netip.Addr) error
	// Unusable says why a can't be an external address on parent, "" if it can.
	Unusable(parent string, a netip.Addr) (string, error)
	// Gateways are the next hops of the host's routes.
	Gateways() ([]netip.Addr, error)
	// Forget ends what connection tracking knows of the addresses.
	Forget(link.Flows) error
}

// Settings are the host's own.
type Settings interface {
	DefaultParent() (string, error)
	// MTU of an interface, in bytes; an error if there is no such interface.
	MTU(name string) (int, error)
	// EnableForwarding lets the host route, and tells whether it did not before.
	EnableForwarding() (changed bool, err error)
}

// Announcer tells neighbours where an address is now, without waiting for them.
type Announcer interface {
	Announce(parent string, a netip.Addr) error
}

// Kernel is all that the driver changes outside of its store.
type Kernel struct {
	Links
	Addresses
	Settings
	Announcer
	NAT nat.Backend
}
