package cluster

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/extip/extip/store"
)

// A container wants an address of its own, one that a reservation keeps, or any
// of the pool.
type container struct {
	sim         *sim
	name        string
	inside      netip.Prefix
	reservation string
	addresses   []netip.Addr
	on          *simHost
	state       int
	endpoint    string
	// replaced: another one runs, or should, in its stead.
	replaced bool
}

// States of a container.
const (
	stopped = iota
	starting
	running
	stopping
)

// ends is what a container does whose host has, or whose engine has given up.
func (c *container) ends() {
	if c.on != nil {
		delete(c.on.links, c.endpoint)
	}
	c.on, c.state = nil, stopped
}

// start has a container run on a host. The engine waits for a program that is
// paused, and fails without one.
func (c *container) start(h *simHost) {
	if h.dead || h.program == nil || c.state != stopped {
		return
	}
	c.on, c.state = h, starting
	life := h.program
	h.note("starts %s", c.name)
	life.call(func(p *proc) {
		err := life.driver.run(p, c)
		if err != nil {
			c.sim.check.did["refused"]++
			h.note("%s doesn't start: %s", c.name, short(err))
			c.ends()
			return
		}
		c.sim.check.did["started"]++
		c.state = running
	})
}

// stop has a container end. Without a program nobody hears of it.
func (c *container) stop() {
	if c.state != running {
		return
	}
	life, id := c.on.program, c.endpoint
	c.on.note("stops %s", c.name)
	if life == nil {
		c.ends()
		return
	}
	c.state = stopping
	life.call(func(p *proc) {
		if e := life.driver.endpoints[id]; e != nil {
			if err := life.driver.retire(p, e); err != nil {
				c.on.note("%s is not retired: %s", id, short(err))
			}
		}
		c.ends()
	})
}

// isTroubled tells whether who looks after the hosts may take one for dead.
func (h *simHost) isTroubled() bool {
	return h.dead || h.cut || h.paused || h.program == nil || h.segment != 0
}

// replace starts what a container is on another host, whose name it has, whatever
// becomes of the first.
func (c *container) replace() {
	to := c.sim.hosts[c.sim.rand.IntN(len(c.sim.hosts))]
	if c.replaced || c.state != running || to == c.on || to.isTroubled() || c.reservation == "" && c.addresses == nil {
		return
	}
	c.replaced = true
	twin := &container{sim: c.sim, name: c.name, inside: c.inside, reservation: c.reservation, addresses: c.addresses}
	c.sim.containers = append(c.sim.containers, twin)
	twin.start(to)
}

// giveSomewhere hands an address over to a container of another host, if one runs.
func (c *container) giveSomewhere() {
	others := slices.DeleteFunc(slices.Clone(c.sim.containers), func(o *container) bool { return o.state != running || o.on == c.on })
	if len(others) > 0 {
		c.give(others[c.sim.rand.IntN(len(others))])
	}
}

// give hands one of a container's addresses over to another container.
func (c *container) give(to *container) {
	if c.state != running || to.state != running || c.on == to.on || c.on.program == nil || to.on.program == nil || to.on.program.driver.isApart() {
		return
	}
	life := c.on.program
	e, other := life.driver.endpoints[c.endpoint], to.on.program.driver.endpoints[to.endpoint]
	if e == nil || other == nil || !other.known || len(e.rec.External) == 0 {
		return
	}
	a := e.rec.External[c.sim.rand.IntN(len(e.rec.External))]
	claim := store.Claim{
		Host: to.on.name, Endpoint: other.id, Network: "web" + c.sim.suffix, Container: to.name, Reservation: other.rec.Reservation,
		From: c.on.name, Since: time.Now().UTC(),
	}
	c.sim.check.did["given"]++
	life.call(func(p *proc) { life.driver.handOver(p, e, a, claim) })
}

// work has containers come and go, and things befall the hosts, until a time.
func (s *sim) work(until time.Duration) {
	s.every(until, 200*time.Millisecond, 1500*time.Millisecond, func() {
		c := s.containers[s.rand.IntN(len(s.containers))]
		switch n := s.rand.IntN(10); {
		case c.on != nil && c.on.isTroubled() && n < 7:
			c.replace()
		case c.state == stopped && !c.replaced:
			c.start(s.hosts[s.rand.IntN(len(s.hosts))])
		case c.state != running:
		case n < 3:
			c.stop()
		case n < 4, n < 8 && (c.on.loses > 0 || s.etcd.leaderless):
			c.giveSomewhere()
		}
	})
	s.every(until, 300*time.Millisecond, 6*time.Second, func() { s.befall(s.hosts[s.rand.IntN(len(s.hosts))]) })
}

func (s *sim) every(until, least, most time.Duration, do func()) {
	s.after(s.between(least, most), func() {
		if s.now() < until {
			do()
			s.every(until, least, most, do)
		}
	})
}

// span is how long something goes on.
func (s *sim) span() time.Duration {
	if s.odds(0.5) {
		return s.between(100*time.Millisecond, 4*time.Second)
	}
	return s.between(4*time.Second, 35*time.Second)
}

// befall has something happen to a host, or to all.
func (s *sim) befall(h *simHost) {
	n := s.rand.IntN(100)
	switch {
	case h.dead && n < 50:
		h.boot()
		return
	case !h.dead && h.program == nil && n < 70:
		h.start()
		return
	case h.dead || h.program == nil:
		return
	}
	switch {
	case n < 10:
		h.setCut(!h.cut)
		s.after(s.span(), func() {
			h.setCut(false)
			h.flaps()
		})
	case n < 26: // off all wires
		h.setCut(true)
		h.setSegment(1)
		heals := s.span()
		s.after(heals, func() { h.setSegment(0) })
		s.after(heals+s.between(-5*time.Second, 25*time.Second), func() { h.setCut(false) })
	case n < 34:
		h.setSegment(1 - h.segment)
		s.after(s.span(), func() { h.setSegment(0) })
	case n < 43:
		if !h.paused {
			h.pause()
			s.after(s.span(), func() {
				if h.paused {
					h.resume()
				}
			})
		}
	case n < 55:
		h.crash()
		s.after(s.span(), func() {
			if h.program == nil && !h.dead {
				h.start()
			}
		})
	case n < 67:
		s.death(h)
	case n < 77:
		// By an endpoint of etcd that is behind the others.
		h.lag = s.between(200*time.Millisecond, 5*time.Second)
		h.disturb(fmt.Sprintf("hears %s late", h.lag.Round(time.Millisecond)))
		s.after(s.span(), func() { h.lag = 0 })
	case n < 82:
		h.flaps()
	case n < 90:
		s.loss = s.rand.Float64() * 0.3
		s.note("the segment loses %.2f", s.loss)
	case n < 97:
		if !s.etcd.leaderless {
			s.etcd.loseLeader()
			s.after(s.between(time.Second, 3*time.Second), s.etcd.lead)
		}
	default:
		if !s.etcd.leaderless {
			s.etcd.loseLeader()
			for _, st := range slices.Clone(s.etcd.streams) {
				st.fail()
			}
			s.after(s.between(10*time.Second, 40*time.Second), s.etcd.lead)
		}
	}
}

// flaps has part of what goes to etcd and back be lost or late for a while.
func (h *simHost) flaps() {
	s := h.sim
	h.loses, h.slow = s.rand.Float64()*0.5, s.rand.Float64()*0.3
	if s.odds(0.5) {
		h.lag = s.between(0, 3*time.Second)
	}
	h.disturb(fmt.Sprintf("loses %.2f, and %.2f is slow", h.loses, h.slow))
	s.after(s.span(), func() {
		h.loses, h.slow, h.lag = 0, 0, 0
		h.disturb("loses nothing")
	})
}

func (h *simHost) setSegment(to int) {
	h.segment = to
	h.disturb(fmt.Sprintf("is on segment %d", to))
}

// boot has a dead host be there again, without a container.
func (h *simHost) boot() {
	if h.dead {
		h.dead = false
		h.note("boots")
		h.start()
	}
}

// death kills a host, and starts its reservations elsewhere.
func (s *sim) death(h *simHost) {
	var had []*container
	for _, c := range s.containers {
		if c.on == h && c.state == running && c.reservation != "" {
			had = append(had, c)
		}
	}
	died := s.now()
	h.die()
	s.after(s.span()+5*time.Second, h.boot)
	for _, c := range had {
		s.after(s.between(0, 3*time.Second), func() {
			to := s.hosts[s.rand.IntN(len(s.hosts))]
			if to != h {
				c.start(to)
				s.expect(c, h, to, died)
			}
		})
	}
}

// slack is what a start may take beyond the TTL and two seconds: nothing.
const slack = 0

// expect has a container answer on another host within its lease's TTL and two
// seconds of its start, if nothing else befalls anybody.
func (s *sim) expect(c *container, from, to *simHost, died time.Duration) {
	calm := func() bool {
		quiet := func(t time.Duration) bool { return t < died-10*time.Second }
		return c.on == to && from.pace <= 1 && !to.paused && quiet(to.disturbed) && quiet(s.etcd.disturbed) && s.loss == 0 &&
			!to.cut && to.loses == 0 && to.slow == 0 && to.segment == 0 && !s.etcd.leaderless
	}
	if !calm() || from.cut {
		return
	}
	began, limit := s.now(), s.ttl+2*time.Second+slack
	s.check.did["reservations that followed a death"]++
	var poll func()
	poll = func() {
		p := to.program
		if p == nil || !calm() {
			return
		}
		took := s.now() - began
		if e := p.driver.endpoints[c.endpoint]; e != nil && (len(e.rec.External) == 0 && e.rec.State == store.Published || len(e.rec.External) > 0 && to.answers[e.rec.External[0]]) {
			s.check.slowest = max(s.check.slowest, took-s.ttl)
			return
		}
		if took > limit {
			s.wrong("%s doesn't answer on %s within %s of its start, after %s died", c.name, to.name, took, from.name)
			return
		}
		s.after(50*time.Millisecond, poll)
	}
	poll()
}

// heal ends all that befalls anybody.
func (s *sim) heal() {
	s.note("all heals")
	s.loss = 0
	if s.etcd.leaderless {
		s.etcd.lead()
	}
	for _, h := range s.hosts {
		h.loses, h.slow, h.lag = 0, 0, 0
		h.setSegment(0)
		h.setCut(false)
		if h.paused {
			h.resume()
		}
		h.boot()
		if h.program == nil {
			h.start()
		}
	}
}
