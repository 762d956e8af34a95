package iptables

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

var errInjected = errors.New("injected")

// Every write of every call fails once, before the kernel sees it and after
// it took the first table only. The call must say so and leave the rules as
// they were, or have managed; the next attempt must succeed.
func TestFailAtEveryWrite(t *testing.T) {
	moved := nattest.Map4(1, 2)
	moved.External = nattest.Map4(1, 1).External
	marked, other := nattest.Net(1), nattest.Net(1)
	marked.Mark, other.Mark = 7, 8
	steps := []struct {
		name string // what the error must name
		do   func(nat.Backend) error
	}{
		{`"net1"`, func(b nat.Backend) error { return b.AddNetwork(nattest.Net(1)) }},
		{`"203.0.113.1 2001:db8:cafe::1"`, func(b nat.Backend) error { return b.Add(nattest.Map4(1, 1), nattest.Map6(1, 1)) }},
		{`"net2"`, func(b nat.Backend) error { return b.AddNetwork(nattest.Net(2)) }},
		{`"net1"`, func(b nat.Backend) error { return b.AddNetwork(marked) }},
		{`"net1"`, func(b nat.Backend) error { return b.AddNetwork(other) }},
		{`"203.0.113.1"`, func(b nat.Backend) error { return b.Add(nattest.Filtered(nattest.Map4(1, 1), true)) }},
		{`"2001:db8:cafe::1"`, func(b nat.Backend) error { return b.Add(nattest.Filtered(nattest.Map6(1, 1), false)) }},
		{`"203.0.113.1"`, func(b nat.Backend) error { return b.Add(moved) }},
		{`"203.0.113.1"`, func(b nat.Backend) error { return b.Remove(moved) }},
		{`"2001:db8:cafe::1"`, func(b nat.Backend) error { return b.Remove(nattest.Map6(1, 1)) }},
		{`"net1"`, func(b nat.Backend) error { return b.RemoveNetwork(nattest.Net(1)) }},
		{`"net2"`, func(b nat.Backend) error { return b.RemoveNetwork(nattest.Net(2)) }},
	}
	eachFlavour(t, func(t *testing.T, flavour string) {
		node := nettest.NewNode(t, "host")
		b := open(t, node, flavour)
		f := faultyRun{}
		for _, s := range b.(on).b.(*Backend).sides {
			s.tool.run = f.run
		}
		empty, faults := node.Dump(), 0
		for _, step := range steps {
			before := node.Dump()
			// Whole and half failures by turns, until no write is left to fail.
			for i := 0; ; i++ {
				f.failAt, f.half, f.writes = 1+i/2, i%2 == 1, 0
				err := step.do(b)
				if f.writes < f.failAt {
					if err != nil {
						t.Errorf("%s: %v", step.name, err)
					}
					break
				}
				faults++
				if !errors.Is(err, errInjected) || !strings.Contains(err.Error(), step.name) {
					t.Errorf("%s, write %d: error %v", step.name, f.failAt, err)
				}
				if got := node.Dump(); got != before {
					t.Fatalf("%s, write %d failed (half: %t): rules are\n%s\nwant\n%s", step.name, f.failAt, f.half, got, before)
				}
			}
		}
		if got := node.Dump(); got != empty {
			t.Errorf("in the end\n%s\nwant\n%s", got, empty)
		}
		t.Logf("%d faults", faults)
	})
}

// faultyRun is run, but for the failAt-th write.
type faultyRun struct {
	writes, failAt int
	half           bool // the first table is written before the failure
}

func (f *faultyRun) run(stdin, path string, args ...string) (string, error) {
	if stdin == "" {
		return run(stdin, path, args...)
	}
	if f.writes++; f.writes != f.failAt {
		return run(stdin, path, args...)
	}
	if first, rest, _ := strings.Cut(stdin, "COMMIT\n"); f.half && rest != "" {
		if _, err := run(first+"COMMIT\n", path, args...); err != nil {
			return "", err
		}
	}
	return "", errInjected
}

// A recorder stands for iptables: it keeps what is written, and refuses what
// contains poison. While gate is set, writes wait for it to be closed.
type recorder struct {
	mu      sync.Mutex
	written []string
	poison  string
	gate    chan struct{}
	entered chan struct{} // told when a write waits
}

func (r *recorder) run(stdin, _ string, _ ...string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if stdin == "" {
		return "", nil
	}
	if r.gate != nil {
		r.entered <- struct{}{}
		<-r.gate
		r.gate = nil
	}
	r.written = append(r.written, stdin)
	if r.poison != "" && strings.Contains(stdin, r.poison) {
		return "", fmt.Errorf("iptables-restore: %w: line 3 failed", errInjected)
	}
	return "", nil
}

func (r *recorder) backend() *Backend {
	b := &Backend{}
	for i, f := range families() {
		b.sides[i] = &side{tool: tool{family: f, run: r.run}, model: newModel(f)}
	}
	return b
}

// addAtOnce adds mappings by one call each, all of which wait for the same
// write to end, and returns their errors.
func addAtOnce(t *testing.T, r *recorder, b *Backend, first nat.Mapping, ms ...nat.Mapping) []error {
	t.Helper()
	r.mu.Lock()
	r.gate, r.entered, r.written = make(chan struct{}), make(chan struct{}, 1), nil
	gate := r.gate
	r.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Add(first); err != nil {
			t.Errorf("first: %v", err)
		}
	})
	<-r.entered
	errs := make([]error, len(ms))
	for i, m := range ms {
		wg.Go(func() { errs[i] = b.Add(m) })
	}
	for waiting := 0; waiting < len(ms); runtime.Gosched() {
		b.queue.Lock()
		waiting = len(b.waiting)
		b.queue.Unlock()
	}
	close(gate)
	wg.Wait()
	return errs
}

func TestCallsAreWrittenTogether(t *testing.T) {
	r := &recorder{}
	b := r.backend()
	if err := b.AddNetwork(nattest.Net(1)); err != nil {
		t.Fatal(err)
	}
	var ms []nat.Mapping
	for i := range 20 {
		ms = append(ms, nattest.Map4(1, 2+i))
	}
	if err := errors.Join(addAtOnce(t, r, b, nattest.Map4(1, 1), ms...)...); err != nil {
		t.Error(err)
	}
	if len(r.written) != 2 {
		t.Errorf("%d writes, want 2: one for the first call, one for all others", len(r.written))
	}
}

func TestOneBadMappingFailsAlone(t *testing.T) {
	r := &recorder{poison: "203.0.113.3/32"}
	b := r.backend()
	if err := b.AddNetwork(nattest.Net(1)); err != nil {
		t.Fatal(err)
	}
	ms := []nat.Mapping{nattest.Map4(1, 2), nattest.Map4(1, 3), nattest.Map4(1, 4)}
	errs := addAtOnce(t, r, b, nattest.Map4(1, 1), ms...)
	if errs[0] != nil || errs[2] != nil {
		t.Errorf("the good ones: %v, %v", errs[0], errs[2])
	}
	if err := errs[1]; !errors.Is(err, errInjected) || !strings.Contains(err.Error(), `nat: add "203.0.113.3": `) || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("the bad one: %v", err)
	}
	got := b.sides[0].model.Mappings
	if _, bad := got[ms[1].External]; bad || len(got) != 3 {
		t.Errorf("model has %v", got)
	}
}

func TestChangesTouchOnlyTheirBuckets(t *testing.T) {
	r := &recorder{}
	b := r.backend()
	n := nattest.Net(1)
	n.Subnets = n.Subnets[:1] // IPv4: one family, one write
	st := nat.State{Networks: []nat.Network{n}}
	for i := range 10000 {
		st.Mappings = append(st.Mappings, many(i))
	}
	if _, err := b.Sync(st); err != nil {
		t.Fatal(err)
	}
	if len(r.written) != 1 {
		t.Errorf("a sync of 10000 mappings took %d writes, want 1", len(r.written))
	}
	const bucket = 10000/256 + 1
	for _, fn := range []func(...nat.Mapping) error{b.Add, b.Remove} {
		r.written = nil
		if err := fn(many(10001)); err != nil {
			t.Fatal(err)
		}
		// Two buckets, and nothing above them.
		if lines := strings.Count(strings.Join(r.written, ""), "\n-A "); len(r.written) != 1 || lines > 2*bucket+2 {
			t.Errorf("%d writes, %d rules: %s", len(r.written), lines, r.written)
		}
	}
	for _, n.Mark = range []uint32{7, 8} {
		r.written = nil
		if err := b.AddNetwork(n); err != nil {
			t.Fatal(err)
		}
	}
	want := `*mangle
:XIP-EARLY - [0:0]
-A XIP-EARLY -i br1 -m comment --comment "extip:net1" -j MARK --set-xmark 0x8/0xffffffff
COMMIT
`
	if len(r.written) != 1 || r.written[0] != want {
		t.Errorf("another mark: %s, want\n%s", r.written, want)
	}
}
