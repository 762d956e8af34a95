package cluster

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/extip/extip/store"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// bound is how long two hosts may answer for an address at most, once the one that
// has no claim runs its program and hears the other: it asks each ten seconds for
// what it has published, takes the time of a probe, and may have to wait for a
// request to etcd about the same endpoint. Whenever all three frames of a probe are
// lost, it takes until the next one.
const (
	bound     = simConfirmInterval + probeTime + requestTimeout
	boundMore = simConfirmInterval + probeTime
)

// checks are what is looked at all the time.
type checks struct {
	// claims are what etcd says.
	claims map[netip.Addr]simClaim
	clocks map[spot]*stopwatch
	// longest double answers, by what they began with; slowest start of a
	// reservation on another host after a death, beyond the TTL.
	longest map[string]time.Duration
	slowest time.Duration
	did     map[string]int
}

type simClaim struct {
	store.Claim
	lease int64
}

// A spot is a host that answers for an address without a claim.
type spot struct {
	a    netip.Addr
	host *simHost
}

// A stopwatch runs while another host answers, too, and they hear each other.
type stopwatch struct {
	running bool
	since   time.Duration
	cause   string
	missed  int // probes that should have found the other
}

func newChecks() checks {
	return checks{claims: map[netip.Addr]simClaim{}, clocks: map[spot]*stopwatch{}, longest: map[string]time.Duration{}, did: map[string]int{}}
}

// claimChanged is told of each key that changes in etcd. Nobody may defend an
// address that is another's by now.
func (s *sim) claimChanged(key string, kv *mvccpb.KeyValue) {
	text, ok := strings.CutPrefix(key, "/extip/v1/"+claimsPrefix)
	if !ok {
		return
	}
	a := netip.MustParseAddr(text)
	before := s.check.claims[a]
	delete(s.check.claims, a)
	if kv.Value != nil {
		c := simClaim{lease: kv.Lease}
		if err := json.Unmarshal(kv.Value, &c.Claim); err != nil {
			s.wrong("claim of %s: %v", a, err)
		}
		s.check.claims[a] = c
		if before.Host != "" && before.Host != c.Host && c.From == "" {
			s.wrong("%s was claimed by %s while %s had it", a, c.Host, before.Host)
		}
	}
	s.note("etcd: %s is claimed by %q of %q", a, s.check.claims[a].Endpoint, s.check.claims[a].Host)
	for _, h := range s.hosts {
		if p := h.program; p != nil && s.check.claims[a].Host != h.name {
			if e := p.driver.announcer.entries[a]; e != nil && e.announced && p.driver.mayKeep(a) {
				s.wrong("%s would defend %s, which is no longer its own", h.name, a)
			}
		}
	}
	s.look()
}

// claimed is told of each endpoint that was made, and of the lease before: it has its
// claims, or the lease that they were made on has ended since.
func (s *sim) claimed(d *simDriver, e store.Endpoint, lease clientv3.LeaseID) {
	for _, a := range e.External {
		c := s.check.claims[a]
		if s.etcd.leases[int64(lease)] != nil && lease == d.life.member.lease && (c.Host != d.host().name || c.Endpoint != e.ID) {
			s.wrong("%s made %s with %s, which is claimed by %q of %q", d.host().name, e.ID, a, c.Endpoint, c.Host)
		}
	}
}

// defended is told of each defence: only who has a claim may.
func (s *sim) defended(d *simDriver, a netip.Addr, by *simHost) {
	s.check.did["defended"]++
	s.note("%s: defends %s against %s", d.host().name, a, by.name)
	if s.check.claims[a].Host != d.host().name {
		s.wrong("%s defends %s, which is claimed by %q", d.host().name, a, s.check.claims[a].Host)
	}
}

// gaveUp is told of each address that is given up. A live container's is not while
// its claim is proven.
func (s *sim) gaveUp(d *simDriver, e *simEndpoint, a netip.Addr) {
	if !d.host().answers[a] {
		return // it is lost to somebody else than it was before
	}
	s.check.did["gave up"]++
	c, m := s.check.claims[a], d.life.member
	if c.Host == d.host().name && c.Endpoint == e.id && c.lease == int64(m.lease) && m.fence.Proven(time.Now()) && d.host().links[e.id] {
		s.wrong("%s gives up %s, which is its own", d.host().name, a)
	}
}

// look goes through who answers for what.
func (s *sim) look() {
	answering := map[netip.Addr]int{}
	for _, h := range s.hosts {
		for a := range h.answers {
			answering[a]++
		}
	}
	for at, c := range s.check.clocks {
		if answering[at.a] < 2 || !at.host.answers[at.a] || s.check.claims[at.a].Host == at.host.name {
			s.stop(c)
			delete(s.check.clocks, at)
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(answering), netip.Addr.Compare) {
		for _, h := range s.hosts {
			if answering[a] > 1 && h.answers[a] && s.check.claims[a].Host != h.name {
				s.lookAt(spot{a, h})
			}
		}
	}
}

func (s *sim) lookAt(at spot) {
	c := s.check.clocks[at]
	if c == nil {
		c = &stopwatch{cause: "taken over"}
		s.check.clocks[at] = c
	}
	heard := slices.ContainsFunc(s.hosts, func(o *simHost) bool { return o.answers[at.a] && o.hears(at.host) })
	switch {
	case at.host.program == nil || at.host.paused:
		s.stop(c)
		c.cause = "program runs again"
	case !heard:
		s.stop(c)
		c.cause = "segment heals"
	case !c.running:
		c.running, c.since, c.missed = true, s.now(), 0
		s.awaitEnd(at, c, bound)
	}
}

func (s *sim) stop(c *stopwatch) {
	if !c.running {
		return
	}
	c.running = false
	cause := c.cause
	if c.missed > 0 {
		cause += ", probes lost"
	}
	s.check.longest[cause] = max(s.check.longest[cause], s.now()-c.since)
}

func (s *sim) awaitEnd(at spot, c *stopwatch, d time.Duration) {
	since, missed := c.since, c.missed
	s.after(d, func() {
		switch {
		case !c.running || c.since != since:
		case c.missed > missed:
			s.awaitEnd(at, c, time.Duration(c.missed-missed)*boundMore)
		default:
			s.wrong("%s is answered for by %s, too, %s after: %s", at.a, at.host.name, s.now()-since, c.cause)
		}
	})
}

// missed is told of each address that a host has asked for. That nobody was heard
// who answers is by chance.
func (s *sim) missed(h *simHost, a netip.Addr, heard bool) {
	if c := s.check.clocks[spot{a, h}]; c != nil && c.running && !heard {
		c.missed++
	}
}

// atLast is what must be so once all has healed.
func (s *sim) atLast() {
	records := map[netip.Addr]string{}
	for _, h := range s.hosts {
		d := h.program.driver
		for _, e := range d.sorted() {
			if !h.links[e.id] {
				s.wrong("%s still has endpoint %s, whose container is gone", h.name, e.id)
			}
			for _, a := range e.rec.External {
				c := s.check.claims[a]
				if c.Host == h.name && c.Endpoint == e.id {
					records[a] = e.id
				}
				s.settled(h, e, a, c.Claim)
			}
		}
		for a := range h.answers {
			if e := d.published[a]; e == nil || !e.known || !slices.Contains(e.rec.External, a) || e.withheld[a] != "" {
				s.wrong("%s answers for %s, which no endpoint has", h.name, a)
			}
		}
	}
	for a, c := range s.check.claims {
		if records[a] != c.Endpoint {
			s.wrong("%s is claimed by %s of %s, which has no such endpoint", a, c.Endpoint, c.Host)
		}
	}
	for _, c := range s.containers {
		if c.on != nil && c.state == running && c.on.program.driver.endpoints[c.endpoint] == nil {
			s.wrong("%s runs on %s without an endpoint", c.name, c.on.name)
		}
	}
}

// settled is what must be so of an address that an endpoint has on record: it
// claims it and answers for it, or another one does.
func (s *sim) settled(h *simHost, e *simEndpoint, a netip.Addr, c store.Claim) {
	if c.Host == h.name && c.Endpoint == e.id {
		if !h.answers[a] {
			s.wrong("%s doesn't answer for %s of %s, which it claims: withheld %q, lost %q", h.name, a, e.id, e.withheld[a], e.lost[a])
		}
		return
	}
	if h.answers[a] {
		s.wrong("%s answers for %s of %s, which is claimed by %q of %q", h.name, a, e.id, c.Endpoint, c.Host)
	}
	kept := s.etcd.keys["/extip/v1/"+reservedPrefix+a.String()]
	if c.Host == "" && (kept == nil || string(kept.Value) == e.rec.Reservation) {
		s.wrong("%s has lost %s of %s to nobody: withheld %q", h.name, a, e.id, e.withheld[a])
	}
	s.check.did["lost for good"]++
}
