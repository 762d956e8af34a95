package driver

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

// States of an Address.
const (
	// StatePublished: it leads to its container.
	StatePublished = "published"
	// StateWithheld: it would, but can't be on its interface now; Reason
	// says why.
	StateWithheld = "withheld"
	// StatePlumbed: it is claimed, and its container is being started, or
	// has stopped and is being removed.
	StatePlumbed = "plumbed"
	// StateDraining: it leads elsewhere by now, and what was connected
	// before stays with this container until it ends.
	StateDraining = "draining"
	// StateLeaving: its container is gone, and something in the kernel would
	// not go yet.
	StateLeaving = "leaving"
)

// An Address is an external address and whose it is.
type Address struct {
	External netip.Addr `json:"external"`
	Internal netip.Addr `json:"internal"`
	// Container is the container's name, "" until the engine has told it.
	Container string `json:"container,omitempty"`
	Endpoint  string `json:"endpoint"`
	Network   string `json:"network"`
	Parent    string `json:"parent"`
	// On is the interface that the address is put on, "" if it is routed to
	// this host. Port is the host's end of the container's link.
	On    string `json:"on,omitempty"`
	Port  string `json:"port,omitempty"`
	State string `json:"state"`
	// Reason explains a state that is not published.
	Reason string `json:"reason,omitempty"`
	// HeldBy is the host of the cluster that has the address now, if one does.
	HeldBy      string `json:"held_by,omitempty"`
	Reservation string `json:"reservation,omitempty"`
	// Source is client or gateway: whom the container sees as its client.
	Source string `json:"source"`
	// Egress tells from where the container's own connections leave:
	// external, this address; other, another one of its addresses; host.
	// It is empty for one that drains, and so are On and Conflicts.
	Egress string `json:"egress,omitempty"`
	// Ports may be reached, and Allow may connect, in the forms of the options
	// extip.ports and extip.allow; "" for all and everyone. Refuse says what
	// becomes of the rest.
	Ports  string `json:"ports,omitempty"`
	Allow  string `json:"allow,omitempty"`
	Refuse string `json:"refuse,omitempty"`
	// Limit is in the form of the option extip.limit, "" for none.
	Limit string `json:"limit,omitempty"`
	// Detour: another network has the container's default route, so that it
	// sees its gateway as the client, whatever Source says.
	Detour bool `json:"detour,omitempty"`
	// Since is when the container got the address.
	Since time.Time `json:"since"`
	// Conflicts is nil unless another host was heard to use the address.
	Conflicts *Clash `json:"conflicts,omitempty"`
	// Counters is nil unless Counted read them.
	Counters *nat.Counters `json:"counters,omitempty"`
}

// Where Address.Egress leads, besides the values of store.Egress.
const egressOther = "other"

// NetworkInfo is a network as an operator sees it.
type NetworkInfo struct {
	ID     string `json:"id"`
	Bridge string `json:"bridge"`
	Parent string `json:"parent"`
	// On is the interface that addresses are put on, "" if they are on none.
	On string `json:"on,omitempty"`
	// Follows: nobody named the parent, it is that of the default route.
	Follows  bool           `json:"follows,omitempty"`
	Gateways []netip.Prefix `json:"gateways"`
	Subnets  []netip.Prefix `json:"subnets"`
	// Pool is in the form of extip.pool; Size is how many addresses it has,
	// and Free how many of them are neither claimed nor reserved, both at most
	// math.MaxUint64.
	Pool     string `json:"pool,omitempty"`
	Size     uint64 `json:"size"`
	Free     uint64 `json:"free"`
	MTU      int    `json:"mtu"`
	Auto     bool   `json:"auto"`
	Source   string `json:"source"`
	Egress   string `json:"egress"`
	DAD      string `json:"dad"`
	Alias    string `json:"alias"`
	Conflict string `json:"conflict"`
	// Limit is in the form of the option extip.limit.
	Limit    string `json:"limit"`
	ICC      bool   `json:"icc"`
	Internal bool   `json:"internal,omitempty"`
	Leaving  bool   `json:"leaving,omitempty"`
	// Mark is given to its packets where the host has several uplinks, so
	// that they leave by Parent; 0 elsewhere.
	Mark uint32 `json:"mark,omitempty"`
	// Endpoints is how many it has; External how many addresses they have.
	Endpoints int `json:"endpoints"`
	External  int `json:"external"`
}

// Addresses is all external addresses that containers have, sorted. One that
// drains is there once more for each container that it drains from. Its cost
// grows with what there is.
func (d *Driver) Addresses() []Address {
	list, now := []Address{}, time.Now()
	d.eachEndpoint(func(n *network, e *endpoint) {
		for _, a := range e.rec.External {
			list = append(list, d.viewOf(n, e, a))
		}
		for a, until := range e.rec.Draining {
			if now.Before(until) {
				v := d.viewOf(n, e, a)
				v.State, v.Reason, v.On, v.Egress = StateDraining, "what was connected before stays until it ends, or "+until.Format(time.RFC3339), "", ""
				v.Since, v.Conflicts = until.Add(-maxDrain), nil
				list = append(list, v)
			}
		}
	})
	slices.SortFunc(list, func(a, b Address) int {
		return cmp.Or(a.External.Compare(b.External), cmp.Compare(drainingLast(a), drainingLast(b)), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	return list
}

// Counted is Addresses with what was counted of those that lead to their
// container. After an error some of it is missing.
func (d *Driver) Counted() ([]Address, error) {
	counters, err := d.kernel.NAT.Counters()
	list := d.Addresses()
	for i, a := range list {
		if c, ok := counters[a.External]; ok && a.State != StateDraining {
			list[i].Counters = &c
		}
	}
	return list, err
}

func drainingLast(a Address) int {
	if a.State == StateDraining {
		return 1
	}
	return 0
}

// viewOf is an address that an endpoint has; e.mu is held.
func (d *Driver) viewOf(n *network, e *endpoint, a netip.Addr) Address {
	v := Address{
		External: a, Container: e.rec.Name, Endpoint: e.id, Network: n.rec.ID, Parent: n.rec.Parent, On: aliasLink(n.rec),
		State: string(e.rec.State), Reservation: e.rec.Reservation, Source: string(e.rec.Source), Egress: string(e.rec.Egress),
		Detour: e.rec.Detour, Since: e.rec.Created, Conflicts: d.segments.conflict(a),
		Internal: insideFor(e.rec, a),
	}
	v.Port, _ = link.VethNames(e.id)
	if at, ok := e.rec.Since[a]; ok {
		v.Since = at
	}
	if e.rec.Egress == store.EgressExternal && !slices.ContainsFunc(mappings(e.rec), func(m nat.Mapping) bool { return m.External == a && m.Egress }) {
		v.Egress = egressOther
	}
	if f := e.rec.Filter; len(f.Ports)+len(f.Allow) > 0 {
		v.Ports, v.Allow, v.Refuse = portsText(f.Ports), allowText(f.Allow), string(f.Refuse)
	}
	if l := e.rec.Filter.Limit; l != (store.Limit{}) {
		v.Limit = limitText(l)
	}
	switch why := e.withheld[a]; {
	case e.rec.State == store.Plumbed:
		v.Reason = "its container is being started, or has stopped"
	case e.rec.State == store.Leaving:
		v.Reason = "it could not be taken away entirely; that is tried again"
	case why != "":
		v.State, v.Reason, v.HeldBy = StateWithheld, "it "+why, e.lost[a].host
	}
	return v
}

// NetworkInfos is all networks, in order of their ids. Its cost grows with what
// there is.
func (d *Driver) NetworkInfos() []NetworkInfo {
	list := []NetworkInfo{}
	for _, n := range d.networkRecords() {
		info := NetworkInfo{
			ID: n.ID, Bridge: n.Bridge, Parent: n.Parent, On: aliasLink(n), Follows: n.Follows, Gateways: n.Gateways, Subnets: subnets(n),
			Pool: n.Pool.String(), Size: n.Pool.Size(), Free: d.store.Free(n.Pool), MTU: n.MTU, Auto: n.Auto,
			Source: string(n.Source), Egress: string(n.Egress), DAD: string(n.DAD), Alias: string(n.Alias), Conflict: string(n.Conflict),
			Limit: limitText(n.Filter.Limit), ICC: n.ICC, Internal: n.Internal, Leaving: n.Leaving, Mark: d.natNetwork(n).Mark,
		}
		list = append(list, info)
	}
	byID := map[string]*NetworkInfo{}
	for i := range list {
		byID[list[i].ID] = &list[i]
	}
	d.eachEndpoint(func(n *network, e *endpoint) {
		if info := byID[n.rec.ID]; info != nil && e.rec.State != store.Retired {
			info.Endpoints++
			info.External += len(e.rec.External)
		}
	})
	return list
}

// Reservations is all reservations, in order of their names.
func (d *Driver) Reservations() ([]store.Reservation, error) { return d.store.Reservations() }

// An EndpointView is a container that runs on a network.
type EndpointView struct {
	ID, Container string
	// On is the interface that external addresses are put on, "" if none.
	On                 string
	Internal, External []netip.Addr
}

// Endpoints is all that are published, with external addresses or without. Its
// cost grows with what there is.
func (d *Driver) Endpoints() []EndpointView {
	var list []EndpointView
	d.eachEndpoint(func(n *network, e *endpoint) {
		if e.rec.State != store.Published {
			return
		}
		v := EndpointView{ID: e.id, Container: e.rec.Name, On: aliasLink(n.rec), External: slices.Clone(e.rec.External)}
		for _, p := range e.rec.Addresses {
			v.Internal = append(v.Internal, p.Addr())
		}
		list = append(list, v)
	})
	return list
}
