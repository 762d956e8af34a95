package cluster_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extip/extip/cluster"
	"github.com/extip/extip/internal/etcdtest"
	"github.com/extip/extip/store"
)

// A follower remembers what it is told.
type follower struct {
	mu     sync.Mutex
	joined int
	claims []netip.Addr
	offers []store.Offer
	answer func(store.Offer) (store.Acceptance, error)
}

func (f *follower) LedgerJoined() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.joined++
}

func (f *follower) ClaimsChanged(addrs []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.claims = append(f.claims, addrs...)
}

func (f *follower) Offered(o store.Offer) (store.Acceptance, error) {
	f.mu.Lock()
	f.offers = append(f.offers, o)
	f.mu.Unlock()
	return f.answer(o)
}

func (f *follower) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.joined
}

func (f *follower) told(a netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.claims, a)
}

var address = netip.MustParseAddr("203.0.113.56")

const key, own = "claims/203.0.113.56", `{"host":"docker1"}`

func TestRestart(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(1)...)
	c := config(t, nodes, "docker1")
	one, leave := join(t, c)
	two, _ := join(t, config(t, nodes, "docker2"))
	if err := claim(one, key, own); err != nil {
		t.Fatal(err)
	}
	// Neither a restart nor an upgrade loses the claim; another host of that
	// name is told who it is not.
	for range 2 {
		leave()
		one, leave = join(t, c)
		if !one.MayDefend(address) {
			t.Error("a program that started again can't prove its claim")
		}
	}
	imposter := config(t, nodes, "docker1")
	_, err := cluster.Open(imposter)
	if taken := (*cluster.NameError)(nil); !errors.As(err, &taken) {
		t.Errorf("a second docker1: %v", err)
	}
	time.Sleep(2 * time.Second)
	if !has(two, key, own) {
		t.Error("the claim is gone")
	}
}

// TestDeath: what a host has is free when its lease has ended, and no earlier.
func TestDeath(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(1)...)
	c := config(t, nodes, "docker1")
	c.TTL = cluster.MinTTL
	one, leave := join(t, c)
	two, _ := join(t, config(t, nodes, "docker2"))
	heard := &follower{}
	two.Follow(heard)
	if err := claim(one, key, own); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := two.Await(t.Context(), "docker1"); !errors.Is(err, store.ErrAlive) {
		t.Errorf("a host that lives: %v", err)
	}
	t.Logf("known to be alive after %s", time.Since(begun))
	if !has(two, key, own) {
		t.Error("its claim is gone")
	}
	if err := two.Await(t.Context(), "docker9"); err != nil {
		t.Errorf("a host that there never was: %v", err)
	}
	leave()
	begun = time.Now()
	if err := two.Await(t.Context(), "docker1"); err != nil {
		t.Errorf("a host that is dead: %v", err)
	}
	t.Logf("known to be dead after %s", time.Since(begun))
	eventually(t, "the address is free", func() bool { return has(two, key, "") && heard.told(address) })
	if err := claim(two, key, `{"host":"docker2"}`); err != nil {
		t.Error(err)
	}
	// Back again, it learns at once who has its address.
	one, _ = join(t, c)
	if one.MayDefend(address) {
		t.Error("it would defend what is another host's")
	}
	if !has(one, key, `{"host":"docker2"}`) {
		t.Error("it doesn't know who has its address")
	}
	// Dead, another machine may have its name.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := two.Await(ctx, "docker1"); err == nil {
		t.Error("it lives again")
	}
}

// TestLeaseLost: an operator revokes the lease, or the host was away for long.
func TestLeaseLost(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(1)...)
	c := config(t, nodes, "docker1")
	c.TTL = cluster.MinTTL
	one, _ := join(t, c)
	heard := &follower{}
	one.Follow(heard)
	eventually(t, "it has joined", func() bool { return heard.count() > 0 })
	joined := heard.count()
	if err := claim(one, key, own); err != nil {
		t.Fatal(err)
	}
	nodes[0].Ctl("lease", "revoke", strings.Fields(nodes[0].Ctl("lease", "list"))[3])
	eventually(t, "the follower is told that it has joined again", func() bool { return heard.count() > joined })
	if _, apart := one.Apart(); apart {
		t.Error("it has a lease and is apart")
	}
	if one.MayDefend(address) || !has(one, key, "") {
		t.Error("it thinks that a claim holds that hung on the lease that was lost")
	}
	if err := claim(one, key, own); err != nil {
		t.Error(err)
	}
	if !one.MayDefend(address) {
		t.Error("it can't prove what it claimed again")
	}
}

func TestHosts(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(1)...)
	c := config(t, nodes, "docker1")
	c.TTL = cluster.MinTTL
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	one, err := cluster.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	one.SetMACs(func() ([]net.HardwareAddr, error) { return []net.HardwareAddr{mac, mac}, nil })
	leave := run(t, one)
	two, _ := join(t, config(t, nodes, "docker2"))
	eventually(t, "its MAC is known", func() bool { return two.Member(mac) == "docker1" })
	if got := two.Member(net.HardwareAddr{2, 0, 0, 0, 0, 2}); got != "" {
		t.Errorf("nobody's MAC is that of %q", got)
	}
	alive := func(want ...bool) bool {
		hosts := two.Hosts()
		if len(hosts) != 2 || hosts[0].Name != "docker1" || hosts[1].Name != "docker2" || hosts[0].Own || !hosts[1].Own {
			return false
		}
		return hosts[0].Alive == want[0] && hosts[1].Alive == want[1]
	}
	eventually(t, "both live", func() bool { return alive(true, true) })
	if h := two.Hosts()[0]; h.TTL != cluster.MinTTL || h.Version != "test" || h.Seen.IsZero() {
		t.Errorf("%+v", h)
	}
	leave()
	eventually(t, "one is dead", func() bool { return alive(false, true) })
	if two.Member(mac) != "docker1" {
		t.Error("the MAC of a dead host is forgotten")
	}
}

func TestOffer(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(1)...)
	one, _ := join(t, config(t, nodes, "docker1"))
	two, _ := join(t, config(t, nodes, "docker2"))
	other := &follower{answer: func(o store.Offer) (store.Acceptance, error) {
		if o.Container != "web" {
			return store.Acceptance{}, errors.New("no container " + o.Container + " runs here")
		}
		return store.Acceptance{Endpoint: "e2", Network: "n2", Container: "web"}, nil
	}}
	// An offer may be there before the other host's driver is.
	o := store.Offer{Address: address, From: "docker1", To: "docker2", Container: "web"}
	type outcome struct {
		a   store.Acceptance
		err error
	}
	first := make(chan outcome, 1)
	awaitHost(t, one, "docker2")
	go func() {
		a, err := one.Offer(t.Context(), o)
		first <- outcome{a, err}
	}()
	eventually(t, "the offer is there", func() bool { return !has(two, "offers/203.0.113.56", "") })
	two.Follow(other)
	if got := <-first; got.err != nil || got.a.Endpoint != "e2" || got.a.Network != "n2" {
		t.Errorf("%+v", got)
	}
	one.Withdraw(address)
	eventually(t, "nothing is left of it", func() bool { return has(two, "offers/203.0.113.56", "") && has(two, "answers/203.0.113.56", "") })
	o.Container = "db"
	if _, err := one.Offer(t.Context(), o); err == nil || err.Error() != "no container db runs here" {
		t.Errorf("a refusal: %v", err)
	}
	// The next one while the withdrawal of the last is on its way.
	one.Withdraw(address)
	o.Container = "web"
	if a, err := one.Offer(t.Context(), o); err != nil || a.Endpoint != "e2" {
		t.Errorf("%v %v", a, err)
	}
	if got := len(other.offers); got != 3 {
		t.Errorf("asked %d times", got)
	}
	o.To = "docker3"
	if _, err := one.Offer(t.Context(), o); err == nil || !strings.Contains(err.Error(), "docker3 is not alive") {
		t.Errorf("to nobody: %v", err)
	}
}
