package driver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	api "github.com/docker/go-plugins-helpers/network"

	"github.com/extip/extip/link"
	"github.com/extip/extip/store"
)

// plumbing is what an endpoint needs from CreateEndpoint to DeleteEndpoint.
func (d *Driver) plumbing(n store.Network, e store.Endpoint) []step {
	mac, _ := net.ParseMAC(e.MAC)
	host, peer := link.VethNames(e.ID)
	veth := link.Veth{
		Host: host, Peer: peer, Owner: e.ID, Note: endpointNote(e), Bridge: n.Bridge,
		MTU: n.MTU, MAC: mac, Isolated: !n.ICC,
	}
	return []step{{
		name: "veth pair",
		do:   func() error { return d.kernel.EnsureVeth(veth) },
		undo: func() error { return d.kernel.RemoveVeth(veth) },
	}}
}

// publication is what an endpoint needs from Join to Leave, in order. An alias
// without its mapping would have the host itself answer on the external
// address, so it comes after it and goes before it.
func (d *Driver) publication(n store.Network, e store.Endpoint) []step {
	forget := func() error { return d.kernel.Forget(flows(e)) }
	released := step{name: "flows", undo: forget}
	if len(e.External) == 0 {
		return []step{released}
	}
	maps := mappings(e)
	var stuck []netip.Addr // aliases that would not go
	steps := []step{
		released,
		{
			name: "mapping",
			do:   func() error { return d.kernel.NAT.Add(maps...) },
			undo: func() error {
				if len(stuck) > 0 {
					return fmt.Errorf("kept, while %s is on %s", join(stuck), n.Parent)
				}
				return d.kernel.NAT.Remove(maps...)
			},
		},
		{name: "flows from before", do: forget, once: true},
	}
	for _, a := range e.External {
		steps = append(steps,
			step{
				name: "alias " + a.String(),
				do:   func() error { return d.kernel.EnsureAlias(n.Parent, a) },
				undo: func() error {
					err := d.kernel.RemoveAlias(n.Parent, a)
					if err != nil {
						stuck = append(stuck, a)
					}
					return err
				},
			},
			step{name: "announcement of " + a.String(), do: func() error {
				// A parent that is down has no neighbours to tell.
				if err := d.kernel.Announce(n.Parent, a); err != nil {
					d.log.WithField("external", a).WithError(err).Warn("not announced")
				}
				return nil
			}},
		)
	}
	return steps
}

// CreateEndpoint claims the external addresses and makes the veth pair.
func (d *Driver) CreateEndpoint(r *api.CreateEndpointRequest) (*api.CreateEndpointResponse, error) {
	n, err := d.enter(r.NetworkID)
	if err != nil {
		return nil, err
	}
	defer n.mu.RUnlock()

	d.mu.Lock()
	e := d.endpoints[r.EndpointID]
	if e == nil {
		e = &endpoint{id: r.EndpointID, network: n.rec.ID}
		d.endpoints[e.id] = e
	}
	d.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.known {
		return nil, fmt.Errorf("endpoint %s exists already", short(r.EndpointID))
	}
	answer, err := d.addEndpoint(n, e, r)
	if !e.known {
		d.forgetEndpoint(e)
	}
	return answer, err
}

// addEndpoint records an endpoint with its claims and does its first steps;
// e.mu is held.
func (d *Driver) addEndpoint(n *network, e *endpoint, r *api.CreateEndpointRequest) (*api.CreateEndpointResponse, error) {
	rec, want, err := d.endpointRecord(n, r)
	if err != nil {
		return nil, err
	}
	if rec, err = d.claim(n, rec, want); err != nil {
		return nil, refusal(err)
	}
	if !want.Pool.Empty() {
		d.mu.Lock()
		n.cursor = rec.External[len(rec.External)-1]
		d.mu.Unlock()
	}
	e.rec, e.known, e.changed = rec, true, time.Now()
	d.remember(e)
	if err := up(d.plumbing(n.rec, rec)); err != nil {
		return nil, errors.Join(err, d.removeEndpoint(n, e))
	}

	// The engine refuses an answer to what it has decided itself, even the
	// same one.
	answer := &api.CreateEndpointResponse{Interface: &api.EndpointInterface{}}
	if r.Interface.MacAddress == "" {
		answer.Interface.MacAddress = rec.MAC
	}
	return answer, nil
}

// refusal words the store's answer for the person who typed docker run.
func refusal(err error) error {
	if taken, ok := errors.AsType[*store.TakenError](err); ok {
		return fmt.Errorf("extip.address=%s: %w", taken.Address, taken)
	}
	if full, ok := errors.AsType[*store.ExhaustedError](err); ok {
		return fmt.Errorf("extip.pool: %w", full)
	}
	return err
}

// endpointRecord makes a record, and what it wants claimed, of what the engine
// asks for, or says what is wrong with it. Nothing is changed yet.
func (d *Driver) endpointRecord(n *network, r *api.CreateEndpointRequest) (store.Endpoint, store.Want, error) {
	o, err := decodeEndpoint(r.Options)
	if err != nil {
		return store.Endpoint{}, store.Want{}, err
	}
	e := store.Endpoint{
		ID: r.EndpointID, Network: n.rec.ID, State: store.Plumbed, Created: time.Now().UTC(),
		Source: n.rec.Source, Egress: n.rec.Egress,
	}
	if o.source != "" {
		e.Source = o.source
	}
	if o.egress != "" {
		e.Egress = o.egress
	}
	// Some engines may tell the container's name one day (moby/moby#52870).
	e.Name, _ = r.Options["com.docker.network.endpoint.name"].(string)
	if r.Interface == nil {
		return e, store.Want{}, errors.New("the engine gave no address: a network needs an IPAM driver that does")
	}
	address, err := netip.ParsePrefix(r.Interface.Address)
	if err != nil || !slices.ContainsFunc(n.rec.Gateways, func(g netip.Prefix) bool { return g.Contains(address.Addr()) }) {
		return e, store.Want{}, fmt.Errorf("address %q is not of the network's subnet: a network needs an IPAM driver that gives one", r.Interface.Address)
	}
	e.Addresses = []netip.Prefix{address}
	if e.MAC = r.Interface.MacAddress; e.MAC == "" {
		e.MAC = link.MAC(e.Addresses).String()
	}
	want, err := d.want(n, o)
	return e, want, err
}

// want says which external addresses an endpoint is to have.
func (d *Driver) want(n *network, o endpointOptions) (store.Want, error) {
	switch {
	case o.none:
		return store.Want{}, nil
	case n.rec.Internal && (o.auto || len(o.addresses) > 0):
		return store.Want{}, errors.New("extip.address: an --internal network has no external addresses")
	case n.rec.Internal:
		return store.Want{}, nil
	}
	for _, a := range o.addresses {
		reason, err := d.unusable(n, a)
		if err != nil {
			return store.Want{}, err
		}
		if reason != "" {
			return store.Want{}, fmt.Errorf("extip.address=%s: it %s", a, reason)
		}
	}
	want := store.Want{Addresses: o.addresses}
	if len(o.addresses) == 0 && (o.auto || n.rec.Auto) {
		if o.auto && n.rec.Pool.Empty() {
			return want, errors.New("extip.address=auto: the network has no extip.pool")
		}
		d.mu.Lock()
		want.Pool, want.After = n.rec.Pool, n.cursor
		d.mu.Unlock()
		want.Usable = func(a netip.Addr) bool {
			reason, err := d.unusable(n, a)
			return err == nil && reason == ""
		}
	}
	return want, nil
}

// unusable says why an address can't be an external one on this host, as the
// end of a sentence about it; "" if it can. Its cost grows with the number of
// networks, not with that of addresses.
func (d *Driver) unusable(n *network, a netip.Addr) (string, error) {
	switch {
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast():
		return "is not an address that others can connect to", nil
	case slices.Contains(n.gateways, a):
		return "is a gateway of this host", nil
	}
	if subnet := d.containerSubnet(a); subnet.IsValid() {
		return fmt.Sprintf("is inside the container subnet %s", subnet), nil
	}
	return d.kernel.Unusable(n.rec.Parent, a)
}

// Join publishes the endpoint and tells the engine which link to take.
func (d *Driver) Join(r *api.JoinRequest) (*api.JoinResponse, error) {
	n, err := d.enter(r.NetworkID)
	if err != nil {
		return nil, err
	}
	defer n.mu.RUnlock()
	e, err := d.lockLiving(r.EndpointID)
	if err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	if err := d.publish(n, e); err != nil {
		return nil, err
	}
	select {
	case d.joined <- struct{}{}:
	default:
	}
	_, peer := link.VethNames(e.rec.ID)
	answer := &api.JoinResponse{InterfaceName: api.InterfaceName{SrcName: peer, DstPrefix: "eth"}}
	if !n.rec.Internal {
		for _, g := range n.rec.Gateways {
			answer.Gateway = g.Addr().String()
		}
	}
	return answer, nil
}

// lockLiving finds an endpoint that the engine has not deleted, and locks it.
func (d *Driver) lockLiving(id string) (*endpoint, error) {
	e := d.lockEndpoint(id)
	if e != nil && e.rec.State != store.Leaving && e.rec.State != store.Retired {
		return e, nil
	}
	if e != nil {
		e.mu.Unlock()
	}
	return nil, fmt.Errorf("unknown endpoint %s", short(id))
}

// publish records the endpoint as published and does the steps; e.mu is held.
func (d *Driver) publish(n *network, e *endpoint) error {
	e.changed = time.Now()
	if err := d.setState(e, store.Published); err != nil {
		return err
	}
	d.markPublished(e)
	if err := up(d.publication(n.rec, e.rec)); err != nil {
		return errors.Join(err, d.unpublish(n, e))
	}
	return nil
}

// unpublish undoes publish; e.mu is held. Until everything is gone, the record
// stays as it was.
func (d *Driver) unpublish(n *network, e *endpoint) error {
	if e.rec.State == store.Plumbed || e.rec.State == store.Retired {
		return nil
	}
	e.changed = time.Now()
	if err := down(d.publication(n.rec, e.rec)); err != nil {
		return err
	}
	d.markWithdrawn(e)
	return d.setState(e, store.Plumbed)
}

// setState records how far the endpoint has come; e.mu is held.
func (d *Driver) setState(e *endpoint, s store.State) error {
	if e.rec.State == s {
		return nil
	}
	rec := e.rec
	rec.State = s
	if err := d.store.PutEndpoint(rec); err != nil {
		return err
	}
	e.rec = rec
	return nil
}

// Leave takes the external addresses away. It may come twice, and without a Join.
func (d *Driver) Leave(r *api.LeaveRequest) error {
	return d.withEndpoint(r.NetworkID, r.EndpointID, d.unpublish)
}

// DeleteEndpoint removes what is left of an endpoint and releases its claims.
// Its link may go a little later.
func (d *Driver) DeleteEndpoint(r *api.DeleteEndpointRequest) error {
	return d.withEndpoint(r.NetworkID, r.EndpointID, d.retire)
}

// withEndpoint calls fn with an endpoint locked; one that is unknown is gone
// already, and that is no error.
func (d *Driver) withEndpoint(networkID, endpointID string, fn func(*network, *endpoint) error) error {
	n, err := d.enter(networkID)
	if err != nil {
		return nil
	}
	defer n.mu.RUnlock()
	e := d.lockEndpoint(endpointID)
	if e == nil {
		return nil
	}
	defer e.mu.Unlock()
	return fn(n, e)
}

// removeEndpoint takes an endpoint away whatever its state; e.mu is held. What
// would not go stays on record, and keeps its addresses claimed.
func (d *Driver) removeEndpoint(n *network, e *endpoint) error {
	err := errors.Join(d.unpublish(n, e), down(d.plumbing(n.rec, e.rec)))
	if err != nil {
		return errors.Join(err, d.setState(e, store.Leaving))
	}
	if err := d.store.DeleteEndpoints(e.rec.ID); err != nil {
		return err
	}
	d.forgetEndpoint(e)
	return nil
}

// ProgramExternalConnectivity says that the endpoint now holds the container's
// default route. Its address works since Join whoever holds it; what is left is
// to refuse an endpoint that has not joined.
func (d *Driver) ProgramExternalConnectivity(r *api.ProgramExternalConnectivityRequest) error {
	n, err := d.enter(r.NetworkID)
	if err != nil {
		return err
	}
	defer n.mu.RUnlock()
	e, err := d.lockLiving(r.EndpointID)
	if err != nil {
		return err
	}
	defer e.mu.Unlock()
	if e.rec.State == store.Published {
		return nil
	}
	return d.publish(n, e)
}

// RevokeExternalConnectivity says that another network of the container holds
// its default route from now on, or that a Leave follows. The first must not
// cut off whoever is connected, and the second does its own work.
func (d *Driver) RevokeExternalConnectivity(*api.RevokeExternalConnectivityRequest) error { return nil }

// EndpointInfo tells what an endpoint has. It never fails: engines before 28
// give the container up if it does.
func (d *Driver) EndpointInfo(r *api.InfoRequest) (*api.InfoResponse, error) {
	info := &api.InfoResponse{Value: map[string]string{}}
	_ = d.withEndpoint(r.NetworkID, r.EndpointID, func(n *network, e *endpoint) error {
		host, _ := link.VethNames(e.rec.ID)
		info.Value = map[string]string{
			"extip.external": join(e.rec.External),
			"extip.internal": join(e.rec.Addresses),
			"extip.parent":   n.rec.Parent,
			"extip.bridge":   n.rec.Bridge,
			"extip.veth":     host,
			"extip.state":    string(e.rec.State),
		}
		return nil
	})
	return info, nil
}

// join lists values for a person.
func join[T fmt.Stringer](list []T) string {
	parts := make([]string, len(list))
	for i, v := range list {
		parts[i] = v.String()
	}
	return strings.Join(parts, ",")
}
