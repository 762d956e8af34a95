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

// plumbing is what an endpoint needs from CreateEndpoint to DeleteEndpoint: its
// container must never be there unguarded.
func (d *Driver) plumbing(n store.Network, e store.Endpoint) []step {
	return []step{d.guardStep(n, e), d.vethStep(n, e)}
}

func (d *Driver) vethStep(n store.Network, e store.Endpoint) step {
	mac, _ := net.ParseMAC(e.MAC)
	host, peer := link.VethNames(e.ID)
	veth := link.Veth{
		Host: host, Peer: peer, Owner: e.ID, Note: endpointNote(e), Bridge: n.Bridge,
		MTU: n.MTU, MAC: mac, Isolated: !n.ICC,
	}
	return step{
		name: "veth pair",
		do:   func() error { return d.kernel.EnsureVeth(veth) },
		undo: func() error { return d.kernel.RemoveVeth(veth) },
	}
}

// CreateEndpoint claims the external addresses and makes the veth pair. An address
// that another host of the cluster has is waited for, as long as it takes to know
// that this host is dead, or lives; no lock is held meanwhile.
func (d *Driver) CreateEndpoint(r *api.CreateEndpointRequest) (*api.CreateEndpointResponse, error) {
	dead := map[string]bool{}
	for {
		answer, err := d.createEndpoint(r)
		taken, ok := errors.AsType[*store.TakenError](err)
		if !ok || taken.Host == "" || dead[taken.Host] || !d.dies(taken.Host) {
			return answer, err
		}
		dead[taken.Host] = true
		d.log.WithField("endpoint", short(r.EndpointID)).WithField("external", taken.Address).Infof("host %s is dead, its address is free", taken.Host)
	}
}

func (d *Driver) createEndpoint(r *api.CreateEndpointRequest) (*api.CreateEndpointResponse, error) {
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
	e.rec, e.known, e.changed = rec, true, time.Now()
	e.want, e.probe = want, d.probe(n.rec, rec.External, insists(want))
	d.remember(e)
	d.tell(EventClaimed, e, "", rec.External...)
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
	e.Filter = o.filter.over(n.rec.Filter)
	if err := checkFilter(e.Filter); err != nil {
		return e, store.Want{}, err
	}
	// Some engines may tell the container's name one day (moby/moby#52870).
	e.Name, _ = r.Options["com.docker.network.endpoint.name"].(string)
	if r.Interface == nil {
		return e, store.Want{}, errors.New("the engine gave no address: a network needs an IPAM driver that does")
	}
	for _, text := range []string{r.Interface.Address, r.Interface.AddressIPv6} {
		if text == "" {
			continue
		}
		address, err := netip.ParsePrefix(text)
		if err != nil || !slices.ContainsFunc(n.rec.Gateways, func(g netip.Prefix) bool { return g.Contains(address.Addr()) }) {
			return e, store.Want{}, fmt.Errorf("address %q is not of the network's subnets %s", text, join(n.rec.Gateways))
		}
		e.Addresses = append(e.Addresses, address)
	}
	if len(e.Addresses) == 0 {
		return e, store.Want{}, errors.New("the engine gave no address: a network needs an IPAM driver that does")
	}
	if e.MAC = r.Interface.MacAddress; e.MAC == "" {
		e.MAC = link.MAC(e.Addresses).String()
	}
	want, err := d.want(n, e, o)
	return e, want, err
}

// Join publishes the endpoint, once it is known that nobody else has its
// addresses, and tells the engine which link to take.
func (d *Driver) Join(r *api.JoinRequest) (*api.JoinResponse, error) {
	if err := d.settle(r.NetworkID, r.EndpointID); err != nil {
		return nil, err
	}
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
		answer.Gateway, answer.GatewayIPv6 = gatewayOf(n.rec, true), gatewayOf(n.rec, false)
		if len(e.rec.External) > 0 && !e.routed {
			d.lookLater(e)
		}
	}
	return answer, nil
}

// gatewayOf is a network's gateway of a family, "" if it has none.
func gatewayOf(n store.Network, v4 bool) string {
	for _, g := range n.Gateways {
		if g.Addr().Is4() == v4 {
			return g.Addr().String()
		}
	}
	return ""
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
	d.tell(EventReleased, e, "", e.rec.External...)
	d.forgetEndpoint(e)
	return nil
}

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
		for a, why := range e.withheld {
			info.Value["extip.withheld."+a.String()] = why
		}
		if e.rec.Reservation != "" {
			info.Value["extip.reservation"] = e.rec.Reservation
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
