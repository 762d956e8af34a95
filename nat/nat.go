// Package nat says what network address translation extip wants, and what a
// backend that writes it into the kernel must promise. The backends live in
// sub-packages (nat/nftables, nat/iptables); nothing here touches the kernel.
package nat

import (
	"cmp"
	"net/netip"
	"slices"
)

// Network is what the NAT rules need to know of one Docker network.
type Network struct {
	// ID marks the rules as belonging to this network. Unique, and safe in
	// a rule comment: letters and digits only, at most 12.
	ID string
	// Bridge is an interface of the host, and so are Uplinks, by which the
	// containers' packets may leave the host.
	Bridge  string
	Uplinks []string
	// Subnets are the container subnets on Bridge, at most one per family.
	Subnets []netip.Prefix
	// Internal networks exchange no packets with anything beyond Bridge,
	// and have no mappings.
	Internal bool
	// Mark is given to packets that come from Bridge, before they are
	// routed: policy routing can send them out by the network's own parent.
	// 0 stands for none.
	Mark uint32
}

// Mapping ties one external address to one internal address of the same
// family, for every port and protocol: what Filter keeps out does not reach the
// host or another container instead.
type Mapping struct {
	// Endpoint marks the rules as belonging to this endpoint; same form as
	// Network.ID. An endpoint may have several mappings.
	Endpoint string
	External netip.Addr
	Internal netip.Addr
	// Gateway hides the client's address: the container sees its bridge's
	// address as the peer of every connection made to External.
	Gateway bool
	// Egress lets the connections that the container opens leave from
	// External. Among the mappings of one internal address, at most one per
	// family has it; with none, such connections are masqueraded.
	Egress bool
	// Filter keeps out what may not connect to External; nil if everything
	// may. It is not changed after it was handed over.
	Filter *Filter
	// Limit bounds the connections to External, and those that the container
	// opens.
	Limit Limit
}

// State is everything a backend should hold: no more and no less.
type State struct {
	Networks []Network
	Mappings []Mapping
}

// Backend writes NAT into the kernel. Every method is an ensure: what is
// there already is no error, and neither is removing what is absent. A method
// returns when new connections follow the change. Methods may be called
// concurrently; a call's cost does not grow with the number of mappings.
//
// A network is added before the mappings into its subnets and removed after
// them.
type Backend interface {
	AddNetwork(Network) error
	RemoveNetwork(Network) error
	// Add installs mappings, all or none. An external address that is
	// mapped already moves to its new internal address in one step.
	Add(...Mapping) error
	// Remove takes mappings away and goes on after an error, which it
	// returns joined with the others'.
	Remove(...Mapping) error
	// Sync makes the kernel hold exactly State, which is what the backend
	// was told from then on. It leaves alone what is right already and
	// everything that is not ours, and returns one line per thing it had to
	// repair, none when all was well. A new Backend is told this way what
	// there was before it.
	Sync(State) (repaired []string, err error)
	// Repair is Sync with what the backend was told.
	Repair() (repaired []string, err error)
	// Check returns the lines that Repair would, and changes nothing.
	Check() (differences []string, err error)
	// Counters is what was counted of each external address that is mapped,
	// since it was, or since an earlier process mapped it. No number of an
	// address goes down as long as it stays mapped, to whatever container.
	// What somebody else's flush took away since the last call is not in it.
	// It is empty where the kernel can't count.
	// Its cost grows with the number of mappings; other methods don't wait
	// while the kernel is read.
	Counters() (map[netip.Addr]Counters, error)
}

// Sort puts a state into canonical order, so that equal states compare equal.
func (s *State) Sort() {
	slices.SortFunc(s.Networks, func(a, b Network) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(s.Mappings, func(a, b Mapping) int { return a.External.Compare(b.External) })
}
