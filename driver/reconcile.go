package driver

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

// Restore makes the kernel match the store, as after a reboot or a crash. It
// is called once, before the first call is served. What can't be restored
// keeps nothing else from being; all errors are returned.
func (d *Driver) Restore() error {
	var errs []error
	if aside := d.store.SetAside(); aside != "" {
		d.log.WithField("kept", aside).Error("the state file was damaged; a new one begins")
		errs = append(errs, d.rebuild())
	}
	// The barrier is there before anything that it stands before.
	_, err := d.syncBarrier()
	errs = append(errs, err)
	_, err = d.syncUplinks()
	if d.cluster != nil {
		unserved, err := d.loseUnserved()
		errs = append(errs, err)
		d.reclaimBut(unserved)
		d.LedgerJoined() // for what has to wait until all is restored
	}
	errs = append(errs, err, d.probeMissing())
	// Rules first, even for what is about to be removed: an alias must not
	// be without its mapping for a moment.
	repaired, err := d.kernel.NAT.Sync(d.natState())
	errs = append(errs, err)
	d.observer.Reconciled("start", 0, len(repaired), err)
	d.report("start", repaired)
	repaired, err = d.kernel.Guard.Sync(d.guardState())
	errs = append(errs, err)
	d.report("start", repaired)
	_, err = d.Reconcile("start")
	d.defendAll()
	return errors.Join(append(errs, err)...)
}

// Reconcile makes the kernel match the records: it repairs what somebody took
// away, finishes what could not be finished, forgets endpoints whose container
// is gone, and removes what carries our mark without a record. It touches
// nothing else. It returns a line for each thing that was not as it should be.
//
// It may be called while calls are served; it waits for each endpoint's own,
// and its cost grows with what there is.
func (d *Driver) Reconcile(cause string) ([]string, error) {
	return d.repair(cause, (*repair).run)
}

// ReconcileRules is Reconcile for the rules alone: other programs change theirs
// all the time, and links and addresses are none of that.
func (d *Driver) ReconcileRules(cause string) ([]string, error) {
	return d.repair(cause, func(r *repair) {
		r.rules()
		r.guard()
	})
}

func (d *Driver) repair(cause string, run func(*repair)) ([]string, error) {
	d.reconciling.Lock()
	defer d.reconciling.Unlock()
	r := &repair{Driver: d, began: time.Now()}
	run(r)
	err := errors.Join(r.errs...)
	d.observer.Reconciled(cause, time.Since(r.began), len(r.lines), err)
	d.report(cause, r.lines)
	if text := plural(len(r.lines), "repair", "repairs") + " after " + cause; err != nil {
		d.events.emit(Event{Kind: EventReconciled, Text: text + ", and " + err.Error()})
	} else if len(r.lines) > 0 {
		d.events.emit(Event{Kind: EventReconciled, Text: text})
	}
	return r.lines, err
}

// reportLines is how many repairs of one run are logged one by one: after a
// flush there may be thousands.
const reportLines = 20

// report logs what was repaired and counts it; reconciling is held.
func (d *Driver) report(cause string, repaired []string) {
	if len(repaired) == 0 {
		return
	}
	d.repairs += len(repaired)
	for _, what := range repaired {
		d.events.emit(Event{Kind: EventRepaired, Text: what})
	}
	log := d.log.WithField("cause", cause)
	for _, what := range repaired[:min(len(repaired), reportLines)] {
		log.WithField("repaired", what).Warn("reconciled")
	}
	log.WithField("repairs", len(repaired)).WithField("since_start", d.repairs).Warn("reconciled")
}

// A repair is one run of Reconcile, or of Check.
type repair struct {
	*Driver
	began time.Time
	// dry: nothing is changed, only noted.
	dry   bool
	found link.Survey
	lines []string
	errs  []error
}

func (r *repair) note(format string, args ...any) {
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

func (r *repair) failed(err error) {
	if err != nil {
		r.errs = append(r.errs, err)
	}
}

// do changes something, unless the run is dry.
func (r *repair) do(change func() error) {
	if !r.dry {
		r.failed(change())
	}
}

func (r *repair) run() {
	var err error
	if r.found, err = r.kernel.Survey(); err != nil {
		r.failed(err)
		return
	}
	r.removals()
	r.orphans()
	r.barrier()
	ok := r.rules()
	r.guard()
	if !ok {
		return
	}
	r.networksAgain()
	r.endpointsAgain()
	r.strays()
	r.endDrains()
	r.fence()
}

// guard repairs what keeps containers from passing for others.
func (r *repair) guard() {
	look := r.kernel.Guard.Repair
	if r.dry {
		look = r.kernel.Guard.Check
	}
	lines, err := look()
	r.lines = append(r.lines, lines...)
	r.failed(err)
}

// rules repairs the rules. If that can't be done, it takes the aliases away and
// returns false.
func (r *repair) rules() bool {
	look := r.kernel.NAT.Repair
	if r.dry {
		look = r.kernel.NAT.Check
	}
	lines, err := look()
	r.lines = append(r.lines, lines...)
	if err != nil {
		r.failed(err)
		r.do(r.withdraw)
	}
	return err == nil
}

// removals finishes what was to go and could not before.
func (r *repair) removals() {
	for _, n := range r.networkList() {
		n.mu.Lock()
		if n.known && n.rec.Leaving {
			r.note("network %s was not removed entirely", short(n.rec.ID))
			r.do(func() error { return r.removeNetwork(n) })
		}
		n.mu.Unlock()
	}
	r.eachEndpoint(func(n *network, e *endpoint) {
		switch e.rec.State {
		case store.Leaving:
			r.note("endpoint %s was not removed entirely", short(e.rec.ID))
			r.do(func() error { return r.removeEndpoint(n, e) })
		case store.Retired:
			r.do(func() error { return r.removeEndpoint(n, e) })
		}
	})
}

// orphans forgets, all at once, endpoints whose container is gone without a
// word of the engine.
func (r *repair) orphans() {
	var gone []orphan
	for _, n := range r.networkList() {
		n.mu.RLock()
		defer n.mu.RUnlock()
		if !n.known {
			continue
		}
		for _, e := range r.endpointsOf(n.rec.ID) {
			// A call that is under way knows better.
			if !e.mu.TryLock() {
				continue
			}
			defer e.mu.Unlock()
			if !e.known || e.changed.After(r.began) || e.rec.State == store.Retired {
				continue
			}
			if why := r.orphaned(e); why != "" {
				gone = append(gone, orphan{n, e})
				r.note("endpoint %s %s", short(e.rec.ID), why)
			}
		}
	}
	r.do(func() error { return r.sweep(gone) })
}

// abandonedAfter is how long an endpoint may wait for its Join, or after its
// Leave for its removal. The engine needs milliseconds; it retries for 15 s.
const abandonedAfter = time.Minute

// orphaned says why an endpoint's container must be gone; "" if it need not be.
func (r *repair) orphaned(e *endpoint) string {
	host, peer := link.VethNames(e.id)
	// A look of its own: the survey is older than the lock.
	if _, ok := r.found.Links[host]; !ok && r.isAbsent(host) {
		return "has lost its link"
	}
	// Before its Join and after its Leave, the container's end is here.
	waiting := e.rec.State == store.Plumbed && r.began.Sub(e.changed) > abandonedAfter
	if waiting && !r.isAbsent(peer) {
		return "was abandoned by the engine"
	}
	return ""
}

func (r *repair) isAbsent(name string) bool {
	exists, err := r.kernel.HasLink(name)
	return err == nil && !exists
}

// orphan is an endpoint without a container, locked.
type orphan struct {
	n *network
	e *endpoint
}

// sweep forgets orphans with one change of the rules and of the store, however
// many there are: after a reboot it is all of them.
func (r *repair) sweep(orphans []orphan) error {
	var errs []error
	var maps []nat.Mapping
	var gone link.Flows
	var unguarded nat.Guarded
	var ids []string
	var swept []orphan
	for _, o := range orphans {
		var failed error
		for _, a := range o.e.rec.External {
			failed = errors.Join(failed, r.removeAlias(o.n.rec, a))
		}
		failed = errors.Join(failed, down([]step{r.vethStep(o.n.rec, o.e.rec)}))
		if failed != nil {
			errs = append(errs, failed)
			continue
		}
		maps = append(maps, mappings(o.e.rec)...)
		f := r.flows(o.e.rec)
		gone.External = append(gone.External, f.External...)
		gone.Internal = append(gone.Internal, f.Internal...)
		unguarded.Ports = append(unguarded.Ports, port(o.n.rec, o.e.rec).Ports...)
		gone.Pairs = append(gone.Pairs, f.Pairs...)
		ids = append(ids, o.e.rec.ID)
		swept = append(swept, o)
	}
	if len(swept) == 0 {
		return errors.Join(errs...)
	}
	for _, change := range []func() error{
		func() error { return r.kernel.NAT.Remove(maps...) },
		func() error { return r.kernel.Forget(gone) },
		func() error { return r.kernel.Guard.Remove(unguarded) },
		func() error { return r.store.DeleteEndpoints(ids...) },
	} {
		if err := change(); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	for _, o := range swept {
		host, _ := link.VethNames(o.e.id)
		delete(r.found.Links, host)
		r.tell(EventReleased, o.e, "its container is gone", o.e.rec.External...)
		r.forgetEndpoint(o.e)
	}
	return errors.Join(errs...)
}

// withdraw takes all aliases off their parents: without mappings the host
// itself would answer on them.
func (r *repair) withdraw() error {
	var errs []error
	r.eachEndpoint(func(n *network, e *endpoint) {
		for _, a := range e.rec.External {
			errs = append(errs, r.removeAlias(n.rec, a))
		}
	})
	return errors.Join(errs...)
}

func (r *repair) networksAgain() {
	gateways, err := r.kernel.Gateways()
	r.failed(err)
	for _, n := range r.networkList() {
		n.mu.Lock()
		if n.known && !n.rec.Leaving {
			r.follow(n)
		}
		n.mu.Unlock()
	}
	r.do(func() error {
		changed, err := r.syncUplinks()
		if changed {
			r.note("uplinks had changed")
		}
		return err
	})
	for _, n := range r.networkList() {
		n.mu.Lock()
		if n.known && !n.rec.Leaving {
			if err == nil {
				n.gateways = gateways
			}
			r.compareBridge(n.rec)
			r.again(fmt.Sprintf("network %s", short(n.rec.ID)), r.networkSteps(n.rec))
		}
		n.mu.Unlock()
	}
}

// again repeats steps, unless the run is dry.
func (r *repair) again(whose string, steps []step) {
	r.do(func() error {
		if err := again(steps); err != nil {
			return fmt.Errorf("%s: %w", whose, err)
		}
		return nil
	})
}

// compareBridge notes what the steps are about to mend.
func (r *repair) compareBridge(n store.Network) {
	have, ok := r.found.Links[n.Bridge]
	switch {
	case !ok:
		r.note("bridge %s was missing", n.Bridge)
		return
	case !have.Up:
		r.note("bridge %s was down", n.Bridge)
	}
	for _, g := range n.Gateways {
		if !slices.Contains(have.Addresses, g) {
			r.note("bridge %s lacked %s", n.Bridge, g)
		}
	}
}

func (r *repair) endpointsAgain() {
	r.eachEndpoint(func(n *network, e *endpoint) {
		host, _ := link.VethNames(e.rec.ID)
		have, ok := r.found.Links[host]
		if !ok || e.changed.After(r.began) || e.rec.State == store.Retired {
			return // an orphan for the next time, newer than the survey, or about to go
		}
		var steps []step
		switch note := endpointNote(e.rec); {
		case have.Bridge != n.rec.Bridge || !have.Up:
			r.note("link %s of endpoint %s was off its bridge or down", host, short(e.rec.ID))
			steps = r.plumbing(n.rec, e.rec)
		case have.Note != note && link.NoteFits(e.rec.ID, note):
			r.note("link %s said %q of endpoint %s", host, have.Note, short(e.rec.ID))
			steps = r.plumbing(n.rec, e.rec)
		}
		if missing := r.missing(n, e); len(missing) > 0 {
			for _, a := range missing {
				r.note("alias %s was missing on %s", a, aliasLink(n.rec))
			}
			r.askFirst(e, missing)
			steps = append(steps, r.publicationSteps(n.rec, e)...)
		}
		for a := range e.lost {
			if slices.Contains(r.found.Aliases[a], aliasLink(n.rec)) {
				r.note("alias %s was on %s, though it %s", a, aliasLink(n.rec), e.lost[a].text)
				r.do(func() error { return r.takeOff(n, e, a) })
			}
		}
		r.again(fmt.Sprintf("endpoint %s", short(e.rec.ID)), steps)
	})
}

// missing is the external addresses of an endpoint that should be on the parent
// and are not.
func (r *repair) missing(n *network, e *endpoint) []netip.Addr {
	if e.rec.State != store.Published || aliasLink(n.rec) == "" {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(e.rec.External), func(a netip.Addr) bool {
		return e.withheld[a] != "" || slices.Contains(r.found.Aliases[a], aliasLink(n.rec))
	})
}

// eachEndpoint calls fn for every endpoint, locked.
func (d *Driver) eachEndpoint(fn func(*network, *endpoint)) {
	for _, n := range d.networkList() {
		n.mu.RLock()
		if n.known {
			for _, e := range d.endpointsOf(n.rec.ID) {
				e.mu.Lock()
				if e.known {
					fn(n, e)
				}
				e.mu.Unlock()
			}
		}
		n.mu.RUnlock()
	}
}

// Desired is what the NAT rules should hold: all networks and mappings. Its cost
// grows with what there is.
func (d *Driver) Desired() nat.State { return d.natState() }

// natState is what the NAT rules should hold. What is leaving may still have
// its alias, and so keeps its mapping.
func (d *Driver) natState() nat.State {
	var state nat.State
	for _, n := range d.networkRecords() {
		state.Networks = append(state.Networks, d.natNetwork(n))
	}
	d.eachEndpoint(func(_ *network, e *endpoint) {
		if e.rec.State != store.Plumbed {
			state.Mappings = append(state.Mappings, mappings(e.rec)...)
		}
	})
	state.Sort()
	return state
}

// networkList is every network, in order of its id.
func (d *Driver) networkList() []*network {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []*network
	for _, id := range slices.Sorted(maps.Keys(d.networks)) {
		list = append(list, d.networks[id])
	}
	return list
}
