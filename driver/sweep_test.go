package driver

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	api "github.com/docker/go-plugins-helpers/network"

	"github.com/extip/extip/internal/hosttest"
)

// recorded is what the store holds, as text.
func (l *lab) recorded() string {
	l.t.Helper()
	claims, err := l.store.Claims()
	endpoints, err2 := l.store.Endpoints()
	networks, err3 := l.store.Networks()
	if err := errors.Join(err, err2, err3); err != nil {
		l.t.Fatal(err)
	}
	return fmt.Sprintf("%v\n%v\n%v", claims, endpoints, networks)
}

// A call is one of the engine's.
type call struct {
	name string
	call func(*lab) error
}

// setUp is a container's life as the engine tells it until it runs, tearDown
// the rest.
func setUp() []call {
	return []call{
		{"create network", func(l *lab) error {
			return l.CreateNetwork(createNetwork(netID, 31, "extip.parent", "br-ex", "extip.pool", "203.0.113.56"))
		}},
		{"create endpoint", func(l *lab) error {
			return l.endpoint(epID, "172.31.0.2/16", "extip.address", "203.0.113.60,203.0.113.61", "extip.reservation", "web")
		}},
		{"join", func(l *lab) error {
			_, err := l.Join(&api.JoinRequest{NetworkID: netID, EndpointID: epID})
			return err
		}},
	}
}

// operate is what an operator does then, with a second container.
func operate() []call {
	move := func(a string, drain bool) func(*lab) error {
		return func(l *lab) error {
			_, err := l.Move(l.t.Context(), addr(a), ep2, drain, false)
			return err
		}
	}
	return []call{
		{"create second endpoint", func(l *lab) error { return l.endpoint(ep2, "172.31.0.3/16", "extip.address", "none") }},
		{"join second", func(l *lab) error {
			_, err := l.Join(&api.JoinRequest{NetworkID: netID, EndpointID: ep2})
			return err
		}},
		{"attach", func(l *lab) error {
			_, err := l.Attach(l.t.Context(), epID[:4], addrs("203.0.113.62", "203.0.113.63"), false)
			return err
		}},
		{"filter", func(l *lab) error {
			_, err := l.SetFilter(epID[:4], "tcp/22", "192.0.2.0/24", false)
			return err
		}},
		{"limit", func(l *lab) error {
			_, err := l.SetLimit(epID[:4], "connections=20000,rate=500/s", false)
			return err
		}},
		{"move", move("203.0.113.60", false)},
		{"move and drain", move("203.0.113.61", true)},
		{"detach", func(l *lab) error {
			_, err := l.Detach(l.t.Context(), addr("203.0.113.60"), false)
			return err
		}},
	}
}

func tearDown() []call {
	leave := func(id string) func(*lab) error {
		return func(l *lab) error { return l.Leave(&api.LeaveRequest{NetworkID: netID, EndpointID: id}) }
	}
	remove := func(id string) func(*lab) error {
		return func(l *lab) error {
			err := l.DeleteEndpoint(&api.DeleteEndpointRequest{NetworkID: netID, EndpointID: id})
			return errors.Join(err, l.removeRetired())
		}
	}
	return []call{
		{"leave", leave(epID)},
		{"delete endpoint", remove(epID)},
		{"leave second", leave(ep2)},
		{"delete second endpoint", remove(ep2)},
		{"delete network", func(l *lab) error { return l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID}) }},
	}
}

func (l *lab) must(calls ...call) {
	l.t.Helper()
	for _, c := range calls {
		if err := c.call(l); err != nil {
			l.t.Fatalf("%s: %v", c.name, err)
		}
	}
}

// TestFailAtEveryStep makes each write of a container's life, the kernel's and
// the store's, fail in turn. Setting up must leave the machine as it was, and
// the records too, or have them say what is left; tearing down must go on, keep
// on record what would not go, and end well at the next reconciliation.
func TestFailAtEveryStep(t *testing.T) {
	for _, retiring := range []bool{false, true} {
		t.Run(fmt.Sprintf("retiring=%t", retiring), func(t *testing.T) { failAtEveryStep(t, retiring) })
	}
}

func failAtEveryStep(t *testing.T, retiring bool) {
	length := 0
	life := append(setUp(), operate()...)
	for i, c := range life {
		for write := 1; ; write++ {
			l := newLab(t)
			l.retiring.Store(retiring)
			l.must(life[:i]...)
			machine, records := l.host.String(), l.recorded()
			reserved := l.names()
			l.host.FailAt = l.host.Writes() + write
			err := c.call(l)
			if err == nil {
				break // beyond the last write
			}
			length++
			if !errors.Is(err, hosttest.ErrInjected) || !strings.Contains(err.Error(), ": ") {
				t.Errorf("%s, write %d: error %v doesn't name the step", c.name, write, err)
			}
			if got := l.host.String(); got != machine {
				t.Errorf("%s, write %d: machine\n%s\nwas\n%s", c.name, write, got, machine)
			}
			if got := l.recorded(); got != records {
				t.Errorf("%s, write %d: records\n%s\nwere\n%s", c.name, write, got, records)
			}
			if got := l.names(); i >= len(setUp()) && !slices.Equal(got, reserved) {
				t.Errorf("%s, write %d: reserved %q, was %q", c.name, write, got, reserved)
			}
			l.whole()
			// The engine may try again.
			l.must(c)
			l.must(tearDown()...)
			l.clean()
		}
	}
	for write := 1; ; write++ {
		l := newLab(t)
		l.retiring.Store(retiring)
		l.must(life...)
		l.host.FailAt = l.host.Writes() + write
		var errs []error
		for _, c := range tearDown() {
			errs = append(errs, c.call(l))
		}
		if errors.Join(errs...) == nil {
			break
		}
		length++
		// The engine has forgotten all of it and asks no more.
		if _, err := l.Reconcile("test"); err != nil {
			t.Errorf("write %d: reconcile: %v", write, err)
		}
		l.must(tearDown()[len(tearDown())-1]) // the network goes some day
		l.clean()
	}
	t.Logf("%d writes failed in turn", length)
	if length < 50 {
		t.Errorf("the sweep is only %d writes long", length)
	}
}

// TestCrashAtEveryStep ends the program before each write of a container's
// life in turn, and starts it again. The machine must then be what it would be
// had the interrupted call been made entirely, or not at all; and everything
// must still go away.
func TestCrashAtEveryStep(t *testing.T) {
	for _, retiring := range []bool{false, true} {
		t.Run(fmt.Sprintf("retiring=%t", retiring), func(t *testing.T) { crashAtEveryStep(t, retiring) })
	}
}

func crashAtEveryStep(t *testing.T, retiring bool) {
	length := 0
	life := slices.Concat(setUp(), operate(), tearDown())
	for i, c := range life {
		clean := newLab(t)
		clean.retiring.Store(retiring)
		clean.must(life[:i]...)
		before := clean.host.String()
		clean.must(c)
		after := clean.host.String()
		for write := 1; ; write++ {
			l := newLab(t)
			l.retiring.Store(retiring)
			l.must(life[:i]...)
			l.host.CrashAt = l.host.Writes() + write
			crashed := crashes(t, func() error { return c.call(l) })
			l.host.CrashAt = 0
			l.restart()
			length++
			if got := l.host.String(); got != before && got != after {
				t.Errorf("%s, crash before write %d: machine\n%s\nwant\n%s\nor\n%s", c.name, write, got, before, after)
			}
			if lines, err := l.Reconcile("test"); len(lines) > 0 || err != nil {
				t.Errorf("%s, crash before write %d: there was more to repair: %q, %v", c.name, write, lines, err)
			}
			l.must(tearDown()...)
			l.clean()
			if !crashed {
				break // a crash after the last write
			}
		}
	}
	t.Logf("%d crashes", length)
	if length < 60 {
		t.Errorf("the sweep is only %d crashes long", length)
	}
}

// crashes tells whether fn ended in the crash that it was to end in.
func crashes(t *testing.T, fn func() error) (crashed bool) {
	t.Helper()
	defer func() {
		if p := recover(); p != nil {
			if p != hosttest.Crash {
				panic(p)
			}
			crashed = true
		}
	}()
	if err := fn(); err != nil {
		t.Error(err)
	}
	return false
}
