package driver

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/docker/go-plugins-helpers/network"

	"github.com/extip/extip/internal/hosttest"
	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
)

const (
	bridgeName = "xip-02b1c3d4e5f"
	vethName   = "xip4ea39db0c1d"
)

var external = netip.MustParseAddr("203.0.113.56")

// runningLab has one container with an external address, as in running.
func runningLab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.62")
	if err := l.run(epID, "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	l.host.Take(vethName)
	l.check(running)
	return l
}

func TestReconcileRepairs(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(*lab)
		want   string // one of the lines
	}{
		{"nothing", func(*lab) {}, ""},
		{"rules flushed", func(l *lab) { l.host.Flush() }, "203.0.113.56 <-> 172.31.0.2 of 4ea39db0c1d2 egress was missing"},
		{"alias deleted", func(l *lab) { l.host.DropAlias(external) }, "alias 203.0.113.56 was missing on br-ex"},
		{"bridge deleted", func(l *lab) { l.host.DropLink(bridgeName) }, "bridge " + bridgeName + " was missing"},
		{"everything but the container's link", func(l *lab) {
			l.host.Flush()
			l.host.DropAlias(external)
			l.host.DropLink(bridgeName)
		}, "link " + vethName + " of endpoint 4ea39db0c1d2 was off its bridge or down"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := runningLab(t)
			tt.damage(l)
			forgotten := len(l.host.Forgotten())
			lines, err := l.Reconcile("test")
			if err != nil {
				t.Fatal(err)
			}
			if (tt.want == "") != (len(lines) == 0) || tt.want != "" && !slices.ContainsFunc(lines, func(s string) bool { return strings.Contains(s, tt.want) }) {
				t.Errorf("repaired %q, want %q", lines, tt.want)
			}
			l.check(running)
			if again, err := l.Reconcile("test"); len(again) > 0 || err != nil {
				t.Errorf("once more: %q, %v", again, err)
			}
			if len(l.host.Forgotten()) != forgotten {
				t.Error("a repair ends connections that go on")
			}
		})
	}
}

func TestRestartEndsNoConnection(t *testing.T) {
	l := runningLab(t)
	forgotten := len(l.host.Forgotten())
	l.restart()
	l.check(running)
	if len(l.host.Forgotten()) != forgotten {
		t.Error("starting again ends connections that go on")
	}
}

// TestRebootAndEngineDeath: the container's link went with its namespace and
// nobody said so; the engine then starts the container anew, with the same
// address.
func TestRebootAndEngineDeath(t *testing.T) {
	for name, die := range map[string]func(*lab){
		"reboot": func(l *lab) {
			l.host.Reboot()
			l.restart()
			l.check(`
link xip-02b1c3d4e5f of ` + netID + ` mtu 1450 [172.31.0.1/16]
nat network 02b1c3d4e5f6: xip-02b1c3d4e5f [172.31.0.0/16] by br-ex,eth0`)
		},
		"engine killed": func(l *lab) { l.host.DropLink(vethName) },
		// The namespace lives a moment longer than the engine's memory.
		"engine killed, link not yet gone": func(l *lab) {
			time.Sleep(time.Second)
			if _, err := l.GetCapabilities(); err != nil {
				t.Error(err)
			}
			time.AfterFunc(staleWait/2, func() { l.host.DropLink(vethName) })
		},
	} {
		// In a bubble, as nobody knows how long a moment is.
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { startedAnew(t, die) }) })
	}
}

func startedAnew(t *testing.T, die func(*lab)) {
	l := runningLab(t)
	die(l)
	if err := l.run("e2", "172.31.0.3/16", "extip.address", "203.0.113.56"); err != nil {
		t.Fatal(err)
	}
	if got := l.host.String(); !strings.Contains(got, "203.0.113.56 <-> 172.31.0.3 of e2") || strings.Contains(got, vethName) {
		t.Errorf("machine:\n%s", got)
	}
	// What the managed form of a plugin is told later is about
	// what is gone.
	if err := l.rm(epID); err != nil {
		t.Error(err)
	}
	if err := errors.Join(l.rm("e2"), l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID})); err != nil {
		t.Error(err)
	}
	l.clean()
}

// TestInternalAddressGivenAgain: the engine gives a container's address away
// only when it is free, so whoever had it is gone, whatever its link says.
func TestInternalAddressGivenAgain(t *testing.T) {
	l := runningLab(t)
	if err := l.run("e2", "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	if got := l.host.String(); strings.Contains(got, vethName) || !strings.Contains(got, "203.0.113.56 <-> 172.31.0.2 of e2") {
		t.Errorf("machine:\n%s", got)
	}
}

// TestLiveOwnerIsNotEvicted: after a restart with live-restore, the owner of an
// address is older than the engine and still there.
func TestLiveOwnerIsNotEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := runningLab(t)
		time.Sleep(time.Second)
		if _, err := l.GetCapabilities(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err := l.run("e2", "172.31.0.3/16", "extip.address", "203.0.113.56")
		if err == nil || !strings.Contains(err.Error(), "203.0.113.56 is taken by endpoint 4ea39db0c1d2") {
			t.Errorf("error %v", err)
		}
		if waited := time.Since(began); waited != staleWait {
			t.Errorf("it was waited for for %v", waited)
		}
		l.check(running)
	})
}

func TestForgottenNetworkGivesWay(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex")
	if err := l.CreateNetwork(createNetwork("n2", 31, "extip.parent", "br-ex")); err != nil {
		t.Fatal(err)
	}
	l.check(`
link xip-n2 of n2 mtu 1450 [172.31.0.1/16]
nat network n2: xip-n2 [172.31.0.0/16] by br-ex,eth0`)
}

// TestStrays: what carries our mark without a record goes, whatever it is.
func TestStrays(t *testing.T) {
	l := runningLab(t)
	left := nat.Guarded{Ports: []nat.Port{{Link: "xipstray", MAC: link.MAC(l.endpoints[epID].rec.Addresses)}}}
	if err := errors.Join(
		l.host.NAT().AddNetwork(l.natNetwork(l.networkRecords()[0])),
		l.host.Guard().Add(left),
		l.host.EnsureVeth(link.Veth{Host: "xipstray", Peer: "xicstray", Owner: "stray", Bridge: bridgeName}),
	); err != nil {
		t.Fatal(err)
	}
	other := mappings(l.endpoints[epID].rec)[0]
	other.External, other.Endpoint = netip.MustParseAddr("203.0.113.99"), "stray"
	if err := errors.Join(l.host.NAT().Add(other), bar(l, other.External), l.host.EnsureAlias("br-ex", other.External)); err != nil {
		t.Fatal(err)
	}
	l.restart()
	l.check(running)
}

func TestAbandonedEndpoint(t *testing.T) {
	l := newLab(t)
	synctest.Test(t, func(t *testing.T) {
		l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56")
		if err := l.endpoint(epID, "172.31.0.2/16"); err != nil { // and no Join follows
			t.Fatal(err)
		}
		time.Sleep(abandonedAfter - time.Second)
		if lines, err := l.Reconcile("test"); len(lines) > 0 || err != nil {
			t.Errorf("too early: %q, %v", lines, err)
		}
		time.Sleep(2 * time.Second)
		if lines, err := l.Reconcile("test"); len(lines) != 1 || err != nil {
			t.Errorf("%q, %v", lines, err)
		}
	})
	if err := l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID}); err != nil {
		t.Error(err)
	}
	l.clean()
}

// TestNoRulesNoAliases: where mappings can't be restored, the host itself must
// not answer on the external addresses.
func TestNoRulesNoAliases(t *testing.T) {
	l := runningLab(t)
	l.host.Flush()
	l.host.FailAt = l.host.Writes() + 1
	if _, err := l.Reconcile("test"); !errors.Is(err, hosttest.ErrInjected) {
		t.Fatalf("error %v", err)
	}
	if got := l.host.String(); strings.Contains(got, "addr") {
		t.Errorf("machine:\n%s", got)
	}
	if lines, err := l.Reconcile("test"); err != nil {
		t.Errorf("%q, %v", lines, err)
	}
	l.check(running)
}

// TestDamagedStore: the records are rebuilt from what the links carry.
func TestDamagedStore(t *testing.T) {
	l := runningLab(t)
	if err := l.run("e2", "172.31.0.3/16", "extip.address", "203.0.113.60,203.0.113.61", "extip.source", "gateway", "extip.egress", "host"); err != nil {
		t.Fatal(err)
	}
	l.host.Take("xipe2")
	want, records := l.host.String(), l.recorded()
	if err := l.store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.start()
	l.check(want)
	if got := l.recorded(); withoutTimes(got) != withoutTimes(records) {
		t.Errorf("records\n%s\nwere\n%s", got, records)
	}
	if err := errors.Join(l.rm(epID), l.rm("e2"), l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID})); err != nil {
		t.Error(err)
	}
	l.clean()
}

// withoutTimes takes out what can't be rebuilt: when an endpoint was made, and
// the address space.
func withoutTimes(records string) string {
	var out []string
	for _, word := range strings.Fields(strings.ReplaceAll(records, "LocalDefault ", "")) {
		if !strings.HasPrefix(word, "2026") && !strings.Contains(word, ":") || strings.Contains(word, "203.0") {
			out = append(out, word)
		}
	}
	return strings.Join(out, " ")
}

// TestFullDisk: nothing new, but what there is goes on, and goes away.
func TestFullDisk(t *testing.T) {
	l := runningLab(t)
	full := errors.New("no space left on device")
	l.store.Intercept = func(what string) error {
		if strings.Contains(what, "delete") {
			return nil
		}
		return full
	}
	if err := l.run("e2", "172.31.0.3/16"); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
	if err := l.CreateNetwork(createNetwork("n2", 32)); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
	l.check(running)
	if lines, err := l.Reconcile("test"); len(lines) > 0 || err != nil {
		t.Errorf("%q, %v", lines, err)
	}
	l.store.Intercept = nil
	if err := errors.Join(l.rm(epID), l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID})); err != nil {
		t.Error(err)
	}
	l.clean()
}

// TestRun: damage that is hinted at is repaired at once, a storm of hints is
// answered a bounded number of times, and without a hint there is the timer.
func TestRun(t *testing.T) {
	l := runningLab(t)
	synctest.Test(t, func(t *testing.T) {
		l.hints, l.ruleHints = make(chan string, 1), make(chan string, 1) // of this bubble, whose time is another
		l.endpoints[epID].changed = time.Time{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx, 30*time.Second) }()

		l.host.DropAlias(external)
		l.NetworkChanged(link.Change{Kind: link.AddressGone, Link: "br-ex", Prefix: netip.PrefixFrom(external, 32)})
		time.Sleep(2 * settle)
		l.check(running)

		time.Sleep(time.Second)
		writes := l.host.Writes()
		for range 1000 { // 10 s
			l.Hint("storm")
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		perRun := 7
		if n := l.host.Writes() - writes; n < 20*perRun || n > 45*perRun {
			t.Errorf("a storm of 10 s costs %d writes", n)
		}

		// Rules alone are repaired at a hint at rules; all else at the others.
		l.host.Flush()
		l.HintRules("rules changed")
		time.Sleep(2 * settle)
		l.check(running)
		time.Sleep(time.Second)
		l.host.Flush()
		l.host.DropLink(bridgeName)
		l.HintRules("rules changed")
		l.Hint("link gone")
		time.Sleep(2 * settle)
		l.check(running)

		l.host.Flush()
		time.Sleep(31 * time.Second)
		l.check(running)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWhatIsDamage(t *testing.T) {
	l := runningLab(t)
	prefix := netip.MustParsePrefix
	for _, tt := range []struct {
		change link.Change
		want   bool
	}{
		{link.Change{Kind: link.Missed}, true},
		{link.Change{Kind: link.AddressGone, Link: "br-ex", Prefix: prefix("203.0.113.56/32")}, true},
		{link.Change{Kind: link.AddressGone, Link: "br-ex", Prefix: prefix("203.0.113.57/32")}, false},
		{link.Change{Kind: link.AddressGone, Link: bridgeName, Prefix: prefix("172.31.0.1/16")}, true},
		{link.Change{Kind: link.AddressGone, Link: "docker0", Prefix: prefix("172.17.0.1/16")}, false},
		{link.Change{Kind: link.RouteGone, Prefix: prefix("172.31.0.0/16")}, true},
		{link.Change{Kind: link.RouteGone, Prefix: prefix("172.17.0.0/16")}, false},
		{link.Change{Kind: link.LinkGone, Link: vethName}, true},
		{link.Change{Kind: link.LinkGone, Link: bridgeName}, true},
		{link.Change{Kind: link.PortGone, Link: vethName}, true},
		{link.Change{Kind: link.LinkDown, Link: bridgeName}, true},
		{link.Change{Kind: link.LinkGone, Link: "veth0a1b2c3"}, false},
		{link.Change{Kind: link.LinkUp, Link: "br-ex"}, true},
		{link.Change{Kind: link.LinkUp, Link: vethName}, false},
	} {
		if got := l.isDamage(tt.change); got != tt.want {
			t.Errorf("%v: %v", tt.change, got)
		}
	}
	// Its own work is no damage.
	e := l.endpoints[epID]
	e.mu.Lock()
	if l.isDamage(link.Change{Kind: link.LinkGone, Link: vethName}) {
		t.Error("a call under way looks like damage")
	}
	e.mu.Unlock()
	// A parent that comes up is told of.
	announced := len(l.host.Announced())
	l.NetworkChanged(link.Change{Kind: link.LinkUp, Link: "br-ex"})
	if got := l.host.Announced(); len(got) != announced+1 {
		t.Errorf("announced %v", got)
	}
}
