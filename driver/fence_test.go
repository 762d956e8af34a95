package driver

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	api "github.com/docker/go-plugins-helpers/network"
	"github.com/google/go-cmp/cmp"

	"github.com/extip/extip/link"
)

const shared = "203.0.113.60" // what the tests are about

// TestApart: a host that can't reach the ledger serves what it has, gives up what
// it is told to, and claims nothing new.
func TestApart(t *testing.T) {
	s := newSite(t, 2)
	one, two := s.hosts[0], s.hosts[1]
	if err := errors.Join(one.run(ep1, "172.31.0.2/16", "extip.address", shared), one.run(ep2, "172.31.0.3/16")); err != nil {
		t.Fatal(err)
	}
	one.cut(false)
	const apart = "the ledger can't be reached: nothing new is claimed until it can (claims that are held are kept)"
	refused := func(what string, err error) {
		t.Helper()
		if err == nil || err.Error() != apart && err.Error() != `reservation "db": `+apart {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("run", one.run(epID, "172.31.0.4/16"))
	refused("run for an address", one.run(epID, "172.31.0.4/16", "extip.address", "203.0.113.70"))
	refused("run for an address that is taken", one.run(epID, "172.31.0.4/16", "extip.address", shared))
	_, err := one.Attach(t.Context(), ep1, addrs("203.0.113.70"), false)
	refused("attach", err)
	_, err = one.Move(t.Context(), addr(shared), ep2, false, false)
	refused("move", err)
	_, err = one.Reserve("db", addrs("203.0.113.71"), false)
	refused("reserve", err)
	if err := one.rm(ep2); err != nil {
		t.Errorf("what stops: %v", err)
	}
	s.mustAnswer(shared, "docker1")
	lines, err := one.Check()
	if err != nil || len(lines) != 1 || !strings.HasPrefix(lines[0], "apart from etcd since ") {
		t.Errorf("check: %q, %v", lines, err)
	}
	if m, err := one.Members(); err != nil || len(m) != 2 || m[0].ApartSince.IsZero() || !m[1].ApartSince.IsZero() || m[0].Claims != 2 {
		t.Errorf("members: %+v, %v", m, err)
	}
	one.join()
	s.catchUp()
	if err := one.run(epID, "172.31.0.4/16"); err != nil {
		t.Error(err)
	}
	if m, err := two.Members(); err != nil || m[0].Claims != 2 || !m[1].Own {
		t.Errorf("members: %+v, %v", m, err)
	}
	s.mustAnswer(shared, "docker1")
	s.noDoubles()
}

// TestTakeOver: a host that is cut off while its lease ends gives an address up
// when the one that gets it says so on the wire, and gets it back when the ledger
// says so, and only then.
func TestTakeOver(t *testing.T) {
	s := newSite(t, 2)
	one, two := s.hosts[0], s.hosts[1]
	o := &observed{}
	one.Observe(o)
	if err := one.run(ep1, "172.31.0.2/16", "extip.address", shared, "extip.reservation", "web"); err != nil {
		t.Fatal(err)
	}
	s.follow()
	one.host.Connect(addr(shared))
	one.cut(true)
	one.host.Steps()
	two.host.Steps()
	if err := two.run(ep2, "172.31.0.3/16", "extip.reservation", "web"); err != nil {
		t.Fatal(err)
	}
	s.mustAnswer(shared, "docker2")
	s.noDoubles()
	// The alias goes before what is connected, and the mapping stays.
	gone := one.host.Steps()
	if diff := cmp.Diff([]string{"remove alias 203.0.113.60", "forget {[203.0.113.60] [] [{203.0.113.60 172.31.0.2}]}"}, gone); diff != "" {
		t.Errorf("steps of docker1 (-want +got):\n%s", diff)
	}
	if len(one.host.Flows()) > 0 || one.host.Mappings()[addr(shared)].Internal != addr("172.31.0.2") {
		t.Errorf("left at docker1: %v, %v", one.host.Flows(), one.host.Mappings())
	}
	took := two.host.Steps()
	order := []string{"create endpoint", "challenge for 203.0.113.60 on br-ex", "put endpoint", "add mappings 1", "alias 203.0.113.60", "announce 203.0.113.60 on br-ex"}
	for _, step := range order {
		i := slices.IndexFunc(took, func(s string) bool { return strings.HasPrefix(s, step) })
		if i < 0 {
			t.Fatalf("steps of docker2: %q: no %s in %q", two.host.Steps(), step, took)
		}
		took = took[i+1:]
	}
	const why = "it is used by 02:00:00:00:00:02 (host docker2); this host can't reach etcd to prove its claim"
	if got := one.withheldWhy(shared); got != why {
		t.Errorf("withheld because %q, want %q", got, why)
	}
	for range 2 {
		one.releaseWithheld(t.Context())
		if _, err := one.Reconcile("a test"); err != nil {
			t.Error(err)
		}
	}
	s.mustAnswer(shared, "docker2")

	one.join()
	eventually(t, "docker1 knows who has it", func() bool { return one.withheldWhy(shared) == "it is held by host docker2" })
	if v := one.Addresses()[0]; v.HeldBy != "docker2" || v.State != StateWithheld {
		t.Errorf("shown as %+v", v)
	}
	if lines, err := one.Check(); err != nil || len(lines) != 1 || lines[0] != "203.0.113.60 of endpoint "+short(ep1)+" is held by host docker2" {
		t.Errorf("check: %q, %v", lines, err)
	}
	if _, err := one.Move(t.Context(), addr(shared), ep1, false, true); err != nil {
		t.Error(err)
	}
	mustContain(t, two.run(epID, "172.31.0.4/16", "extip.address", shared), "is taken by")
	if err := two.rm(ep2); err != nil {
		t.Fatal(err)
	}
	eventually(t, "docker1 has it back", func() bool { return one.withheldWhy(shared) == "" })
	s.mustAnswer(shared, "docker1")
	s.noDoubles()
	if got := slices.DeleteFunc(o.lines, func(l string) bool { return !strings.HasPrefix(l, "lost") }); len(got) != 1 {
		t.Errorf("observed %q", got)
	}
}

// TestStubborn: a host that goes on answering, because its program is dead, is
// named; an address of a pool is passed over instead.
func TestStubborn(t *testing.T) {
	s := newSite(t, 2)
	one, two := s.hosts[0], s.hosts[1]
	if err := one.run(ep1, "172.31.0.2/16", "extip.address", shared); err != nil {
		t.Fatal(err)
	}
	one.die(false)
	one.member.ledger.End()
	err := two.run(ep2, "172.31.0.3/16", "extip.address", shared)
	mustContain(t, err, "extip.address=203.0.113.60: it is still answered for by host docker1 (02:00:00:00:00:01), which has lost its claim: is its plugin dead? stop the host")
	if n := strings.Count(strings.Join(two.host.Steps(), "\n"), "challenge for"); n != challenges {
		t.Errorf("challenged %d times, want %d", n, challenges)
	}
	_, err = two.Attach(t.Context(), epID, addrs(shared), false)
	if err == nil {
		t.Error("attached")
	}
	if err := two.run(ep2, "172.31.0.3/16"); err != nil {
		t.Fatal(err)
	}
	_, err = two.Attach(t.Context(), ep2, addrs(shared), false)
	mustContain(t, err, "is still answered for by host docker1")
	s.mustAnswer(shared, "docker1")
	s.noDoubles()
	// A stranger is not challenged.
	two.host.Steps()
	two.host.Others = map[netip.Addr]net.HardwareAddr{addr("203.0.113.61"): stranger}
	mustContain(t, two.run(epID, "172.31.0.4/16", "extip.address", "203.0.113.61"), "is used by "+stranger.String()+" on the segment of br-ex")
	if got := strings.Join(two.host.Steps(), "\n"); strings.Contains(got, "challenge") {
		t.Errorf("steps:\n%s", got)
	}
}

// TestConfirm: while a host is apart, its addresses are asked for, and given up to
// whoever answers, even if nothing was announced.
func TestConfirm(t *testing.T) {
	s := newSite(t, 2)
	one, two := s.hosts[0], s.hosts[1]
	if err := errors.Join(one.run(ep1, "172.31.0.2/16", "extip.address", shared), one.run(ep2, "172.31.0.3/16", "extip.address", "203.0.113.61")); err != nil {
		t.Fatal(err)
	}
	// Both segment and ledger are cut.
	s.wire.Cut(one.host, true)
	one.cut(true)
	if err := two.run(epID, "172.31.0.3/16", "extip.address", shared); err != nil {
		t.Fatal(err)
	}
	one.confirm(t.Context(), "", false)
	if why := one.withheldWhy(shared); why != "" {
		t.Errorf("given up though nobody answers: %s", why)
	}
	s.wire.Cut(one.host, false)
	s.mustAnswer(shared, "docker1", "docker2")
	before := len(one.host.Announced())
	one.confirm(t.Context(), "", false)
	s.mustAnswer(shared, "docker2")
	s.mustAnswer("203.0.113.61", "docker1")
	if after := one.host.Announced(); len(after) != before {
		t.Errorf("announced %q", after[before:])
	}
	// A stranger on the wire is given way to as well.
	one.host.Others = map[netip.Addr]net.HardwareAddr{addr("203.0.113.61"): stranger}
	one.confirm(t.Context(), "", false)
	s.mustAnswer("203.0.113.61")
	if why := one.withheldWhy("203.0.113.61"); !strings.Contains(why, stranger.String()+"; this host can't reach etcd") {
		t.Errorf("withheld: %s", why)
	}
	// A host that can prove its claim says so instead.
	two.host.Others = map[netip.Addr]net.HardwareAddr{addr(shared): stranger}
	before = len(two.host.Announced())
	two.confirm(t.Context(), "", false)
	s.mustAnswer(shared, "docker2")
	if after := two.host.Announced(); len(after) != before+1 {
		t.Errorf("announced %q", after[before:])
	}
	one.host.Others = nil
	one.join()
	s.catchUp()
	s.mustAnswer("203.0.113.61", "docker1")
	if why := one.withheldWhy(shared); why != "it is held by host docker2" {
		t.Errorf("withheld: %s", why)
	}
}

// TestCarrier: a parent that comes up again while the host is apart is told of
// addresses once it is known that nobody has taken them.
func TestCarrier(t *testing.T) {
	s := newSite(t, 2)
	one, two := s.hosts[0], s.hosts[1]
	if err := errors.Join(one.run(ep1, "172.31.0.2/16", "extip.address", shared), one.run(ep2, "172.31.0.3/16", "extip.address", "203.0.113.61")); err != nil {
		t.Fatal(err)
	}
	s.wire.Cut(one.host, true)
	one.cut(true)
	if err := two.run(epID, "172.31.0.3/16", "extip.address", shared); err != nil {
		t.Fatal(err)
	}
	s.wire.Cut(one.host, false)
	one.host.Steps()
	one.host.Probed()
	before := len(one.host.Announced())
	one.NetworkChanged(link.Change{Kind: link.LinkUp, Link: "br-ex"})
	if after := one.host.Announced(); len(after) != before {
		t.Errorf("announced unasked: %q", after[before:])
	}
	s.follow()
	eventually(t, "what nobody has is announced", func() bool { return len(one.host.Announced()) > before })
	s.wire.Settle()
	if after := one.host.Announced()[before:]; len(after) != 1 || after[0] != "203.0.113.61 on br-ex" {
		t.Errorf("announced %q", after)
	}
	s.mustAnswer(shared, "docker2")
	s.mustAnswer("203.0.113.61", "docker1")
	if probed := one.host.Probed(); !slices.Contains(probed, shared) || !slices.Contains(probed, "203.0.113.61") {
		t.Errorf("asked for %q", probed)
	}
}

// TestLedgerShows: an address goes as soon as the ledger shows that another host
// has it, though the wire says nothing; an alias that would not go is seen to.
func TestLedgerShows(t *testing.T) {
	s := newSite(t, 2)
	one, two := s.hosts[0], s.hosts[1]
	if err := one.run(ep1, "172.31.0.2/16", "extip.address", shared); err != nil {
		t.Fatal(err)
	}
	s.wire.Cut(two.host, true)
	one.member.ledger.End()
	if err := two.run(ep2, "172.31.0.3/16", "extip.address", shared); err != nil {
		t.Fatal(err)
	}
	one.host.FailAt = one.host.Writes() + 1
	one.catchUp()
	if len(one.host.Aliases()) != 1 {
		t.Fatal("the alias went all the same")
	}
	if lines, err := one.Reconcile("a test"); err != nil || len(lines) != 1 || lines[0] != "alias 203.0.113.60 was on br-ex, though it is held by host docker2" {
		t.Errorf("reconciled %q, %v", lines, err)
	}
	if len(one.host.Aliases()) != 0 {
		t.Errorf("aliases %v", one.host.Aliases())
	}
	one.member.ledger.Join()
	mustContain(t, func() error { _, err := one.Move(t.Context(), addr(shared), epID, false, false); return err }(), "unknown endpoint")
	if err := one.run(epID, "172.31.0.4/16"); err != nil {
		t.Fatal(err)
	}
	_, err := one.Move(t.Context(), addr(shared), epID, false, false)
	mustContain(t, err, "203.0.113.60 is held by host docker2")
	// It leaves, and is nobody's business here any more.
	if _, err := one.Detach(t.Context(), addr(shared), false); err != nil {
		t.Fatal(err)
	}
	if c, ok := one.store.Holder(addr(shared)); !ok || c.Host != "docker2" {
		t.Errorf("held by %+v", c)
	}
}

// TestLeaseLost: a host that gets another lease claims again what nobody has
// claimed meanwhile, and nothing of it is ever away.
func TestLeaseLost(t *testing.T) {
	s := newSite(t, 2)
	one := s.hosts[0]
	if err := one.run(ep1, "172.31.0.2/16", "extip.address", shared); err != nil {
		t.Fatal(err)
	}
	one.cut(true)
	one.host.Steps()
	one.join()
	s.catchUp()
	if c, ok := s.hosts[1].store.Holder(addr(shared)); !ok || c.Host != "docker1" {
		t.Errorf("held by %+v", c)
	}
	s.mustAnswer(shared, "docker1")
	if got := one.host.Steps(); slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "alias") }) {
		t.Errorf("steps %q", got)
	}
}

// TestRestartApart: a program that begins apart keeps what is on its parent, and
// puts nothing there that isn't.
func TestRestartApart(t *testing.T) {
	s := newSite(t, 2)
	one := s.hosts[0]
	if err := errors.Join(one.run(ep1, "172.31.0.2/16", "extip.address", shared), one.run(ep2, "172.31.0.3/16", "extip.address", "203.0.113.61")); err != nil {
		t.Fatal(err)
	}
	one.cut(false)
	one.host.DropAlias(addr(shared))
	one.restart()
	one.releaseWithheld(t.Context())
	s.mustAnswer(shared)
	s.mustAnswer("203.0.113.61", "docker1")
	// Nor does a repair, without asking.
	one.host.DropAlias(addr("203.0.113.61"))
	one.host.Others = map[netip.Addr]net.HardwareAddr{addr("203.0.113.61"): stranger}
	if _, err := one.Reconcile("a test"); err != nil {
		t.Fatal(err)
	}
	one.releaseWithheld(t.Context())
	s.mustAnswer("203.0.113.61")
	one.host.Others = nil
	one.releaseWithheld(t.Context())
	s.mustAnswer("203.0.113.61", "docker1")
	one.join()
	s.catchUp()
	s.mustAnswer(shared, "docker1")
	// One that begins after another host has got an address takes it off.
	one.member.ledger.Cut()
	one.member.ledger.End()
	s.wire.Cut(one.host, true)
	if err := s.hosts[1].run(epID, "172.31.0.3/16", "extip.address", shared); err != nil {
		t.Fatal(err)
	}
	one.member.ledger.Join()
	one.host.Steps()
	one.restart()
	s.wire.Cut(one.host, false)
	s.mustAnswer(shared, "docker2")
	s.mustAnswer("203.0.113.61", "docker1")
}

// TestReserved: what another name has reserved meanwhile is lost, too, until it is
// free.
func TestReserved(t *testing.T) {
	s := newSite(t, 2)
	one, two := s.hosts[0], s.hosts[1]
	if err := one.run(ep1, "172.31.0.2/16", "extip.address", shared); err != nil {
		t.Fatal(err)
	}
	one.cut(true)
	if _, err := two.Reserve("db", addrs(shared), false); err != nil {
		t.Fatal(err)
	}
	one.join()
	s.catchUp()
	if why := one.withheldWhy(shared); why != `it is reserved as "db"` {
		t.Errorf("withheld: %q", why)
	}
	s.mustAnswer(shared)
	if _, err := two.Unreserve("db", false); err != nil {
		t.Fatal(err)
	}
	one.reclaim()
	s.catchUp()
	s.mustAnswer(shared, "docker1")
}

// TestLostBeforeJoin: what another host has got between CreateEndpoint and Join is
// not put up, and comes when that host gives it up.
func TestLostBeforeJoin(t *testing.T) {
	s := newSite(t, 2, "extip.dad", "off")
	one, two := s.hosts[0], s.hosts[1]
	if err := one.endpoint(ep1, "172.31.0.2/16", "extip.address", shared); err != nil {
		t.Fatal(err)
	}
	one.member.ledger.End()
	one.member.ledger.Join()
	if err := two.run(ep2, "172.31.0.3/16", "extip.address", shared); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Join(&api.JoinRequest{NetworkID: netID, EndpointID: ep1}); err != nil {
		t.Fatal(err)
	}
	s.mustAnswer(shared, "docker2")
	if v := one.Addresses()[0]; v.Reason != "it is held by host docker2" || v.HeldBy != "docker2" {
		t.Errorf("shown as %+v", v)
	}
	if err := two.rm(ep2); err != nil {
		t.Fatal(err)
	}
	s.catchUp()
	s.mustAnswer(shared, "docker1")
	s.noDoubles()
}

// TestApartIsTold: that a host is apart, and no longer, is an event.
func TestApartIsTold(t *testing.T) {
	s := newSite(t, 1)
	events, stop := s.hosts[0].Events()
	defer stop()
	s.follow()
	next := func(kind string) {
		t.Helper()
		for {
			select {
			case e := <-events:
				if e.Kind == kind {
					return
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("no event %s", kind)
			}
		}
	}
	s.hosts[0].cut(false)
	next(EventApart)
	s.hosts[0].join()
	next(EventJoined)
}

// TestAllLeasesEnd: after a time without a ledger, in which all leases have ended,
// the host that served an address has it again, not the one that had lost it
// before and is the first to be joined.
func TestAllLeasesEnd(t *testing.T) {
	s := newSite(t, 2)
	one, two := s.hosts[0], s.hosts[1]
	if err := one.run(ep1, "172.31.0.2/16", "extip.address", shared, "extip.reservation", "web"); err != nil {
		t.Fatal(err)
	}
	s.follow()
	one.cut(true)
	if err := two.run(ep2, "172.31.0.3/16", "extip.reservation", "web"); err != nil {
		t.Fatal(err)
	}
	one.join()
	eventually(t, "docker1 knows who has it", func() bool { return one.withheldWhy(shared) == "it is held by host docker2" })
	one.cut(true)
	two.cut(true)
	one.join()
	for range 3 {
		one.reclaim()
		one.releaseWithheld(t.Context())
	}
	if c, ok := one.store.Holder(addr(shared)); ok {
		t.Errorf("claimed for %s, while docker2 serves it", c.Host)
	}
	two.join()
	eventually(t, "docker2 has claimed it again", func() bool { c, ok := one.store.Holder(addr(shared)); return ok && c.Host == "docker2" })
	s.mustAnswer(shared, "docker2")
	if got := two.withheldWhy(shared); got != "" {
		t.Errorf("docker2 withholds it: %s", got)
	}
	s.noDoubles()
	if err := two.rm(ep2); err != nil {
		t.Fatal(err)
	}
	eventually(t, "docker1 has it back", func() bool { one.releaseWithheld(t.Context()); return one.withheldWhy(shared) == "" })
	s.mustAnswer(shared, "docker1")
}
