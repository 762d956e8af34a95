package cluster

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/extip/extip/store"
)

// LedgerJoined, ClaimsChanged and Offered are Follower's.
func (d *simDriver) LedgerJoined() {
	d.joined = true
	d.newsCame.release(d.sim)
}

func (d *simDriver) ClaimsChanged(addrs []netip.Addr) {
	for _, a := range addrs {
		d.changed[a] = true
	}
	d.newsCame.release(d.sim)
}

func (d *simDriver) Offered(store.Offer) (store.Acceptance, error) {
	return store.Acceptance{}, errors.New("not simulated")
}

// restore is driver.Restore.
func (d *simDriver) restore(p *proc) {
	d.reclaimBut(p, d.loseUnserved())
	d.LedgerJoined()
	var missing []netip.Addr
	for _, e := range d.sorted() {
		if d.host().links[e.id] && e.rec.State == store.Published {
			for _, a := range e.rec.External {
				if !d.host().answers[a] {
					missing = append(missing, a)
				}
			}
		}
	}
	if len(missing) > 0 {
		owners := d.ask(p, missing)
		for _, a := range missing {
			e := d.published[a]
			if e == nil {
				continue
			}
			if owners[a] != nil {
				d.withhold(e, a, "is used by "+owners[a].name)
			} else if d.isApart() {
				d.markLost(e, a, "is not on its parent, and etcd can't be reached")
			}
		}
	}
	d.sweep(p)
	for _, e := range d.sorted() {
		if e.rec.State != store.Published {
			continue
		}
		for _, a := range e.rec.External {
			switch {
			case e.withheld[a] != "":
			case d.host().answers[a]:
				d.announcer.entries[a] = &simEntry{announced: true}
			case d.isApart():
				d.withhold(e, a, "is asked for first")
				d.withheldAgain.release(d.sim)
			default:
				d.put(e)
			}
		}
	}
}

// loseUnserved is driver's.
func (d *simDriver) loseUnserved() (list []netip.Addr) {
	for _, e := range d.sorted() {
		for _, a := range e.rec.External {
			if e.rec.State == store.Published && !d.host().answers[a] && !d.holds(a) {
				e.lost[a] = "has no claim in the ledger yet"
				d.withhold(e, a, e.lost[a])
				list = append(list, a)
			}
		}
	}
	return list
}

// holds tells whether this host has an address by the ledger.
func (d *simDriver) holds(a netip.Addr) bool {
	c, ok := d.life.store.Holder(a)
	return ok && c.Host == d.host().name
}

// ask asks for addresses, and insists on those that are this host's by the ledger.
func (d *simDriver) ask(p *proc, addrs []netip.Addr) map[netip.Addr]*simHost {
	owners, others := map[netip.Addr]*simHost{}, map[netip.Addr]*simHost{}
	for a, owner := range p.probe(addrs) {
		if d.holds(a) {
			owners[a] = owner
		} else {
			others[a] = owner
		}
	}
	owners = d.challenge(p, owners)
	maps.Copy(owners, others)
	return owners
}

// begin begins what goes on until the program ends.
func (d *simDriver) begin() {
	s := d.sim
	s.spawn(d.life, d.announcer.conflictsOf(d))
	s.spawn(d.life, d.followLedger)
	s.spawn(d.life, func(p *proc) {
		p.sleep(s.between(0, simConfirmInterval))
		for {
			if d.isApart() {
				d.confirm(p)
			}
			p.sleep(simConfirmInterval)
		}
	})
	s.spawn(d.life, func(p *proc) {
		for {
			d.releaseWithheld(p)
			p.wait(&d.withheldAgain, simTendInterval)
		}
	})
	s.spawn(d.life, func(p *proc) {
		for {
			p.sleep(simReclaimInterval)
			d.sweep(p)
		}
	})
}

func (d *simDriver) followLedger(p *proc) {
	next := d.sim.now() + simReclaimInterval
	for {
		p.wait(&d.newsCame, max(1, next-d.sim.now()))
		if len(d.changed) > 0 || d.joined {
			joined, changed := d.joined, slices.SortedFunc(maps.Keys(d.changed), netip.Addr.Compare)
			d.joined = false
			clear(d.changed)
			for _, a := range changed {
				d.claimChanged(p, a)
			}
			if joined {
				d.reclaim(p)
			}
		}
		if d.sim.now() >= next {
			next += simReclaimInterval
			if !d.isApart() {
				d.reclaim(p)
			}
		}
	}
}

func (d *simDriver) reclaim(p *proc) {
	d.reclaimBut(p, d.lostAddresses())
	given, err := d.life.store.Given()
	if err != nil {
		d.sim.wrong("given: %v", err)
	}
	for _, a := range slices.SortedFunc(maps.Keys(given), netip.Addr.Compare) {
		d.takeOver(p, a, given[a])
	}
	d.withheldAgain.release(d.sim)
}

func (d *simDriver) lostAddresses() (list []netip.Addr) {
	for _, e := range d.sorted() {
		list = slices.AppendSeq(list, maps.Keys(e.lost))
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// isSettled, mayRegain and regain are driver's.
func (d *simDriver) isSettled() bool {
	for _, h := range d.life.member.Hosts() {
		if h.Own {
			return time.Since(h.Seen) > h.TTL
		}
	}
	return false
}

func (d *simDriver) mayRegain(e *simEndpoint, a netip.Addr) bool {
	_, held := d.life.store.Holder(a)
	return e.lost[a] != "" && !held && !d.isApart() && d.isSettled()
}

func (d *simDriver) regain(p *proc, unclaimed map[netip.Addr]bool, why map[netip.Addr]string) {
	leave := d.lostAddresses()
	kept := len(leave)
	leave = slices.DeleteFunc(leave, func(a netip.Addr) bool { return unclaimed[a] && why[a] == "" })
	if len(leave) < kept {
		d.reclaimBut(p, leave)
	}
}

func (d *simDriver) reclaimBut(p *proc, leave []netip.Addr) {
	var lost map[netip.Addr]string
	err := d.life.write(p, func() (err error) {
		lost, err = d.life.store.Reclaim(leave...)
		return err
	})
	if err != nil {
		d.host().note("not reclaimed: %s", short(err))
	}
	for _, a := range slices.SortedFunc(maps.Keys(lost), netip.Addr.Compare) {
		d.lose(p, a, lost[a])
	}
}

func (d *simDriver) claimChanged(p *proc, a netip.Addr) {
	c, ok := d.life.store.Holder(a)
	switch e := d.published[a]; {
	case ok && c.Host != d.host().name:
		d.lose(p, a, c.Host)
	case ok && c.From != "":
		d.takeOver(p, a, c)
	case e == nil:
	case !ok:
		if !e.mu.held {
			d.LedgerJoined()
		}
	default:
		d.withheldAgain.release(d.sim)
	}
}

func (d *simDriver) lose(p *proc, a netip.Addr, by string) {
	e := d.published[a]
	if e == nil {
		return
	}
	d.with(p, e, func() {
		if !slices.Contains(e.rec.External, a) {
			return
		}
		if strings.HasPrefix(by, "reserved as ") {
			d.giveUp(e, a, "is "+by)
			return
		}
		c, ok := d.life.store.Holder(a)
		switch to, giving := e.giving[a]; {
		case !ok || c.Host == d.host().name:
		case giving && to.Host == c.Host && to.Endpoint == c.Endpoint:
			after := without(e.rec, a)
			d.remove(a)
			if err := d.life.write(p, func() error { return d.life.store.ChangeClaims(after) }); err != nil {
				d.host().note("%s: not noted as given: %s", e.id, short(err))
				return
			}
			d.handedOver(e, after, a)
		default:
			d.giveUp(e, a, "is held by host "+c.Host)
		}
	})
}

// giveUp takes an address off the wire until the ledger gives it back.
func (d *simDriver) giveUp(e *simEndpoint, a netip.Addr, why string) {
	if d.markLost(e, a, why) {
		d.sim.gaveUp(d, e, a)
		d.remove(a)
	}
}

func (d *simDriver) markLost(e *simEndpoint, a netip.Addr, why string) bool {
	if e.lost[a] == why {
		return false
	}
	e.lost[a] = why
	d.withhold(e, a, why)
	return true
}

func (d *simDriver) withhold(e *simEndpoint, a netip.Addr, why string) {
	if e.withheld[a] != why {
		d.host().note("%s: %s is withheld: it %s", e.id, a, why)
	}
	e.withheld[a] = why
}

// confirm asks for all that is published, while this host is apart.
func (d *simDriver) confirm(p *proc) {
	var addrs []netip.Addr
	for _, e := range d.sorted() {
		if e.rec.State == store.Published {
			for _, a := range e.rec.External {
				if e.withheld[a] == "" {
					addrs = append(addrs, a)
				}
			}
		}
	}
	if len(addrs) == 0 || !d.sim.plant.confirms() {
		return
	}
	owners := p.probe(addrs)
	for _, a := range addrs {
		if e := d.published[a]; e != nil && owners[a] != nil {
			d.with(p, e, func() {
				switch {
				case e.rec.State != store.Published || e.withheld[a] != "":
				case d.mayKeep(a):
					d.announce(a)
				default:
					d.yield(e, a, owners[a])
				}
			})
		}
	}
}

func (d *simDriver) yield(e *simEndpoint, a netip.Addr, user *simHost) {
	why := "is used by host " + user.name
	if host := d.holder(a); host != "" {
		why = "is held by host " + host
	}
	d.giveUp(e, a, why)
}

// releaseWithheld is driver's, with letGo.
func (d *simDriver) releaseWithheld(p *proc) {
	why, unclaimed := map[netip.Addr]string{}, map[netip.Addr]bool{}
	var asked []netip.Addr
	for _, e := range d.sorted() {
		for a := range e.withheld {
			bar := d.barred(e, a)
			if unclaimed[a] = bar != "" && d.mayRegain(e, a); unclaimed[a] {
				bar = ""
			}
			if why[a] = bar; bar == "" {
				asked = append(asked, a)
			}
		}
	}
	if len(asked) > 0 {
		slices.SortFunc(asked, netip.Addr.Compare)
		for a, owner := range d.ask(p, asked) {
			why[a] = "is used by " + owner.name
		}
	}
	d.regain(p, unclaimed, why)
	for _, e := range d.sorted() {
		d.with(p, e, func() {
			freed := false
			for _, a := range slices.SortedFunc(maps.Keys(e.withheld), netip.Addr.Compare) {
				reason, known := why[a]
				if bar := d.barred(e, a); bar == "" {
					delete(e.lost, a)
				} else {
					reason = bar
				}
				switch {
				case !known:
				case reason != "":
					d.withhold(e, a, reason)
				default:
					delete(e.withheld, a)
					delete(e.giving, a)
					freed = true
				}
			}
			if freed && e.rec.State == store.Published {
				d.host().note("%s: %v no longer withheld", e.id, e.rec.External)
				d.put(e)
			}
		})
	}
}

func without(e store.Endpoint, a netip.Addr) store.Endpoint {
	e.External = slices.DeleteFunc(slices.Clone(e.External), func(o netip.Addr) bool { return o == a })
	return e
}

// handOver is driver.handOverTo, after the other host has said to which endpoint.
func (d *simDriver) handOver(p *proc, e *simEndpoint, a netip.Addr, to store.Claim) {
	d.with(p, e, func() {
		if !slices.Contains(e.rec.External, a) || e.lost[a] != "" || e.rec.State != store.Published {
			return
		}
		after := without(e.rec, a)
		d.remove(a)
		err := d.life.write(p, func() error { return d.life.store.HandOver(after, a, to) })
		if err == nil {
			d.host().note("%s: %s given to %s of %s", e.id, a, to.Endpoint, to.Host)
			d.handedOver(e, after, a)
			return
		}
		d.host().note("%s: %s not given: %s", e.id, a, short(err))
		if errors.Is(err, store.ErrApart) || d.holder(a) != "" {
			e.giving[a] = to
			d.markLost(e, a, "was being handed over to "+to.Host)
		}
		d.put(e)
	})
}

func (d *simDriver) handedOver(e *simEndpoint, after store.Endpoint, a netip.Addr) {
	e.rec = after
	delete(e.withheld, a)
	delete(e.lost, a)
	delete(e.giving, a)
	if d.published[a] == e {
		delete(d.published, a)
	}
}

func (d *simDriver) takeOver(p *proc, a netip.Addr, c store.Claim) {
	e := d.endpoints[c.Endpoint]
	if e == nil {
		return
	}
	d.with(p, e, func() {
		now, ok := d.life.store.Holder(a)
		if !ok || now.Host != c.Host || now.Endpoint != e.id || now.From == "" || e.rec.State != store.Published {
			return
		}
		after := e.rec
		if !slices.Contains(after.External, a) {
			after.External = append(slices.Clone(after.External), a)
		}
		if err := d.life.write(p, func() error { return d.life.store.TakeOver(after, a) }); err != nil {
			d.host().note("%s: %s not taken over: %s", e.id, a, short(err))
			return
		}
		e.rec = after
		d.publishes(e, []netip.Addr{a})
		delete(e.withheld, a)
		delete(e.lost, a)
		d.host().note("%s: %s taken over from %s", e.id, a, c.From)
		d.put(e)
	})
}
