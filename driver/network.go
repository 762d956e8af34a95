package driver

import (
	"errors"
	"fmt"
	"net/netip"

	api "github.com/docker/go-plugins-helpers/network"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

// networkSteps is what a network needs in the kernel, in order: nothing must
// be forwarded to or from the bridge before the rules that say what may be.
func (d *Driver) networkSteps(n store.Network) []step {
	bridge := link.Bridge{Name: n.Bridge, Owner: n.ID, Note: networkNote(n), Addresses: n.Gateways, MTU: n.MTU}
	return []step{
		{name: "enable forwarding", do: func() error {
			return d.settings(d.kernel.EnableForwarding(d.natNetwork(n).Uplinks, link.FamiliesOf(n.Gateways)))
		}},
		{name: "neighbours of the parent", do: func() error { return d.quietOthers(n) }},
		{
			name: "rules of the network",
			do:   func() error { return d.kernel.NAT.AddNetwork(d.natNetwork(n)) },
			undo: func() error { return d.kernel.NAT.RemoveNetwork(d.natNetwork(n)) },
		},
		{
			name: "guard of the network",
			do:   func() error { return d.kernel.Guard.Add(nat.Guarded{Networks: []string{n.ID}}) },
			undo: func() error { return d.kernel.Guard.Remove(nat.Guarded{Networks: []string{n.ID}}) },
		},
		{
			name: "bridge",
			do:   func() error { return d.kernel.EnsureBridge(bridge) },
			undo: func() error { return d.kernel.RemoveBridge(bridge) },
		},
	}
}

// settings tells of settings of the host that had to be changed.
func (d *Driver) settings(changed []string, err error) error {
	for _, what := range changed {
		d.log.WithField("setting", what).Warn("set on this host, where it stays")
	}
	return err
}

// quietOthers keeps other interfaces on the parent's segment from answering
// for external addresses, and says if the parent itself won't.
func (d *Driver) quietOthers(n store.Network) error {
	if n.Internal || aliasLink(n) == "" {
		return nil
	}
	err := d.settings(d.kernel.SettleARP(n.Parent))
	if err == nil {
		var why string
		if why, err = d.kernel.ARPTrouble(n.Parent, aliasLink(n)); why != "" {
			d.log.WithField("network", short(n.ID)).WithField("parent", n.Parent).Warnf("neighbours can't reach external addresses: %s", why)
		}
	}
	if errors.Is(err, link.ErrNoLink) {
		return nil // its addresses wait for it
	}
	return err
}

// CreateNetwork records a network and makes its bridge. A network that is
// known already is replaced: swarm creates the same one again after a crash of
// the engine, and deletes nothing before.
func (d *Driver) CreateNetwork(r *api.CreateNetworkRequest) error {
	rec, err := d.networkRecord(r)
	if err != nil {
		return err
	}
	n := d.lockNewNetwork(rec.ID)
	defer n.mu.Unlock()
	if n.known {
		if err := d.removeNetwork(n); err != nil {
			return fmt.Errorf("replace the network of the same id: %w", err)
		}
		d.mu.Lock()
		d.networks[rec.ID] = n
		d.mu.Unlock()
	}
	err = d.addNetwork(n, rec)
	if !n.known {
		d.forgetNetwork(rec.ID, n)
	}
	return err
}

// lockNewNetwork returns the network of that id, made if there is none, locked.
func (d *Driver) lockNewNetwork(id string) *network {
	for {
		d.mu.Lock()
		n := d.networks[id]
		if n == nil {
			n = &network{}
			d.networks[id] = n
		}
		d.mu.Unlock()
		n.mu.Lock()
		d.mu.Lock()
		current := d.networks[id] == n
		d.mu.Unlock()
		if current {
			return n
		}
		n.mu.Unlock() // another call has just deleted it
	}
}

// addNetwork records a network and does its steps; n.mu is held.
func (d *Driver) addNetwork(n *network, rec store.Network) error {
	gateways, err := d.kernel.Gateways()
	if err != nil {
		return err
	}
	if err := d.store.PutNetwork(rec); err != nil {
		return err
	}
	n.rec, n.known, n.gateways = rec, true, gateways
	d.mu.Lock()
	d.subnets[rec.ID] = subnets(rec)
	d.parents[rec.ID], d.pools[rec.ID] = uplinkOf(rec), rec.Pool
	d.mu.Unlock()
	if _, err := d.syncBarrier(); err != nil {
		return errors.Join(err, d.removeNetwork(n))
	}
	if err := d.uplinksChange(); err != nil {
		return errors.Join(err, d.removeNetwork(n))
	}
	if err := up(d.networkSteps(rec)); err != nil {
		if errors.Is(err, link.ErrNotOurs) {
			err = fmt.Errorf("com.docker.network.bridge.name=%s: %w", rec.Bridge, err)
		}
		return errors.Join(err, d.removeNetwork(n))
	}
	d.events.emit(Event{Kind: EventNetworkCreated, Network: rec.ID})
	d.tend(rec.ID)
	return nil
}

// DeleteNetwork removes a network with whatever endpoints it has left.
func (d *Driver) DeleteNetwork(r *api.DeleteNetworkRequest) error {
	d.mu.Lock()
	n := d.networks[r.NetworkID]
	d.mu.Unlock()
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.known {
		return nil
	}
	return d.removeNetwork(n)
}

// removeNetwork takes a network away, endpoints first; n.mu is held. What
// would not go stays on record as leaving: the engine, which doesn't listen
// to errors here, will not ask again.
func (d *Driver) removeNetwork(n *network) error {
	var errs []error
	for _, e := range d.endpointsOf(n.rec.ID) {
		e.mu.Lock()
		if e.known {
			errs = append(errs, d.removeEndpoint(n, e))
		}
		e.mu.Unlock()
	}
	errs = append(errs, down(d.networkSteps(n.rec)))
	if err := errors.Join(errs...); err != nil {
		n.rec.Leaving = true
		return errors.Join(err, d.store.PutNetwork(n.rec))
	}
	if err := d.store.DeleteNetwork(n.rec.ID); err != nil {
		return err
	}
	d.forgetNetwork(n.rec.ID, n)
	d.events.emit(Event{Kind: EventNetworkRemoved, Network: n.rec.ID})
	_, err := d.syncBarrier()
	return errors.Join(err, d.uplinksChange())
}

// uplinksChange follows the parents of networks that have come or gone; what
// that means for other networks, the next reconciliation sees to.
func (d *Driver) uplinksChange() error {
	changed, err := d.syncUplinks()
	if changed {
		d.Hint("uplinks")
	}
	return err
}

func (d *Driver) forgetNetwork(id string, n *network) {
	n.known = false
	d.mu.Lock()
	defer d.mu.Unlock()
	remove(d.networks, id, n)
	delete(d.subnets, id)
	delete(d.parents, id)
	delete(d.pools, id)
}

// networkRecord makes a record of what the engine asks for, or says what is
// wrong with it. Nothing is changed yet.
func (d *Driver) networkRecord(r *api.CreateNetworkRequest) (store.Network, error) {
	given, _ := r.Options["com.docker.network.generic"].(map[string]any)
	o, ignored, err := decodeNetwork(given)
	if err != nil {
		return store.Network{}, err
	}
	if len(ignored) > 0 {
		d.log.WithField("network", short(r.NetworkID)).Warnf("options without effect here: %v", ignored)
	}
	internal, _ := r.Options["com.docker.network.internal"].(bool)
	n := store.Network{
		ID: r.NetworkID, Bridge: o.bridge, Parent: o.parent, MTU: o.mtu, Pool: o.pool,
		Auto: o.auto, Source: o.source, Egress: o.egress, ICC: o.icc, Internal: internal,
		DAD: o.dad, Alias: o.alias, Conflict: o.conflict, Filter: o.filter, Spoof: o.spoof,
	}
	if err := checkFilter(n.Filter); err != nil {
		return n, err
	}
	if n.Bridge == "" {
		n.Bridge = link.BridgeName(n.ID)
	}
	if err := gateways(&n, r); err != nil {
		return n, err
	}
	if err := d.choosePool(&n); err != nil {
		return n, err
	}
	if err := d.chooseParent(&n); err != nil {
		return n, err
	}
	return n, d.makeRoom(n)
}

// gateways reads the bridge's own addresses from the engine's address data.
func gateways(n *store.Network, r *api.CreateNetworkRequest) error {
	if len(r.IPv4Data) > 1 || len(r.IPv6Data) > 1 || len(r.IPv4Data)+len(r.IPv6Data) == 0 {
		return fmt.Errorf("--subnet: there must be one IPv4 subnet, one IPv6 subnet, or one of each, not %d and %d", len(r.IPv4Data), len(r.IPv6Data))
	}
	for _, data := range append(r.IPv4Data, r.IPv6Data...) {
		if data == nil {
			return errors.New("--subnet: the engine told none")
		}
		subnet, err := netip.ParsePrefix(data.Pool)
		if err != nil || subnet.Bits() == 0 {
			return fmt.Errorf("--subnet: a network needs a subnet of its own, not %q", data.Pool)
		}
		gateway, err := netip.ParsePrefix(data.Gateway)
		if err != nil {
			return fmt.Errorf("--gateway: %q is no address of the subnet %s", data.Gateway, subnet)
		}
		n.Gateways = append(n.Gateways, netip.PrefixFrom(gateway.Addr(), subnet.Bits()))
		n.AddressSpace = data.AddressSpace
	}
	return nil
}

// choosePool checks the pool, or fills in what the default one has of the
// network's families.
func (d *Driver) choosePool(n *store.Network) error {
	of := link.FamiliesOf(n.Gateways)
	switch {
	case n.Internal && !n.Pool.Empty():
		return fmt.Errorf("extip.pool=%s: an --internal network has no external addresses", n.Pool)
	case n.Internal:
		return nil
	case n.Pool.Empty() && of.V4 && of.V6:
		n.Pool = d.defaults.Pool
	case n.Pool.Empty():
		n.Pool = d.defaults.Pool.Of(of.V4)
	case !of.V6 && !n.Pool.Of(false).Empty():
		return fmt.Errorf("extip.pool=%s: IPv6 addresses need a network with --ipv6 and an IPv6 subnet", n.Pool)
	case !of.V4 && !n.Pool.Of(true).Empty():
		return fmt.Errorf("extip.pool=%s: IPv4 addresses need a network with an IPv4 subnet", n.Pool)
	}
	for _, g := range n.Gateways {
		if n.Pool.Overlaps(g) {
			return fmt.Errorf("extip.pool=%s: it has addresses inside the container subnet %s", n.Pool, g.Masked())
		}
	}
	return nil
}

// maxMTU is the most that containers get where none is asked for, in bytes: lo
// has more than an Ethernet segment ever passes.
const maxMTU = 9000

// mtuOf is the MTU of containers where none is asked for: that of the network's
// parent, or where this is lo, of the interface of the default route, if any.
func (d *Driver) mtuOf(name string, parent link.ParentInfo) int {
	if name == "lo" {
		if way, err := d.kernel.DefaultParent(); err == nil {
			if out, err := d.kernel.Parent(way); err == nil {
				parent = out
			}
		}
	}
	return min(parent.MTU, maxMTU)
}

// chooseParent fills in the parent, and the MTU that comes with it.
func (d *Driver) chooseParent(n *store.Network) (err error) {
	if n.Parent == "" {
		n.Parent = d.defaults.Parent
	}
	if n.Parent == "" {
		n.Follows = true
		if n.Parent, err = d.kernel.DefaultParent(); err != nil {
			return fmt.Errorf("extip.parent is not given, and there is no default: %w", err)
		}
	}
	parent, err := d.kernel.Parent(n.Parent)
	if err != nil {
		return fmt.Errorf("extip.parent=%s: %w", n.Parent, err)
	}
	if parent.Master != "" && aliasLink(*n) == n.Parent {
		return fmt.Errorf("extip.parent=%s: it is a port of %s, which has the addresses; name that", n.Parent, parent.Master)
	}
	if n.MTU == 0 {
		n.MTU = d.mtuOf(n.Parent, parent)
	}
	return nil
}

// makeRoom refuses a bridge, or a subnet, that another network has. A network
// without endpoints gives way to one of the same address space: the engine
// keeps subnets apart there, and can only have forgotten it, as when it never
// heard the answer to its CreateNetwork.
func (d *Driver) makeRoom(n store.Network) error {
	for _, other := range d.networkRecords() {
		if other.ID == n.ID {
			continue
		}
		var conflict error
		if other.Bridge == n.Bridge {
			conflict = fmt.Errorf("com.docker.network.bridge.name=%s: it is the bridge of network %s", n.Bridge, short(other.ID))
		}
		for _, a := range other.Gateways {
			for _, b := range n.Gateways {
				if a.Overlaps(b) {
					conflict = fmt.Errorf("--subnet %s overlaps %s of network %s", b.Masked(), a.Masked(), short(other.ID))
					if other.AddressSpace == n.AddressSpace && len(d.endpointsOf(other.ID)) == 0 {
						d.log.WithField("network", short(other.ID)).Warnf("superseded by network %s, which has its subnet", short(n.ID))
						conflict = d.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: other.ID})
					}
				}
			}
		}
		if conflict != nil {
			return conflict
		}
	}
	return nil
}

// networkRecords is a copy of all networks' records.
func (d *Driver) networkRecords() []store.Network {
	var records []store.Network
	for _, n := range d.networkList() {
		n.mu.RLock()
		if n.known {
			records = append(records, n.rec)
		}
		n.mu.RUnlock()
	}
	return records
}
