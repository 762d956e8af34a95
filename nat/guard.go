package nat

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// PortPrefix begins the names of all links that a Guard looks at. What such a
// link sends without being known to the Guard is dropped.
const PortPrefix = "xip"

// A Port is a link by which a container's frames arrive.
type Port struct {
	// Link is its name; it begins with PortPrefix.
	Link string
	// MAC and Addresses are those that the container may send from.
	MAC       net.HardwareAddr
	Addresses []netip.Addr
	// Trusted lets it send whatever it likes.
	Trusted bool
}

// Same tells whether two ports may send the same.
func (p Port) Same(o Port) bool {
	return p.Link == o.Link && bytes.Equal(p.MAC, o.MAC) && slices.Equal(p.Addresses, o.Addresses) && p.Trusted == o.Trusted
}

// Check says what is wrong with a port.
func (p Port) Check() error {
	err := checkInterface("link", p.Link)
	if !strings.HasPrefix(p.Link, PortPrefix) {
		err = errors.Join(err, fmt.Errorf("link %q doesn't begin with %s", p.Link, PortPrefix))
	}
	if len(p.MAC) != 6 {
		err = errors.Join(err, fmt.Errorf("%q is no Ethernet address", p.MAC))
	}
	for _, a := range p.Addresses {
		err = errors.Join(err, checkAddr("container", a))
	}
	if err != nil {
		return fmt.Errorf("nat: port %q: %w", p.Link, err)
	}
	return nil
}

// Guarded is what a Guard should hold. Networks, by their ids, keep it ready
// while they have no container: to set it up costs more than a port.
type Guarded struct {
	Networks []string
	Ports    []Port
}

// Guard keeps containers from passing for somebody else on their bridge,
// whatever they are allowed to do inside: what one sends with another MAC or
// address than its own, says of others in ARP or neighbour discovery, or
// answers as a DHCP server or router, is dropped before anybody sees it.
//
// Every method is an ensure, like those of Backend, and may be called
// concurrently; the cost of Add and Remove does not grow with the number of
// ports. A port is added before its link exists and removed after it.
type Guard interface {
	// Add makes a change entirely or not at all.
	Add(Guarded) error
	// Remove looks at the links' names only.
	Remove(Guarded) error
	// Sync, Repair and Check are like those of Backend.
	Sync(Guarded) (repaired []string, err error)
	Repair() (repaired []string, err error)
	Check() (differences []string, err error)
}

// Unguarded is a Guard that guards nothing, for a kernel that can't.
type Unguarded struct{}

// Add implements Guard.
func (Unguarded) Add(Guarded) error { return nil }

// Remove implements Guard.
func (Unguarded) Remove(Guarded) error { return nil }

// Sync implements Guard.
func (Unguarded) Sync(Guarded) ([]string, error) { return nil, nil }

// Check implements Guard.
func (Unguarded) Check() ([]string, error) { return nil, nil }

// Repair implements Guard.
func (Unguarded) Repair() ([]string, error) { return nil, nil }
