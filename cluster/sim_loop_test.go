package cluster

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"iter"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/extip/extip/pool"
)

// The simulation: several hosts, an etcd and a segment, in one goroutine of a
// synctest bubble, whose clock stands still unless the loop sleeps until the next
// event. Whatever a host does that takes time is a process: a coroutine that is
// gone on with by an event. So one seed is one history.
//
// What runs is the program's own: store.Store on a file, Member with its mirror,
// Fence and Wake, of which only the loops are modelled that have goroutines
// (sim_member_test.go). Of the driver and the announcer, which have locks and
// goroutines throughout, these rules are modelled (sim_driver_test.go):
//
//   - who is told that an address is taken on another host awaits its end, for its
//     TTL and two seconds at most, and tries again once;
//   - an address is asked for before it is put on the wire, unless it was this
//     host's within five minutes and nobody was heard to use it since;
//   - who gets one from the ledger that a member of the cluster answers for
//     announces it and asks again, three times, unless another would do;
//   - what is published is announced three times; a claim of another host that is
//     heard is defended against each ten seconds if the member may, or else yielded
//     to;
//   - while apart, what is published is asked for each ten seconds, and yielded;
//   - claims that change, that are lost or come back, and that are handed over,
//     are followed; what is withheld is asked for again; each 30 seconds all is compared;
//   - what is lost and nobody's is claimed again if nobody answers for it, once the
//     host has been joined for a TTL;
//   - a program that starts leaves what it doesn't serve to others, sweeps what is
//     gone, asks for what is missing, and withholds it while apart.
//
// Not in it: offers between hosts (what follows an answer is), pools that are probed
// ahead, several addresses of a container, IPv6, etcd put back from a backup.
type sim struct {
	t     *testing.T
	seed  uint64
	rand  *rand.Rand
	start time.Time
	queue events
	count int // events so far

	etcd       *simEtcd
	hosts      []*simHost
	containers []*container
	pool       pool.Pool
	plant      plant
	dir        string
	ttl        time.Duration
	running    *proc // nil while no process runs
	endpoints  int   // made so far
	// suffix makes ids as long as the engine's.
	suffix string
	// loss is the share of frames on the segment that are lost for a receiver.
	loss float64

	check  checks
	trace  []string
	hash   uint64
	failed bool
}

// An event is due at a time; those of the same time are in the order in which they
// were made.
type event struct {
	at    time.Duration
	order int
	do    func()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	last := (*q)[len(*q)-1]
	(*q)[len(*q)-1] = event{}
	*q = (*q)[:len(*q)-1]
	return last
}

func (s *sim) now() time.Duration { return time.Since(s.start) }

// after has something happen later.
func (s *sim) after(d time.Duration, do func()) {
	s.count++
	heap.Push(&s.queue, event{s.now() + max(0, d), s.count, do})
}

// run has all happen that is due until a time, or until something is wrong.
func (s *sim) run(until time.Duration) {
	for len(s.queue) > 0 && s.queue[0].at <= until && !s.failed {
		e := heap.Pop(&s.queue).(event)
		if d := e.at - s.now(); d > 0 {
			time.Sleep(d)
		}
		e.do()
	}
	if d := until - s.now(); d > 0 && !s.failed {
		time.Sleep(d)
	}
}

// between is a time at random.
func (s *sim) between(least, most time.Duration) time.Duration {
	return least + time.Duration(s.rand.Int64N(int64(most-least)+1))
}

func (s *sim) odds(p float64) bool { return s.rand.Float64() < p }

// traced is how many of the last notes a failure is told with.
const traced = 80

// note takes down what happens. All of it makes the history's hash.
func (s *sim) note(format string, args ...any) {
	line := fmt.Sprintf("%8.3f  ", s.now().Seconds()) + fmt.Sprintf(format, args...)
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%x", s.hash)
	_, _ = h.Write([]byte(line))
	s.hash = h.Sum64()
	if len(s.trace) >= 2*traced {
		s.trace = append(s.trace[:0], s.trace[len(s.trace)-traced:]...)
	}
	s.trace = append(s.trace, line)
}

// wrong says what must not be, and ends the run.
func (s *sim) wrong(format string, args ...any) {
	if !s.failed {
		s.note("WRONG: "+format, args...)
		s.failed = true
	}
}

// A proc is something that one life of a host's program does and that takes time.
type proc struct {
	sim    *sim
	life   *program
	order  int
	next   func() (struct{}, bool)
	stop   func()
	yield  func(struct{}) bool
	killed bool
}

// errKilled is what a process panics with when its program is killed.
var errKilled = fmt.Errorf("killed")

// spawn begins a process.
func (s *sim) spawn(life *program, fn func(p *proc)) {
	s.count++
	p := &proc{sim: s, life: life, order: s.count}
	p.next, p.stop = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			delete(life.procs, p)
			if p.killed {
				_ = recover() // errKilled
			}
		}()
		p.yield = yield
		fn(p)
	})
	life.procs[p] = true
	p.step()
}

// step goes on with a process until it waits again.
func (p *proc) step() {
	before := p.sim.running
	p.sim.running = p
	p.next()
	p.sim.running = before
}

// park waits until somebody makes a step.
func (p *proc) park() {
	if !p.yield(struct{}{}) {
		panic(errKilled)
	}
}

func (p *proc) sleep(d time.Duration) {
	p.sim.after(d, p.life.guard(p.step))
	p.park()
}

// A latch is what a process waits for, and others open.
type latch struct {
	waits *proc
	open  bool
}

// wait waits until the latch is opened, or for d, and tells which; 0 is for ever.
func (p *proc) wait(l *latch, d time.Duration) (opened bool) {
	if l.open {
		l.open = false
		return true
	}
	over := false
	l.waits = p
	if d > 0 {
		p.sim.after(d, p.life.guard(func() {
			if l.waits == p && !over {
				over = true
				l.waits = nil
				p.step()
			}
		}))
	}
	p.park()
	timedOut := over
	over = true // the clock that was set is of no use any more
	return !timedOut
}

// release opens a latch; whoever waits goes on in an event of its own.
func (l *latch) release(s *sim) {
	p := l.waits
	if p == nil {
		l.open = true
		return
	}
	l.waits = nil
	s.after(0, p.life.guard(p.step))
}

// A lock is held by one process at a time, in order.
type lock struct {
	held  bool
	queue []*proc
}

func (p *proc) lock(l *lock) {
	if !l.held {
		l.held = true
		return
	}
	l.queue = append(l.queue, p)
	p.park()
}

func (p *proc) unlock(l *lock) {
	if len(l.queue) == 0 {
		l.held = false
		return
	}
	next := l.queue[0]
	l.queue = l.queue[1:]
	p.sim.after(0, next.life.guard(next.step))
}
