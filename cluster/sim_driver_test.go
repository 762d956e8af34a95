package cluster

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
)

// The driver's own figures.
const (
	simConfirmInterval = 10 * time.Second // confirmInterval
	simReclaimInterval = 30 * time.Second // reclaimInterval, and main's reconcile-interval
	simTendInterval    = 10 * time.Second // tendInterval
	simClearFor        = 5 * time.Minute  // clearFor
	simForeignFor      = time.Minute      // foreignFor
	simChallenges      = 3
	simChallengeWait   = 200 * time.Millisecond
)

// A simDriver is what package driver decides about addresses; its methods have
// the names of driver's.
type simDriver struct {
	life      *program
	sim       *sim
	endpoints map[string]*simEndpoint
	published map[netip.Addr]*simEndpoint
	// joined and changed are what the member has told, newsCame that it has.
	joined         bool
	changed        map[netip.Addr]bool
	newsCame       latch
	withheldAgain  latch
	clear, foreign map[netip.Addr]time.Duration
	announcer      simAnnouncer
}

type simEndpoint struct {
	id       string
	mu       lock
	rec      store.Endpoint
	known    bool
	c        *container // nil in a program that found it on record
	withheld map[netip.Addr]string
	lost     map[netip.Addr]string
	giving   map[netip.Addr]store.Claim
}

func newSimDriver(life *program) *simDriver {
	d := &simDriver{
		life: life, sim: life.host.sim, endpoints: map[string]*simEndpoint{}, published: map[netip.Addr]*simEndpoint{},
		changed: map[netip.Addr]bool{}, clear: map[netip.Addr]time.Duration{}, foreign: map[netip.Addr]time.Duration{},
		announcer: simAnnouncer{entries: map[netip.Addr]*simEntry{}},
	}
	records, err := life.store.Endpoints()
	if err != nil {
		d.sim.wrong("read endpoints: %v", err)
	}
	for _, rec := range records {
		e := newSimEndpoint(rec.ID)
		e.rec, e.known = rec, true
		d.endpoints[e.id] = e
		if rec.State != store.Plumbed {
			d.publishes(e, rec.External)
		}
	}
	return d
}

func newSimEndpoint(id string) *simEndpoint {
	return &simEndpoint{id: id, withheld: map[netip.Addr]string{}, lost: map[netip.Addr]string{}, giving: map[netip.Addr]store.Claim{}}
}

func (d *simDriver) publishes(e *simEndpoint, addrs []netip.Addr) {
	for _, a := range addrs {
		d.published[a] = e
	}
}

func (d *simDriver) host() *simHost { return d.life.host }

func (d *simDriver) isApart() bool {
	_, apart := d.life.member.Apart()
	return apart
}

func (d *simDriver) mayKeep(a netip.Addr) bool { return d.sim.plant.mayDefend(d.life.member, a) }

// holder is the other host that has an address by the ledger.
func (d *simDriver) holder(a netip.Addr) string {
	if c, ok := d.life.store.Holder(a); ok && c.Host != d.host().name {
		return c.Host
	}
	return ""
}

func (d *simDriver) barred(e *simEndpoint, a netip.Addr) string {
	why, lost := e.lost[a]
	switch c, ok := d.sim.plant.holder(d.life, a); {
	case ok && c.Host != d.host().name:
		return "is held by host " + c.Host
	case d.isApart() && lost:
		return why
	case d.isApart() || ok && c.Endpoint == e.id:
		return ""
	case lost:
		return why
	default:
		return "has no claim yet"
	}
}

// sorted are the endpoints that are known, in the order of their ids.
func (d *simDriver) sorted() (list []*simEndpoint) {
	for _, id := range slices.Sorted(maps.Keys(d.endpoints)) {
		if e := d.endpoints[id]; e.known {
			list = append(list, e)
		}
	}
	return list
}

// with calls fn with an endpoint locked, if it is known then.
func (d *simDriver) with(p *proc, e *simEndpoint, fn func()) {
	p.lock(&e.mu)
	defer p.unlock(&e.mu)
	if e.known {
		fn()
	}
}

// put has the kernel answer for addresses, and says so on the wire.
func (d *simDriver) put(e *simEndpoint) {
	for _, a := range e.rec.External {
		if e.withheld[a] == "" {
			d.host().answers[a] = true
			d.sim.look()
			d.announce(a)
		}
	}
}

func (d *simDriver) remove(a netip.Addr) {
	delete(d.announcer.entries, a)
	delete(d.host().answers, a)
	d.sim.look()
}

// create is driver.CreateEndpoint.
func (d *simDriver) create(p *proc, e *simEndpoint, want store.Want) error {
	dead := map[string]bool{}
	for {
		err := d.claim(p, e, want)
		taken, ok := errors.AsType[*store.TakenError](err)
		if !ok || taken.Host == "" || dead[taken.Host] || d.life.await(p, taken.Host) != nil {
			return err
		}
		dead[taken.Host] = true
		d.host().note("%s: host %s is dead", e.id, taken.Host)
	}
}

func (d *simDriver) claim(p *proc, e *simEndpoint, want store.Want) error {
	p.lock(&e.mu)
	defer p.unlock(&e.mu)
	var rec store.Endpoint
	lease := d.life.member.lease
	err := d.life.write(p, func() (err error) {
		rec, err = d.life.store.CreateEndpoint(e.rec, want)
		return err
	})
	if err != nil {
		return err
	}
	d.sim.claimed(d, rec, lease)
	e.rec, e.known = rec, true
	d.endpoints[e.id] = e
	d.host().links[e.id] = true
	d.host().note("%s: claimed %v", e.id, rec.External)
	return nil
}

// settle is driver.settle, and what it calls.
func (d *simDriver) settle(p *proc, e *simEndpoint, want store.Want) error {
	for {
		addrs := slices.DeleteFunc(slices.Clone(e.rec.External), func(a netip.Addr) bool { return d.sim.now() < d.clear[a] })
		var owners map[netip.Addr]*simHost
		if len(addrs) > 0 {
			owners = p.probe(addrs)
			if want.Reservation != "" || len(want.Addresses) > 0 { // insists
				owners = d.challenge(p, owners)
			}
		}
		taken := false
		for _, a := range addrs {
			owner := owners[a]
			if owner == nil {
				continue
			}
			d.learn(a, true)
			d.host().note("%s: %s is answered for by %s", e.id, a, owner.name)
			if slices.Contains(want.Addresses, a) || e.rec.Reservation != "" {
				return errors.New("is used by " + owner.name)
			}
			taken = true
		}
		if !taken {
			return nil
		}
		if err := d.claim(p, e, want); err != nil {
			return err
		}
	}
}

func (d *simDriver) learn(a netip.Addr, used bool) {
	if used {
		delete(d.clear, a)
		d.foreign[a] = d.sim.now() + simForeignFor
		return
	}
	delete(d.foreign, a)
	d.clear[a] = d.sim.now() + simClearFor
}

// contests and challenge are driver's.
func (d *simDriver) contests(a netip.Addr, owner *simHost) bool {
	return d.life.member.Member(owner.mac) != "" && !d.isApart() && d.holder(a) == ""
}

func (d *simDriver) challenge(p *proc, owners map[netip.Addr]*simHost) map[netip.Addr]*simHost {
	for range simChallenges {
		var contested []netip.Addr
		for a, owner := range owners {
			if d.contests(a, owner) {
				contested = append(contested, a)
			}
		}
		if len(contested) == 0 {
			break
		}
		slices.SortFunc(contested, netip.Addr.Compare)
		for _, a := range contested {
			d.host().note("challenges %s for %s", owners[a].name, a)
			d.sim.announce(d.host(), a)
		}
		p.sleep(simChallengeWait)
		still := p.probe(contested)
		for _, a := range contested {
			if owner := still[a]; owner != nil {
				owners[a] = owner
			} else {
				delete(owners, a)
			}
		}
	}
	return owners
}

// publish is driver.publish.
func (d *simDriver) publish(p *proc, e *simEndpoint) (err error) {
	d.with(p, e, func() {
		if err = d.setState(p, e, store.Published); err != nil {
			return
		}
		d.publishes(e, e.rec.External)
		for _, a := range e.rec.External {
			if host := d.holder(a); host != "" {
				d.markLost(e, a, "is held by host "+host)
			} else if why := d.barred(e, a); why != "" {
				d.withhold(e, a, why)
			}
		}
		d.put(e)
		d.host().note("%s: published %v, withheld %v", e.id, e.rec.External, e.withheld)
	})
	return err
}

func (d *simDriver) setState(p *proc, e *simEndpoint, to store.State) error {
	rec := e.rec
	rec.State = to
	if err := d.life.write(p, func() error { return d.life.store.PutEndpoint(rec) }); err != nil {
		return err
	}
	e.rec = rec
	return nil
}

// retire is driver.Leave and driver.DeleteEndpoint.
func (d *simDriver) retire(p *proc, e *simEndpoint) error {
	var err error
	d.with(p, e, func() {
		if e.rec.State != store.Plumbed {
			for _, a := range e.rec.External {
				d.remove(a)
				if d.published[a] == e {
					delete(d.published, a)
				}
				if e.withheld[a] == "" {
					d.announcer.entries[a] = &simEntry{}
					d.learn(a, false)
				}
			}
			clear(e.withheld)
			clear(e.lost)
			clear(e.giving)
			if err = d.setState(p, e, store.Plumbed); err != nil {
				return
			}
		}
		err = errors.Join(d.life.write(p, func() error { return d.life.store.RetireEndpoint(e.rec) }),
			d.life.write(p, func() error { return d.life.store.DeleteEndpoints(e.id) }))
		if err == nil {
			d.host().note("%s: gone, with %v", e.id, e.rec.External)
			e.known = false
			delete(d.endpoints, e.id)
			delete(d.host().links, e.id)
		}
	})
	return err
}

// run is what the engine asks for when a container starts.
func (d *simDriver) run(p *proc, c *container) error {
	d.sim.endpoints++
	e := newSimEndpoint(fmt.Sprintf("%s-%d", c.name, d.sim.endpoints) + d.sim.suffix)
	e.c = c
	c.endpoint = e.id
	e.rec = store.Endpoint{ID: e.id, Network: "web" + d.sim.suffix, Name: c.name, State: store.Plumbed, Addresses: []netip.Prefix{c.inside}, Created: time.Now().UTC()}
	want := store.Want{
		Reservation: c.reservation, Addresses: c.addresses,
		Fits: func(netip.Addr, bool) error { return nil },
		Unusable: func(a netip.Addr) string {
			if d.sim.now() < d.foreign[a] {
				return "is used"
			}
			return ""
		},
	}
	if len(want.Addresses) == 0 {
		want.Pools = []pool.Pool{d.sim.pool}
	}
	err := d.create(p, e, want)
	if err == nil {
		if err = d.settle(p, e, want); err == nil {
			err = d.publish(p, e)
		}
		if err != nil {
			delete(d.host().links, e.id)
			err = errors.Join(err, d.retire(p, e))
		}
	}
	return err
}

// sweep forgets endpoints whose container is gone.
func (d *simDriver) sweep(p *proc) {
	for _, e := range d.sorted() {
		d.with(p, e, func() {
			if d.host().links[e.id] {
				return
			}
			for _, a := range e.rec.External {
				d.remove(a)
				if d.published[a] == e {
					delete(d.published, a)
				}
			}
			if err := d.life.write(p, func() error { return d.life.store.DeleteEndpoints(e.id) }); err != nil {
				d.host().note("%s: not swept: %v", e.id, err)
				return
			}
			d.host().note("%s: swept, with %v", e.id, e.rec.External)
			e.known = false
			delete(d.endpoints, e.id)
		})
	}
}

// short is an error for the trace.
func short(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i > 0 && len(text) > 90 {
		text = text[i+2:]
	}
	return text
}
