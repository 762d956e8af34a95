package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/extip/extip/store"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A simHost is a machine: its kernel, which answers for addresses as long as it
// runs, and what befalls it. The program on it comes and goes.
type simHost struct {
	sim  *sim
	name string
	id   string
	mac  net.HardwareAddr
	// pace is how fast its clock runs, etcd's being 1.
	pace float64
	// dead: the kernel doesn't run. paused: the program doesn't, and held is
	// what happens when it does again.
	dead, paused bool
	held         []func()
	// cut: nothing gets to etcd and back; loses is the share that is lost
	// anyway, slow what takes long.
	cut         bool
	loses, slow float64
	// lag is how much later it hears by the watch than by an answer.
	lag time.Duration
	// segment is the part of the wire that it is on.
	segment int
	// answers are the addresses that its kernel has.
	answers map[netip.Addr]bool
	// links are the endpoints of containers that run.
	links   map[string]bool
	program *program // nil: none runs
	// disturbed is when anything last befell it.
	disturbed time.Duration
	starts    int
}

func newSimHost(s *sim, i int) *simHost {
	return &simHost{
		sim: s, name: "docker" + string(rune('1'+i)), id: "id" + string(rune('1'+i)), mac: net.HardwareAddr{2, 0, 0, 0, 0, byte(i + 1)},
		pace: 1, answers: map[netip.Addr]bool{}, links: map[string]bool{}, disturbed: -time.Hour,
	}
}

// delay is how long something is on its way to etcd or back.
func (h *simHost) delay() time.Duration {
	if h.sim.odds(h.slow) {
		return h.sim.between(100*time.Millisecond, 4*time.Second)
	}
	return h.sim.between(time.Millisecond, 10*time.Millisecond)
}

// disturb notes that something befalls the host, and what.
func (h *simHost) disturb(what string) {
	h.disturbed = h.sim.now()
	h.sim.note("%s: %s", h.name, what)
	h.sim.look()
}

func (h *simHost) setCut(cut bool) {
	h.cut = cut
	if cut {
		h.disturb("cut off from etcd")
		for _, st := range h.sim.etcd.streams {
			if st.life.host == h {
				// Found out by the keepalive of the connection.
				h.sim.after(h.sim.between(10*time.Second, 13*time.Second), func() {
					if len(st.stuck) > 0 || h.cut {
						st.fail()
					}
				})
			}
		}
		return
	}
	h.disturb("reaches etcd")
	for _, st := range slices.Clone(h.sim.etcd.streams) {
		if st.life.host == h {
			st.unstick()
		}
	}
}

func (h *simHost) pause() {
	h.paused = true
	h.disturb("paused")
}

func (h *simHost) resume() {
	h.paused = false
	h.disturb("goes on")
	held := h.held
	h.held = nil
	for _, do := range held {
		h.sim.after(0, do)
	}
}

// crash ends the program, whatever it was at. The kernel goes on.
func (h *simHost) crash() {
	h.held = nil
	if p := h.program; p != nil {
		h.program = nil
		p.ended = true
		for len(p.procs) > 0 {
			for _, one := range slices.SortedFunc(maps.Keys(p.procs), func(a, b *proc) int { return cmp.Compare(a.order, b.order) }) {
				one.killed = true
				one.stop()
				delete(p.procs, one)
			}
		}
		h.sim.etcd.streams = slices.DeleteFunc(h.sim.etcd.streams, func(st *stream) bool { return st.life == p })
		if p.store == nil {
			return
		}
		if err := p.store.Close(); err != nil {
			h.sim.wrong("close: %v", err)
		}
	}
	h.paused = false
	for _, c := range h.sim.containers {
		if c.on == h && c.state != running {
			c.ends() // what the engine had asked for has failed
		}
	}
	h.disturb("its program has ended")
}

// die ends all there is on the host.
func (h *simHost) die() {
	h.dead = true
	clear(h.answers)
	clear(h.links)
	h.crash()
	h.note("dead")
	for _, c := range h.sim.containers {
		if c.on == h {
			c.ends()
		}
	}
}

func (h *simHost) note(format string, args ...any) { h.sim.note(h.name+": "+format, args...) }

// A program is one life of the program on a host.
type program struct {
	host   *simHost
	procs  map[*proc]bool
	ended  bool
	member *Member
	store  *store.Store
	// heard is opened when the session has something to look at: what the
	// watch has told, or why it is to end.
	heard   latch
	trouble error
	writing lock
	driver  *simDriver
	telling bool
	marked  time.Time // for noMargin
	// calls are the engine's, which wait until all is restored.
	restored bool
	calls    []func(*proc)
	sessions int
}

// do has something happen in the program: when it runs, if it still does then.
func (p *program) do(fn func()) {
	switch {
	case p.ended:
	case p.host.paused:
		p.host.held = append(p.host.held, func() { p.do(fn) })
	default:
		fn()
		p.tellSoon()
		if len(p.member.anew) > 0 {
			p.heard.release(p.host.sim) // the session is to end
		}
	}
}

func (p *program) guard(fn func()) func() { return func() { p.do(fn) } }

// start begins a program.
func (h *simHost) start() {
	s := h.sim
	h.starts++
	p := &program{host: h, procs: map[*proc]bool{}}
	h.program = p
	door := newSimDoor(p)
	p.member = newMember(Config{
		Endpoints: []string{"192.0.2.1:2379"}, Prefix: "/extip/v1/", Host: h.name, ID: h.id, TTL: s.ttl,
	}, door)
	var err error
	if p.store, err = store.OpenShared(filepath.Join(s.dir, h.name+".db"), s.plant.ledger(p.member)); err != nil {
		panic(fmt.Sprintf("%s: open: %v\n%s", h.name, err, strings.Join(s.trace[max(0, len(s.trace)-30):], "\n")))
	}
	p.member.SetMACs(func() ([]net.HardwareAddr, error) { return []net.HardwareAddr{h.mac}, nil })
	p.driver = newSimDriver(p)
	h.disturb("its program starts")
	s.spawn(p, func(proc *proc) {
		// What Open does; two seconds for all of it are left out.
		if p.join() == nil {
			_, _ = p.member.load(context.Background())
		}
		p.driver.restore(proc)
		p.member.Follow(p.driver)
		p.driver.begin()
		p.restored = true
		for _, call := range p.calls {
			s.spawn(p, call)
		}
		p.runMember(proc)
	})
}

// call has the program do what the engine asks for.
func (p *program) call(fn func(*proc)) {
	p.do(func() {
		if p.restored {
			p.host.sim.spawn(p, fn)
		} else {
			p.calls = append(p.calls, fn)
		}
	})
}

// join and renew are Member's, with what is planted.
func (p *program) join() error {
	err := p.member.join(context.Background())
	p.host.sim.plant.proven(p)
	return err
}

func (p *program) renew(lease clientv3.LeaseID) error {
	err := p.member.renew(context.Background(), lease)
	p.host.sim.plant.proven(p)
	return err
}

// runMember is Member.Run.
func (p *program) runMember(proc *proc) {
	for {
		err := p.session(proc)
		p.member.joined = false
		p.member.report(err)
		p.sessions++
		if !errors.Is(err, errEnded) {
			proc.sleep(retry)
		}
	}
}

// session is Member.session and Member.renewals.
func (p *program) session(session *proc) error {
	m := p.member
	if err := p.join(); err != nil {
		return err
	}
	select {
	case <-m.anew:
	default:
	}
	revision, err := m.load(context.Background())
	if err != nil {
		return err
	}
	if err := m.introduce(context.Background()); err != nil {
		return err
	}
	st := p.host.sim.etcd.watch(p, revision)
	defer p.host.sim.etcd.unwatch(st)
	m.joined = true
	m.report(nil)
	p.driver.LedgerJoined()
	p.trouble = nil
	number := p.sessions
	p.host.sim.spawn(p, func(renewals *proc) {
		for {
			renewals.sleep(m.ttl / 3)
			if p.sessions != number {
				return
			}
			if err := p.renew(m.lease); err != nil {
				if p.sessions != number {
					return
				}
				p.trouble = err
				p.heard.release(p.host.sim)
				return
			}
		}
	})
	for {
		select {
		case err := <-m.anew:
			return err
		default:
		}
		switch {
		case p.trouble != nil:
			return p.trouble
		case len(st.inbox) > 0:
			changes := st.inbox[0]
			st.inbox = st.inbox[1:]
			p.host.sim.plant.watched(m, changes)
			revision = m.watched(revision, changes)
			p.tellSoon()
		case st.broken:
			return errSilent
		default:
			session.wait(&p.heard, 0)
		}
	}
}

// tellSoon is what wakes Member.tell.
func (p *program) tellSoon() {
	select {
	case <-p.member.newsCame:
	default:
		return
	}
	if p.telling {
		return
	}
	p.telling = true
	s := p.host.sim
	s.after(s.between(0, 3*time.Millisecond), p.guard(func() {
		p.telling = false
		p.member.tellNews()
	}))
}

// await is Member.Await, for its TTL and two seconds at most.
func (p *program) await(proc *proc, host string) error {
	var watch Wake
	var first life
	until := p.host.sim.now() + p.host.sim.ttl + 2*time.Second
	for p.host.sim.now() < until {
		l, alive, err := p.member.lifeOf(context.Background(), host)
		switch {
		case err == nil && !alive:
			return nil
		case err == nil && first.Lease == "":
			first = l
		case err == nil && l.Lease != first.Lease:
			return store.ErrAlive
		}
		if err == nil {
			if renewed, err := p.member.renewed(context.Background(), &watch, l.lease()); err == nil && renewed {
				return store.ErrAlive
			}
		}
		proc.sleep(awaitInterval)
	}
	return context.DeadlineExceeded
}

// write calls a method of the store that asks the ledger. Two at a time would wait
// for each other in a way that holds up the loop.
func (p *program) write(proc *proc, fn func() error) error {
	proc.lock(&p.writing)
	defer proc.unlock(&p.writing)
	return fn()
}
