package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	api "github.com/docker/go-plugins-helpers/network"
	"github.com/google/go-cmp/cmp"

	"github.com/extip/extip/announce"
	"github.com/extip/extip/store"
)

// Endpoints whose ids are long enough to be named by a part.
const ep1, ep2, ep3 = "aaaa1111", "aaaa2222", "bbbb3333"

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(list ...string) (as []netip.Addr) {
	for _, s := range list {
		as = append(as, addr(s))
	}
	return as
}

// operated is a lab with a network and two running endpoints, of which the first
// has .60 and .61, the second .70.
func operated(t *testing.T, kv ...string) *lab {
	t.Helper()
	l := newLab(t)
	l.network(append([]string{"extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.58"}, kv...)...)
	if err := errors.Join(
		l.run(ep1, "172.31.0.2/16", "extip.address", "203.0.113.60,203.0.113.61"),
		l.run(ep2, "172.31.0.3/16", "extip.address", "203.0.113.70"),
	); err != nil {
		t.Fatal(err)
	}
	return l
}

// whole fails the test unless kernel and records agree, and looks twice: what a
// check finds, a reconciliation must too.
func (l *lab) whole() {
	l.t.Helper()
	lines, err := l.Check()
	if len(lines) > 0 || err != nil {
		l.t.Errorf("check: %q, %v", lines, err)
	}
	if lines, err := l.Reconcile("test"); len(lines) > 0 || err != nil {
		l.t.Errorf("reconciled: %q, %v", lines, err)
	}
}

// who is a line for each address: external, endpoint, state, egress.
func (l *lab) who() (lines []string) {
	for _, a := range l.Addresses() {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", a.External, a.Endpoint, a.State, a.Egress)))
	}
	return lines
}

func (l *lab) checkWho(want ...string) {
	l.t.Helper()
	if diff := cmp.Diff(want, l.who()); diff != "" {
		l.t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestAttach(t *testing.T) {
	l := operated(t)
	r, err := l.Attach(t.Context(), "aaaa2", addrs("203.0.113.71", "203.0.113.70"), false)
	if err != nil {
		t.Fatal(err)
	}
	want := Report{
		Done: []string{
			"+ claim 203.0.113.71: endpoint aaaa2222", "+ mapping 203.0.113.71 to 172.31.0.3, source client",
			"+ address 203.0.113.71/32 on br-ex",
		},
		Left: []string{
			"203.0.113.70 is had already by endpoint aaaa2222",
			"endpoint aaaa2222 has no reservation: this holds until it stops; one that is started with extip.reservation=NAME keeps what it is given",
		},
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	// Of the pool, if none is named.
	if _, err := l.Attach(t.Context(), ep2, nil, false); err != nil {
		t.Fatal(err)
	}
	l.checkWho("203.0.113.56 aaaa2222 published other", "203.0.113.60 aaaa1111 published external", "203.0.113.61 aaaa1111 published other",
		"203.0.113.70 aaaa2222 published external", "203.0.113.71 aaaa2222 published other")
	if got := l.host.Announced(); !slices.Contains(got, "203.0.113.71 on br-ex") {
		t.Errorf("announced %q", got)
	}
	l.whole()
	before := l.host.String()
	l.restart()
	l.whole()
	if got := l.host.String(); got != before {
		t.Errorf("after a restart:\n%s\nwas\n%s", got, before)
	}
	if err := l.rm(ep2); err != nil {
		t.Error(err)
	}
	l.checkWho("203.0.113.60 aaaa1111 published external", "203.0.113.61 aaaa1111 published other")
	l.whole()
}

// TestAttachFirst: an endpoint without an address goes out from the one that it
// gets.
func TestAttachFirst(t *testing.T) {
	l := operated(t)
	if err := l.run(ep3, "172.31.0.4/16", "extip.address", "none"); err != nil {
		t.Fatal(err)
	}
	r, err := l.Attach(t.Context(), ep3, addrs("203.0.113.80"), true)
	if err != nil || !slices.Contains(r.Done, "- egress of 172.31.0.4: from the host's address") || !slices.Contains(r.Done, "+ egress of 172.31.0.4: from 203.0.113.80") {
		t.Errorf("%q, %v", r.Done, err)
	}
	if _, err := l.Attach(t.Context(), ep3, addrs("203.0.113.80"), false); err != nil {
		t.Fatal(err)
	}
	if want := "nat 203.0.113.80 <-> 172.31.0.4 of bbbb3333 egress"; !strings.Contains(l.host.String(), want) {
		t.Errorf("machine:\n%s\nlacks %q", l.host, want)
	}
	l.whole()
}

// TestRefusedChanges: what can't be is refused with its reason, and changes
// nothing.
func TestRefusedChanges(t *testing.T) {
	l := operated(t)
	l.host.Others = map[netip.Addr]net.HardwareAddr{addr("203.0.113.90"): stranger}
	l.host.Own = addrs("203.0.113.10")
	if err := errors.Join(
		l.run(ep3, "172.31.0.4/16", "extip.reservation", "mail", "extip.address", "203.0.113.80"), l.rm(ep3),
		l.endpoint("cccc4444", "172.31.0.5/16", "extip.address", "none"),
	); err != nil {
		t.Fatal(err)
	}
	machine, records := l.host.String(), l.recorded()
	attach := func(id string, list ...string) func() error {
		return func() error { _, err := l.Attach(t.Context(), id, addrs(list...), false); return err }
	}
	move := func(a, id string) func() error {
		return func() error { _, err := l.Move(t.Context(), addr(a), id, false, false); return err }
	}
	for _, tt := range []struct {
		name string
		call func() error
		want string
	}{
		{"taken", attach(ep2, "203.0.113.60"), "203.0.113.60 is taken by endpoint aaaa1111"},
		{"one of two taken", attach(ep2, "203.0.113.79", "203.0.113.61"), "203.0.113.61 is taken by endpoint aaaa1111"},
		{"reserved", attach(ep2, "203.0.113.80"), `203.0.113.80 is reserved as "mail"`},
		{"the host's own", attach(ep2, "203.0.113.10"), "203.0.113.10: it is this host's own"},
		{"of a container subnet", attach(ep2, "172.31.0.9"), "inside the container subnet"},
		{"of the other family", attach(ep2, "2001:db8::1"), "needs a subnet of its family"},
		{"a stranger's", attach(ep2, "203.0.113.91", "203.0.113.90"), "203.0.113.90: it is used by " + stranger.String()},
		{"unknown endpoint", attach("dddd", "203.0.113.71"), "unknown endpoint dddd"},
		{"ambiguous endpoint", attach("aaaa", "203.0.113.71"), "endpoint aaaa: several begin so: aaaa1111, aaaa2222"},
		{"short id", attach("aaa", "203.0.113.71"), "at least 4 characters"},
		{"endpoint that has not joined", attach("cccc4444", "203.0.113.71"), "endpoint cccc4444 is not running: it is plumbed"},
		{"move to one that has not joined", move("203.0.113.60", "cccc4444"), "is not running"},
		{"move of what nobody has", move("203.0.113.99", ep2), "203.0.113.99 is no external address of a running container"},
		{"move to nobody", move("203.0.113.60", "dddd"), "unknown endpoint dddd"},
		{"detach of what nobody has", func() error { _, err := l.Detach(t.Context(), addr("203.0.113.99"), false); return err }, "203.0.113.99 is no external address"},
		{"reserve of another's", func() error { _, err := l.Reserve("web", addrs("203.0.113.60"), false); return err }, "203.0.113.60 is taken by endpoint aaaa1111"},
		{"reserve of what is reserved", func() error { _, err := l.Reserve("web", addrs("203.0.113.80"), false); return err }, `reserved as "mail"`},
		{"reserve of nothing", func() error { _, err := l.Reserve("web", nil, false); return err }, "no address is given"},
		{"reserve by a bad name", func() error { _, err := l.Reserve("-", addrs("203.0.113.99"), false); return err }, "letters, digits"},
		{"reserve of a container's address", func() error { _, err := l.Reserve("web", addrs("172.31.0.77"), false); return err }, "inside the container subnet"},
		{"unreserve of nothing", func() error { _, err := l.Unreserve("web", false); return err }, `unknown reservation "web"`},
	} {
		if err := tt.call(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if got := l.host.String(); got != machine {
			t.Fatalf("%s: the refusal leaves\n%s", tt.name, got)
		}
		if got := l.recorded(); got != records {
			t.Fatalf("%s: the refusal leaves on record\n%s\nwas\n%s", tt.name, got, records)
		}
	}
	l.whole()
}

// TestAttachPassesOver: of the pool, another host's address is passed over.
func TestAttachPassesOver(t *testing.T) {
	l := operated(t)
	l.host.Others = map[netip.Addr]net.HardwareAddr{a56: stranger}
	if _, err := l.Attach(t.Context(), ep2, nil, false); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(l.who(), "203.0.113.57 aaaa2222 published other") {
		t.Errorf("%q", l.who())
	}
	for range 2 {
		_, _ = l.Attach(t.Context(), ep2, nil, false)
	}
	if _, err := l.Attach(t.Context(), ep2, nil, false); err == nil || !strings.Contains(err.Error(), "is exhausted") {
		t.Errorf("an exhausted pool: %v", err)
	}
	l.whole()
}

// slow is a kernel whose neighbours take their time.
type slow struct {
	Neighbours
	asked, answer chan struct{}
}

func (s slow) Probe(ctx context.Context, parent string, list []netip.Addr, how announce.Timing) (map[netip.Addr]net.HardwareAddr, error) {
	s.asked <- struct{}{}
	<-s.answer
	return s.Neighbours.Probe(ctx, parent, list, how)
}

// TestAttachWaits without a lock, claims nothing meanwhile, and gives up with its
// context.
func TestAttachWaits(t *testing.T) {
	l := operated(t)
	s := slow{l.kernel.Neighbours, make(chan struct{}), make(chan struct{})}
	l.kernel.Neighbours = s
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	attach := func() {
		_, err := l.Attach(ctx, ep2, addrs("203.0.113.71"), false)
		done <- err
	}
	records := l.recorded()
	go attach()
	<-s.asked
	if _, err := l.Detach(t.Context(), addr("203.0.113.61"), true); err != nil {
		t.Error(err)
	}
	if got := l.recorded(); got != records {
		t.Errorf("on record meanwhile:\n%s", got)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	s.answer <- struct{}{}
	// Its container may stop meanwhile.
	ctx = t.Context()
	go attach()
	<-s.asked
	if err := l.rm(ep2); err != nil {
		t.Error(err)
	}
	s.answer <- struct{}{}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "unknown endpoint") {
		t.Errorf("a container that stops: %v", err)
	}
	l.checkWho("203.0.113.60 aaaa1111 published external", "203.0.113.61 aaaa1111 published other")
	l.whole()
}

func TestDetach(t *testing.T) {
	l := operated(t)
	l.host.Connect(addr("203.0.113.60"))
	l.host.Connect(addr("203.0.113.61"))
	l.host.Dial(addr("172.31.0.2"))
	r, err := l.Detach(t.Context(), addr("203.0.113.60"), false)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"- claim 203.0.113.60: endpoint aaaa1111", "- mapping 203.0.113.60 to 172.31.0.2, source client",
		"- egress of 172.31.0.2: from 203.0.113.60", "- address 203.0.113.60/32 on br-ex", "+ egress of 172.31.0.2: from 203.0.113.61",
	}
	if diff := cmp.Diff(want, r.Done); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	// The next one leads out, the others' connections stay, the address is free.
	l.checkWho("203.0.113.61 aaaa1111 published external", "203.0.113.70 aaaa2222 published external")
	if got := l.host.Flows(); !slices.Equal(got, []string{"203.0.113.61/172.31.0.2"}) {
		t.Errorf("connections: %q", got)
	}
	l.whole()
	if _, err := l.Attach(t.Context(), ep2, addrs("203.0.113.60"), false); err != nil {
		t.Error(err)
	}
	if _, err := l.Detach(t.Context(), addr("203.0.113.61"), false); err != nil {
		t.Error(err)
	}
	l.checkWho("203.0.113.60 aaaa2222 published other", "203.0.113.70 aaaa2222 published external")
	l.whole()
}

func TestMove(t *testing.T) {
	l := operated(t)
	l.host.Connect(addr("203.0.113.60"))
	l.host.Connect(addr("203.0.113.61"))
	announced := len(l.host.Announced())
	r, err := l.Move(t.Context(), addr("203.0.113.60"), "aaaa2", false, false)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"- claim 203.0.113.60: endpoint aaaa1111", "- mapping 203.0.113.60 to 172.31.0.2, source client",
		"- egress of 172.31.0.2: from 203.0.113.60", "+ egress of 172.31.0.2: from 203.0.113.61",
		"+ claim 203.0.113.60: endpoint aaaa2222", "+ mapping 203.0.113.60 to 172.31.0.3, source client",
		"- connections of 203.0.113.60 with 172.31.0.2",
	}
	if diff := cmp.Diff(want, r.Done); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if !slices.Contains(r.Left, "address 203.0.113.60/32 stays on br-ex") {
		t.Errorf("left: %q", r.Left)
	}
	l.checkWho("203.0.113.60 aaaa2222 published other", "203.0.113.61 aaaa1111 published external", "203.0.113.70 aaaa2222 published external")
	if got := l.host.Flows(); !slices.Equal(got, []string{"203.0.113.61/172.31.0.2"}) {
		t.Errorf("connections: %q", got)
	}
	if got := len(l.host.Announced()); got != announced {
		t.Error("announced, though it is where it was")
	}
	l.whole()
	// Twice is once.
	writes := l.host.Writes()
	if r, err := l.Move(t.Context(), addr("203.0.113.60"), "aaaa2", false, false); err != nil || len(r.Done) > 0 || l.host.Writes() != writes {
		t.Errorf("moved again: %+v, %v", r, err)
	}
	l.restart()
	l.whole()
	// It goes with its new owner, and the old one has nothing to do with it.
	if err := errors.Join(l.rm(ep1), l.rm(ep2)); err != nil {
		t.Error(err)
	}
	l.checkWho()
	l.whole()
}

// TestMoveBetweenNetworks: the address goes to the other network's parent, after
// the neighbours there were asked.
func TestMoveBetweenNetworks(t *testing.T) {
	for _, alias := range []string{"parent", "lo", "none"} {
		t.Run(alias, func(t *testing.T) {
			l := operated(t)
			if err := l.CreateNetwork(createNetwork("other", 30, "extip.parent", "eth0", "extip.alias", alias)); err != nil {
				t.Fatal(err)
			}
			start := func() error {
				_, err := l.CreateEndpoint(&api.CreateEndpointRequest{NetworkID: "other", EndpointID: ep3, Interface: &api.EndpointInterface{Address: "172.30.0.2/16"}})
				if err == nil {
					_, err = l.Join(&api.JoinRequest{NetworkID: "other", EndpointID: ep3})
				}
				return err
			}
			if err := start(); err != nil {
				t.Fatal(err)
			}
			before := l.host.String()
			if alias == "parent" {
				l.host.Others = map[netip.Addr]net.HardwareAddr{addr("203.0.113.60"): stranger}
				if _, err := l.Move(t.Context(), addr("203.0.113.60"), ep3, false, false); err == nil || !strings.Contains(err.Error(), stranger.String()) {
					t.Errorf("to a segment where another host has it: %v", err)
				}
				l.host.Others = nil
			}
			for _, id := range []string{ep3, ep1, ep3} {
				dry, err := l.Move(t.Context(), addr("203.0.113.60"), id, true, true)
				if err != nil {
					t.Error(err)
				}
				r, err := l.Move(t.Context(), addr("203.0.113.60"), id, true, false)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(dry, r); diff != "" {
					t.Errorf("dry run and report differ:\n%s", diff)
				}
				l.whole()
			}
			on := map[string]string{"parent": "addr 203.0.113.60/32 on eth0", "lo": "addr 203.0.113.60/32 on lo", "none": "nat 203.0.113.60 <-> 172.30.0.2"}[alias]
			if got := l.host.String(); !strings.Contains(got, on) || strings.Contains(got, "addr 203.0.113.60/32 on br-ex") {
				t.Errorf("machine:\n%s\nwant %q", got, on)
			}
			if _, err := l.Move(t.Context(), addr("203.0.113.60"), ep1, false, false); err != nil {
				t.Error(err)
			}
			// Back where it was, but behind the other: that one leads out now.
			l.whole()
			if got := strings.ReplaceAll(l.host.String(), "203.0.113.61", "203.0.113.60"); got == before {
				t.Error("the order of the addresses is kept, which is news")
			}
		})
	}
}

func TestMoveWithheld(t *testing.T) {
	l := operated(t)
	l.host.Unplugged = map[string]bool{"br-ex": true}
	if _, err := l.Attach(t.Context(), ep1, addrs("203.0.113.62"), false); err != nil {
		t.Fatal(err)
	}
	r, err := l.Move(t.Context(), addr("203.0.113.62"), ep2, false, false)
	if err != nil || len(r.Left) == 0 || !strings.Contains(strings.Join(r.Left, "\n"), "203.0.113.62 is withheld: it can't be probed") {
		t.Errorf("%q, %v", r.Left, err)
	}
	if !slices.Contains(l.who(), "203.0.113.62 aaaa2222 withheld other") {
		t.Errorf("%q", l.who())
	}
	l.host.Unplugged = nil
	l.releaseWithheld(t.Context())
	l.whole()
	if !slices.Contains(l.who(), "203.0.113.62 aaaa2222 published other") {
		t.Errorf("%q", l.who())
	}
}

func TestDrain(t *testing.T) {
	l := operated(t)
	a := addr("203.0.113.60")
	l.host.Connect(a)
	l.host.Dial(addr("172.31.0.2"))
	r, err := l.Move(t.Context(), a, ep2, true, false)
	if err != nil || !slices.Contains(r.Done, "+ drain of 203.0.113.60 at 172.31.0.2") {
		t.Fatalf("%q, %v", r.Done, err)
	}
	l.host.Connect(a)
	draining := []string{
		"203.0.113.60 aaaa2222 published other", "203.0.113.60 aaaa1111 draining", "203.0.113.61 aaaa1111 published external", "203.0.113.70 aaaa2222 published external",
	}
	both := []string{"-203.0.113.60/172.31.0.2", "203.0.113.60/172.31.0.2", "203.0.113.60/172.31.0.3"}
	for range 2 {
		l.checkWho(draining...)
		if got := l.host.Flows(); !slices.Equal(got, both) {
			t.Errorf("connections: %q", got)
		}
		l.whole()
		l.restart()
	}
	// A container's own ones leave from another address from now on.
	l.host.Dial(addr("172.31.0.2"))
	both = append([]string{both[0], "-203.0.113.61/172.31.0.2"}, both[1:]...)
	// Moved back, it drains from the other one.
	if _, err := l.Move(t.Context(), a, ep1, true, false); err != nil {
		t.Fatal(err)
	}
	l.checkWho("203.0.113.60 aaaa1111 published other", "203.0.113.60 aaaa2222 draining", "203.0.113.61 aaaa1111 published external", "203.0.113.70 aaaa2222 published external")
	if got := l.host.Flows(); !slices.Equal(got, both) {
		t.Errorf("connections: %q", got)
	}
	if _, err := l.Move(t.Context(), a, ep2, true, false); err != nil {
		t.Fatal(err)
	}
	// An address is released only after all of its connections.
	if _, err := l.Detach(t.Context(), a, false); err != nil {
		t.Fatal(err)
	}
	if got := l.host.Flows(); !slices.Equal(got, []string{"-203.0.113.61/172.31.0.2"}) {
		t.Errorf("connections: %q", got)
	}
	l.whole() // which finds that there are none
	l.checkWho("203.0.113.61 aaaa1111 published external", "203.0.113.70 aaaa2222 published external")
	if len(l.drains) > 0 {
		t.Errorf("drains: %v", l.drains)
	}
}

// TestDrainEnds: when its last connection does, its time is up, or a container stops.
func TestDrainEnds(t *testing.T) {
	for name, end := range map[string]func(*lab, *endpoint){
		"disconnected": func(l *lab, _ *endpoint) { l.host.Disconnect() },
		"time is up": func(l *lab, e *endpoint) {
			e.rec.Draining[addr("203.0.113.60")] = time.Now().Add(-time.Second)
		},
		"left": func(l *lab, _ *endpoint) {
			if err := l.Leave(&api.LeaveRequest{NetworkID: netID, EndpointID: ep1}); err != nil {
				l.t.Error(err)
			}
			if len(l.drains) > 0 {
				l.t.Errorf("drains: %v", l.drains)
			}
		},
		"its new container stopped": func(l *lab, _ *endpoint) {
			if err := l.rm(ep2); err != nil {
				l.t.Error(err)
			}
		},
		"stopped": func(l *lab, _ *endpoint) {
			if err := l.rm(ep1); err != nil {
				l.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := operated(t)
			l.host.Connect(addr("203.0.113.60"))
			l.host.Dial(addr("172.31.0.2"))
			if _, err := l.Move(t.Context(), addr("203.0.113.60"), ep2, true, false); err != nil {
				t.Fatal(err)
			}
			l.whole()
			if got := l.host.Flows(); len(got) != 2 {
				t.Errorf("connections: %q", got)
			}
			end(l, l.endpoints[ep1])
			l.whole()
			if got := l.host.Flows(); len(got) != 0 || len(l.drains) > 0 {
				t.Errorf("connections: %q, drains %v", got, l.drains)
			}
			for _, a := range l.Addresses() {
				if a.State == StateDraining {
					t.Errorf("%+v", a)
				}
			}
			if err := errors.Join(l.rm(ep1), l.rm(ep2), l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID})); err != nil {
				t.Error(err)
			}
			l.clean()
		})
	}
}

// TestCrashInMove: connections through an address that has moved are forgotten,
// also if the plugin was killed between the one and the other.
func TestCrashInMove(t *testing.T) {
	a := addr("203.0.113.60")
	for write := 1; ; write++ {
		l := operated(t)
		l.host.Connect(a)
		l.host.CrashAt = l.host.Writes() + write
		crashed := crashes(t, func() error { _, err := l.Move(t.Context(), a, ep2, false, false); return err })
		l.host.CrashAt = 0
		l.restart()
		l.whole()
		want := "203.0.113.60/172.31.0.2"
		if slices.Contains(l.who(), "203.0.113.60 aaaa2222 published other") {
			want = ""
		}
		if got := strings.Join(l.host.Flows(), " "); got != want {
			t.Errorf("crash before write %d: connections %q, want %q", write, got, want)
		}
		if !crashed {
			if write < 5 {
				t.Errorf("a move makes %d writes", write-1)
			}
			break
		}
	}
}

// TestDryRun: it says what is done then, and does nothing.
func TestDryRun(t *testing.T) {
	l := operated(t, "extip.dad", "off")
	for name, change := range map[string]func(dry bool) (Report, error){
		"attach":         func(dry bool) (Report, error) { return l.Attach(t.Context(), ep1, addrs("203.0.113.62"), dry) },
		"attach of pool": func(dry bool) (Report, error) { return l.Attach(t.Context(), ep2, nil, dry) },
		"move":           func(dry bool) (Report, error) { return l.Move(t.Context(), addr("203.0.113.60"), ep2, false, dry) },
		"detach":         func(dry bool) (Report, error) { return l.Detach(t.Context(), addr("203.0.113.61"), dry) },
		"reserve":        func(dry bool) (Report, error) { return l.Reserve("later", addrs("203.0.113.90"), dry) },
	} {
		machine, records := l.host.String(), l.recorded()
		dry, err := change(true)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if l.host.String() != machine || l.recorded() != records {
			t.Errorf("%s: the dry run leaves\n%s\n%s", name, l.host, l.recorded())
		}
		done, err := change(false)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(done, dry); diff != "" || len(done.Done) == 0 {
			t.Errorf("%s: the dry run said other things (-done +dry):\n%s", name, diff)
		}
	}
	l.whole()
}

// names is what is reserved, as "name: addresses".
func (l *lab) names() (lines []string) {
	l.t.Helper()
	list, err := l.Reservations()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, r := range list {
		lines = append(lines, r.Name+": "+join(r.Addresses))
	}
	return lines
}

// TestChangeSurvives restarts of a container that has a reservation, whatever it
// was started with.
func TestChangeSurvives(t *testing.T) {
	for name, kv := range map[string][]string{
		"asked for":   {"extip.address", "203.0.113.60", "extip.reservation", "web"},
		"of the pool": {"extip.reservation", "web"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.60-203.0.113.62")
			again := func(want string) {
				t.Helper()
				l.whole()
				l.restart()
				if err := errors.Join(l.rm(ep1), l.run(ep1, "172.31.0.2/16", kv...)); err != nil {
					t.Fatal(err)
				}
				if got := join(l.endpoints[ep1].rec.External); got != want {
					t.Errorf("started again it has %s, want %s", got, want)
				}
				l.whole()
			}
			if err := errors.Join(l.run(ep1, "172.31.0.2/16", kv...), l.run(ep2, "172.31.0.3/16", "extip.address", "203.0.113.70", "extip.reservation", "db")); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Attach(t.Context(), ep1, addrs("203.0.113.71"), false); err != nil {
				t.Fatal(err)
			}
			again("203.0.113.60,203.0.113.71")
			if r, err := l.Move(t.Context(), addr("203.0.113.60"), ep2, false, false); err != nil || strings.Contains(strings.Join(r.Left, "\n"), "until it stops") {
				t.Errorf("%q, %v", r.Left, err)
			}
			again("203.0.113.71") // and no complaint that 60 is taken
			if got := l.names(); !slices.Equal(got, []string{"db: 203.0.113.70,203.0.113.60", "web: 203.0.113.71"}) {
				t.Errorf("reserved: %q", got)
			}
			if _, err := l.Detach(t.Context(), addr("203.0.113.71"), false); err != nil {
				t.Fatal(err)
			}
			again("")
			if err := errors.Join(l.rm(ep2), l.run(ep2, "172.31.0.3/16", "extip.address", "203.0.113.70", "extip.reservation", "db")); err != nil {
				t.Fatal(err)
			}
			if got := join(l.endpoints[ep2].rec.External); got != "203.0.113.70,203.0.113.60" {
				t.Errorf("the other has %s", got)
			}
			// Who asks for something else gets that.
			if err := errors.Join(l.rm(ep1), l.run(ep1, "172.31.0.2/16", "extip.address", "203.0.113.62", "extip.reservation", "web")); err != nil {
				t.Fatal(err)
			}
			if got := l.names()[1]; got != "web: 203.0.113.62" {
				t.Errorf("reserved: %q", got)
			}
			l.whole()
		})
	}
}

func TestReserve(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.57")
	if _, err := l.Reserve("web", addrs("203.0.113.56"), false); err != nil {
		t.Fatal(err)
	}
	if infos := l.NetworkInfos(); len(infos) != 1 || infos[0].Size != 2 || infos[0].Free != 1 {
		t.Errorf("%+v", infos)
	}
	if err := errors.Join(l.run(ep1, "172.31.0.2/16"), l.run(ep2, "172.31.0.3/16", "extip.reservation", "web")); err != nil {
		t.Fatal(err)
	}
	l.checkWho("203.0.113.56 aaaa2222 published external", "203.0.113.57 aaaa1111 published external")
	// One more, which it gets at its next start.
	r, err := l.Reserve("web", addrs("203.0.113.56", "203.0.113.80"), false)
	want := Report{Done: []string{`+ reservation "web": 203.0.113.80`}, Left: []string{
		`203.0.113.56 is reserved as "web" already`, "endpoint aaaa2222 gets 203.0.113.80 when it is started again, or attached to it",
	}}
	if diff := cmp.Diff(want, r); diff != "" || err != nil {
		t.Errorf("report (-want +got):\n%s%v", diff, err)
	}
	// What else is recorded of it doesn't matter.
	if err := l.store.PutEndpoint(l.endpoints[ep2].rec); err != nil {
		t.Error(err)
	}
	for _, auto := range []string{"", "203.0.113.56"} {
		kv := []string{"extip.reservation", "web"}
		if auto != "" {
			kv = append(kv, "extip.address", auto)
		}
		if err := errors.Join(l.rm(ep2), l.run(ep2, "172.31.0.3/16", kv...)); err != nil {
			t.Fatal(err)
		}
		if got := join(l.endpoints[ep2].rec.External); got != "203.0.113.56,203.0.113.80" {
			t.Errorf("started again it has %s", got)
		}
	}
	l.whole()

	// A container keeps its addresses when its reservation goes, and reserves
	// them no more, whatever is recorded of it later.
	dry, derr := l.Unreserve("web", true)
	r, err = l.Unreserve("web", false)
	if diff := cmp.Diff(dry, r); diff != "" || err != nil || derr != nil {
		t.Errorf("dry run and report differ:\n%s%v, %v", diff, err, derr)
	}
	e := l.endpoints[ep2]
	if e.rec.Reservation != "" || l.setState(e, store.Plumbed) != nil || l.setState(e, store.Published) != nil {
		t.Errorf("%+v", e.rec)
	}
	l.whole()
	if got := l.names(); len(got) > 0 {
		t.Errorf("reserved: %q", got)
	}
	l.restart()
	l.whole()
	l.checkWho("203.0.113.56 aaaa2222 published external", "203.0.113.57 aaaa1111 published external", "203.0.113.80 aaaa2222 published other")
	if _, err := l.Reserve("web", addrs("203.0.113.57"), false); err == nil {
		t.Error("reserved what another has")
	}
}
