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
