// Package driver answers libnetwork's calls: it turns a network or an endpoint
// into records and into the steps that make the kernel follow them. It is where
// the other packages meet; nothing else decides in which order things happen.
package driver

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	api "github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
)

// Defaults hold for networks that name no value of their own.
type Defaults struct {
	// Parent is an interface name; empty means that of the default route.
	Parent string
	Pool   pool.Pool
}

// Driver implements api.Driver. Calls about one endpoint wait for each other;
// calls about different endpoints don't.
type Driver struct {
	kernel   Kernel
	store    *store.Store
	defaults Defaults
	log      logrus.FieldLogger

	// mu guards the maps and the networks' cursors, and is never held while
	// the kernel or the store works. Locks are taken in the order network,
	// endpoint, mu.
	mu        sync.Mutex
	networks  map[string]*network
	endpoints map[string]*endpoint
	// subnets are the containers', by network; no external address is in one.
	subnets map[string][]netip.Prefix
	// parents are those that networks' packets have to leave by, by network;
	// needs is what that takes where the host has several uplinks, and uplinks
	// are all of them. uplinking is held while that is made out.
	parents   map[string]string
	needs     map[string]link.Uplink
	uplinks   []string
	uplinking sync.Mutex
	// pools are those of the networks. barring guards what the barrier was
	// told last, how many prefixes it couldn't take, and whether the kernel
	// can't keep one.
	pools    map[string]pool.Pool
	barring  sync.Mutex
	bars     []netip.Prefix
	beyond   int
	unbarred bool
	// inside and links find an endpoint by its container's address and by
	// the host's end of its veth pair.
	inside map[insideKey]*endpoint
	links  map[string]*endpoint

	// publishing guards published, the addresses that may be on an interface.
	publishing sync.Mutex
	published  map[netip.Addr]publication

	// drains is who still has flows of an address that has moved on; guarded
	// by mu.
	drains map[netip.Addr]map[link.Pair]*endpoint

	// retired are endpoints of which the link is still to go; guarded by mu.
	// wake says that there are some, to Retire, if that is running.
	retired  map[*endpoint]bool
	wake     chan struct{}
	retiring atomic.Bool

	// events tells those who listen what happens, and observer counts it.
	events   events
	observer Observer

	// segments is what is known of the wires. waiting are endpoints with
	// withheld addresses; guarded by mu.
	segments *segments
	waiting  map[*endpoint]bool
	// cluster is nil if this host is none of several. news is what its member
	// has told, and confirms asks for a parent's addresses to be asked for and
	// announced.
	cluster  Cluster
	news     *news
	confirms chan string

	// What Tend is asked for: networks whose pools to probe ahead, withheld
	// addresses, endpoints to look at.
	untended, withheldAgain chan string
	detours                 chan look

	reconciling sync.Mutex
	repairs     int // since the start; guarded by reconciling
	// hints and ruleHints hold a cause each, if there is one.
	hints, ruleHints chan string
	// joined asks for an audit soon: there may be a name to learn.
	joined chan struct{}
	// activated is when the engine last asked who we are, in nanoseconds of
	// Unix time: it does so once in its life.
	activated atomic.Int64
}

type insideKey struct {
	network string
	addr    netip.Addr
}

// network is a record in memory. Calls about the network itself hold mu for
// writing, calls about its endpoints for reading.
type network struct {
	mu  sync.RWMutex
	rec store.Network
	// known is false before the record is written and after it is deleted.
	known bool
	// ahead is the addresses of the pool that are probed, or being probed,
	// before they are asked for; guarded by Driver.mu.
	ahead []netip.Addr
	// gateways of the host's routes must never be external addresses.
	gateways []netip.Addr
}

// endpoint is a record in memory. Its id and network never change.
type endpoint struct {
	id, network string

	mu    sync.Mutex
	rec   store.Endpoint
	known bool
	// changed is when a call last set about changing it in the kernel.
	changed time.Time
	// want is what was claimed, and probe asks whether anybody else has it;
	// nil if a plugin that is no more has claimed it.
	want  store.Want
	probe *probe
	// withheld says of addresses why they are not on their parent now.
	withheld map[netip.Addr]string
	// lost are those of them that another host of the cluster has, or may have,
	// and giving is to whom it is not known whether they were handed over.
	lost   map[netip.Addr]loss
	giving map[netip.Addr]store.Claim
	// routed: the engine said that it holds its container's default route.
	routed bool
}

// New returns a Driver with what the store remembers. Call Restore before it
// serves, and Run and Retire while it does.
func New(k Kernel, s *store.Store, defaults Defaults, log logrus.FieldLogger) (*Driver, error) {
	if k.Guard == nil {
		k.Guard = nat.Unguarded{}
	}
	d := &Driver{
		kernel: k, store: s, defaults: defaults, log: log, observer: unobserved{},
		networks: map[string]*network{}, endpoints: map[string]*endpoint{}, subnets: map[string][]netip.Prefix{}, parents: map[string]string{}, pools: map[string]pool.Pool{},
		inside: map[insideKey]*endpoint{}, links: map[string]*endpoint{},
		drains: map[netip.Addr]map[link.Pair]*endpoint{}, retired: map[*endpoint]bool{}, wake: make(chan struct{}, 1),
		segments: newSegments(), waiting: map[*endpoint]bool{}, news: newNews(), confirms: make(chan string, 16),
		untended: make(chan string, 64), withheldAgain: make(chan string, 1), detours: make(chan look, 4096),
		published: map[netip.Addr]publication{}, hints: make(chan string, 1), ruleHints: make(chan string, 1), joined: make(chan struct{}, 1),
	}
	networks, err := s.Networks()
	if err != nil {
		return nil, err
	}
	for _, n := range networks {
		d.networks[n.ID] = &network{rec: n, known: true}
		d.subnets[n.ID] = subnets(n)
		d.parents[n.ID], d.pools[n.ID] = uplinkOf(n), n.Pool
	}
	endpoints, err := s.Endpoints()
	if err != nil {
		return nil, err
	}
	for _, rec := range endpoints {
		e := &endpoint{id: rec.ID, network: rec.Network, rec: rec, known: true, changed: time.Now()}
		d.endpoints[e.id] = e
		d.remember(e)
		if rec.State != store.Plumbed {
			d.markPublished(e, rec.External, aliasLink(d.networks[e.network].rec))
		}
		d.drainsChange(e, store.Endpoint{})
	}
	return d, nil
}

// remember lets an endpoint be found by what it has; e.mu is held.
func (d *Driver) remember(e *endpoint) {
	host, _ := link.VethNames(e.id)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.links[host] = e
	for _, p := range e.rec.Addresses {
		d.inside[insideKey{e.network, p.Addr()}] = e
	}
}

// forgetEndpoint undoes remember, and takes the endpoint out of the map.
func (d *Driver) forgetEndpoint(e *endpoint) {
	e.known = false
	d.markWithdrawn(e, e.rec.External)
	d.setRecord(e, withoutDrains(e.rec))
	host, _ := link.VethNames(e.id)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.retired, e)
	delete(d.waiting, e)
	remove(d.endpoints, e.id, e)
	remove(d.links, host, e)
	for _, p := range e.rec.Addresses {
		remove(d.inside, insideKey{e.network, p.Addr()}, e)
	}
}

// A publication is whose address may be on which interface, if on any.
type publication struct {
	e  *endpoint
	on string
}

// markPublished says, before the kernel is changed, that an endpoint's
// addresses may be on an interface.
func (d *Driver) markPublished(e *endpoint, addrs []netip.Addr, on string) {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	for _, a := range addrs {
		d.published[a] = publication{e, on}
	}
}

// publisher is the endpoint that may have an address published; nil if none has.
func (d *Driver) publisher(a netip.Addr) *endpoint {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	return d.published[a].e
}

// markWithdrawn says, after the kernel was changed, that they no longer are.
func (d *Driver) markWithdrawn(e *endpoint, addrs []netip.Addr) {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	for _, a := range addrs {
		if d.published[a].e == e {
			delete(d.published, a)
		}
	}
}

// remove takes a key away if it still leads to v.
func remove[K, V comparable](m map[K]V, key K, v V) {
	if m[key] == v {
		delete(m, key)
	}
}

// enter finds a network and keeps it from being changed until its mu is
// unlocked for reading.
func (d *Driver) enter(id string) (*network, error) {
	d.mu.Lock()
	n := d.networks[id]
	d.mu.Unlock()
	if n != nil {
		n.mu.RLock()
		if n.known {
			return n, nil
		}
		n.mu.RUnlock()
	}
	return nil, fmt.Errorf("unknown network %s", short(id))
}

// tryEnter is enter for whoever is in another network already: nil if a call is
// changing this one, or it is unknown.
func (d *Driver) tryEnter(id string) *network {
	d.mu.Lock()
	n := d.networks[id]
	d.mu.Unlock()
	if n == nil || !n.mu.TryRLock() {
		return nil
	}
	if !n.known {
		n.mu.RUnlock()
		return nil
	}
	return n
}

// lockEndpoint finds an endpoint and locks it; nil if it is unknown.
func (d *Driver) lockEndpoint(id string) *endpoint {
	d.mu.Lock()
	e := d.endpoints[id]
	d.mu.Unlock()
	if e == nil {
		return nil
	}
	e.mu.Lock()
	if !e.known {
		e.mu.Unlock()
		return nil
	}
	return e
}

// containerSubnet returns the container subnet that an address is in, of
// whichever network; not valid if there is none. Its cost grows with the number
// of networks.
func (d *Driver) containerSubnet(a netip.Addr) netip.Prefix {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, subnets := range d.subnets {
		for _, p := range subnets {
			if p.Contains(a) {
				return p
			}
		}
	}
	return netip.Prefix{}
}

// endpointsOf returns the endpoints of a network, in order of their ids.
func (d *Driver) endpointsOf(id string) []*endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []*endpoint
	for _, e := range d.endpoints {
		if e.network == id {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b *endpoint) int { return cmp.Compare(a.id, b.id) })
	return list
}

// short is the form of an id that docker's own listings use. Swarm's ids, and
// those of tests, may be shorter than that.
func short(id string) string { return id[:min(len(id), 12)] }

// natNetwork is a network as the NAT rules know it.
func (d *Driver) natNetwork(n store.Network) nat.Network {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := nat.Network{ID: short(n.ID), Bridge: n.Bridge, Internal: n.Internal, Subnets: subnets(n)}
	if !n.Internal {
		out.Uplinks, out.Mark = d.uplinks, d.needs[uplinkOf(n)].Mark
	}
	return out
}

// subnets are a network's container subnets.
func subnets(n store.Network) (list []netip.Prefix) {
	for _, g := range n.Gateways {
		list = append(list, g.Masked())
	}
	return list
}

// flows are those by which connection tracking knows an endpoint, and what was
// connected by its addresses before they moved there.
func (d *Driver) flows(e store.Endpoint) link.Flows {
	f := link.Flows{External: e.External, Pairs: d.drainsOf(e.External)}
	for _, p := range e.Addresses {
		f.Internal = append(f.Internal, p.Addr())
	}
	return f
}

// mappings are an endpoint as the NAT rules know it: each external address
// leads to the internal one of its family, and the first leads out.
func mappings(e store.Endpoint) []nat.Mapping {
	var out []nat.Mapping
	for _, in := range e.Addresses {
		egress := e.Egress == store.EgressExternal
		for _, ext := range e.External {
			if ext.Is4() != in.Addr().Is4() {
				continue
			}
			out = append(out, nat.Mapping{
				Endpoint: short(e.ID), External: ext, Internal: in.Addr(),
				Gateway: e.Source == store.SourceGateway || e.Detour, Egress: egress, Filter: natFilter(e.Filter, ext.Is4()),
				Limit: nat.Limit(e.Filter.Limit),
			})
			egress = false
		}
	}
	return out
}

// GetCapabilities must never fail: the engine would not ask again until it is
// restarted.
func (d *Driver) GetCapabilities() (*api.CapabilitiesResponse, error) {
	d.activated.Store(time.Now().UnixNano())
	return &api.CapabilitiesResponse{Scope: api.LocalScope, ConnectivityScope: api.LocalScope}, nil
}

// AllocateNetwork is only sent to drivers of global scope; the options pass unchanged.
func (d *Driver) AllocateNetwork(r *api.AllocateNetworkRequest) (*api.AllocateNetworkResponse, error) {
	return &api.AllocateNetworkResponse{Options: r.Options}, nil
}

// FreeNetwork undoes AllocateNetwork.
func (d *Driver) FreeNetwork(*api.FreeNetworkRequest) error { return nil }

// DiscoverNew tells of a swarm node; addresses of this host don't depend on it.
func (d *Driver) DiscoverNew(*api.DiscoveryNotification) error { return nil }

// DiscoverDelete undoes DiscoverNew.
func (d *Driver) DiscoverDelete(*api.DiscoveryNotification) error { return nil }
