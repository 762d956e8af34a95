package store_test

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extip/extip/internal/ledgertest"
	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
)

// A host is one of those of a test, with its store.
type host struct {
	*ledgertest.Host
	*store.Store
	path string
}

func newHost(t *testing.T, l *ledgertest.Ledger, name string) *host {
	t.Helper()
	h := &host{Host: l.Host(name), path: filepath.Join(t.TempDir(), name+".db")}
	h.Store = openShared(t, h.Host, h.path)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// restart closes a host's store and opens it again.
func (h *host) restart(t *testing.T) {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h.Store = openShared(t, h.Host, h.path)
}

// start has a container of a host claim an address, with a reservation if it has a name.
func (h *host) start(id, reservation string, addrs ...string) (store.Endpoint, error) {
	e := store.Endpoint{ID: id, Network: "n", State: store.Plumbed}
	e, err := h.CreateEndpoint(e, store.Want{Addresses: ledgertest.Addrs(addrs...), Reservation: reservation})
	if err == nil {
		e.State = store.Published
		err = h.PutEndpoint(e)
	}
	return e, err
}

// reclaim fails the test unless it finds lost what is wanted.
func (h *host) reclaim(t *testing.T, want string) {
	t.Helper()
	lost, err := h.Reclaim()
	if got := fmt.Sprint(lost); got != want || err != nil {
		t.Errorf("lost %s, %v, want %s", got, err, want)
	}
}

// TestLeaseEnds: what a dead host had is free, but what a reservation keeps only for
// that; once the host is back it has what is free still, and knows what isn't.
func TestLeaseEnds(t *testing.T) {
	l := ledgertest.New()
	one, two := newHost(t, l, "docker1"), newHost(t, l, "docker2")
	_, err := one.start("web", "", "203.0.113.56")
	_, err2 := one.start("mail", "mail", "203.0.113.57")
	_, err3 := one.start("other", "", "203.0.113.58")
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	one.Cut()
	if _, err := two.start("mail2", "mail"); err == nil {
		t.Error("a host that lives lost an address")
	}
	one.End()
	if _, err := two.start("web2", "", "203.0.113.57"); !strings.Contains(fmt.Sprint(err), `reserved as "mail"`) {
		t.Errorf("what a dead host's reservation keeps: %v", err)
	}
	if _, err := two.start("web2", "", "203.0.113.56"); err != nil {
		t.Error(err)
	}
	if e, err := two.start("mail2", "mail"); err != nil || fmt.Sprint(e.External) != "[203.0.113.57]" {
		t.Errorf("%v, %v", e.External, err)
	}
	if _, err := one.Reclaim(); !errors.Is(err, store.ErrApart) {
		t.Errorf("reclaim while it is cut off: %v", err)
	}
	one.Join()
	one.reclaim(t, "map[203.0.113.56:docker2 203.0.113.57:docker2]")
	ledgertest.Check(t, "docker1", one.Store)
	if c, ok := two.Holder(ledgertest.Addrs("203.0.113.58")[0]); !ok || c.Host != "docker1" {
		t.Errorf("what nobody took: %+v", c)
	}
	// A reservation may keep what nobody claims, too.
	one.End()
	if _, err := two.Reserve("db", ledgertest.Addrs("203.0.113.58"), false); err != nil {
		t.Fatal(err)
	}
	one.Join()
	one.reclaim(t, `map[203.0.113.56:docker2 203.0.113.57:docker2 203.0.113.58:reserved as "db"]`)
	// Lost addresses are given up here, and are still the other's.
	if err := one.DeleteEndpoints("web", "mail"); err != nil {
		t.Error(err)
	}
	if err := errors.Join(two.DeleteEndpoints("web2"), two.Unreserve("db")); err != nil {
		t.Error(err)
	}
	one.reclaim(t, "map[]")
	if c, ok := one.Holder(ledgertest.Addrs("203.0.113.57")[0]); !ok || c.Host != "docker2" || c.Endpoint != "mail2" {
		t.Errorf("%+v", c)
	}
	ledgertest.Check(t, "docker1", one.Store)
	ledgertest.Check(t, "docker2", two.Store)
}

// TestApart: a host that is cut off claims nothing, refuses nothing that it isn't
// certain of, and lets go of what ends; the rest works as ever.
func TestApart(t *testing.T) {
	l := ledgertest.New()
	one, two := newHost(t, l, "docker1"), newHost(t, l, "docker2")
	web, err := one.start("web", "", "203.0.113.56", "203.0.113.60")
	mail, err2 := one.start("mail", "mail", "203.0.113.57")
	_, err3 := two.start("x", "", "203.0.113.58")
	plumbed, err4 := one.CreateEndpoint(store.Endpoint{ID: "plumbed", State: store.Plumbed}, store.Want{Addresses: ledgertest.Addrs("203.0.113.61"), Reservation: "late"})
	if err := errors.Join(err, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	one.Cut()
	p := ledgertest.Parse(t, "203.0.113.58/32")
	plumbed.State = store.Published
	for what, err := range map[string]error{
		"claim":         second(one.start("e", "", "203.0.113.70")),
		"taken":         second(one.start("e", "", "203.0.113.58")),
		"exhausted":     second(one.CreateEndpoint(store.Endpoint{ID: "e"}, store.Want{Pools: []pool.Pool{p}})),
		"recall":        second(one.start("e", "mail")),
		"add":           second(one.AddClaims(web, store.Want{Addresses: ledgertest.Addrs("203.0.113.70")}, false)),
		"rehearsal":     second(one.AddClaims(web, store.Want{Addresses: ledgertest.Addrs("203.0.113.70")}, true)),
		"reserve":       second(one.Reserve("db", ledgertest.Addrs("203.0.113.71"), false)),
		"unreserve":     one.Unreserve("mail"),
		"detach":        one.ChangeClaims(without(mail, "203.0.113.57")),
		"hand over":     one.HandOver(without(web, "203.0.113.60"), ledgertest.Addrs("203.0.113.60")[0], store.Claim{Host: "docker2", Endpoint: "x"}),
		"publish named": one.PutEndpoint(plumbed),
	} {
		if !errors.Is(err, store.ErrApart) {
			t.Errorf("%s: %v", what, err)
		}
	}
	web.Detour = true
	_, err = one.CreateEndpoint(store.Endpoint{ID: "inside"}, store.Want{})
	if err := errors.Join(err, one.PutEndpoint(web), one.PutNetwork(store.Network{ID: "n"}), one.ChangeClaims(without(web, "203.0.113.60")),
		one.RetireEndpoint(mail), one.DeleteEndpoints("mail", "inside", "plumbed")); err != nil {
		t.Errorf("what needs no ledger: %v", err)
	}
	if claims, err := one.Claims(); err != nil || fmt.Sprint(claims) != "map[203.0.113.56:web]" {
		t.Errorf("%v, %v", claims, err)
	}
	if _, err := two.start("y", "", "203.0.113.60"); err == nil {
		t.Error("what was given up by a host that is cut off is free before that is back")
	}
	one.Join()
	one.reclaim(t, "map[]")
	for _, a := range []string{"203.0.113.60", "203.0.113.61"} {
		if _, err := two.start("at "+a, "", a); err != nil {
			t.Errorf("given up: %v", err)
		}
	}
	if _, err := two.start("mail2", "mail"); err != nil {
		t.Error(err)
	}
	ledgertest.Check(t, "docker1", one.Store)
	ledgertest.Check(t, "docker2", two.Store)
}

func second[T any](_ T, err error) error { return err }

// without is an endpoint without an address.
func without(e store.Endpoint, addr string) store.Endpoint {
	var rest []netip.Addr
	for _, a := range e.External {
		if a.String() != addr {
			rest = append(rest, a)
		}
	}
	e.External = rest
	return e
}

// TestUnanswered: a claim that was made, though the ledger's answer was lost, is
// in nobody's way.
func TestUnanswered(t *testing.T) {
	l := ledgertest.New()
	one, two := newHost(t, l, "docker1"), newHost(t, l, "docker2")
	answer := ledgertest.Unanswered
	one.Answers(func([]store.Write) ledgertest.Answer { return answer })
	if _, err := one.start("e1", "", "203.0.113.56", "203.0.113.57"); !errors.Is(err, store.ErrApart) {
		t.Fatal(err)
	}
	if _, ok := two.Holder(ledgertest.Addrs("203.0.113.56")[0]); !ok {
		t.Fatal("it was not made")
	}
	answer = ledgertest.Right
	// The engine tries again, with another endpoint.
	if _, err := one.start("e2", "", "203.0.113.56"); err != nil {
		t.Error(err)
	}
	one.reclaim(t, "map[]")
	if _, err := two.start("x", "", "203.0.113.57"); err != nil {
		t.Errorf("it is left claimed: %v", err)
	}
	ledgertest.Check(t, "docker1", one.Store)
	// The same when it releases.
	answer = ledgertest.Unanswered
	if err := one.DeleteEndpoints("e2"); err != nil {
		t.Error(err)
	}
	answer = ledgertest.Right
	one.reclaim(t, "map[]")
	ledgertest.Check(t, "docker1", one.Store)
	if got := l.String(); strings.Contains(got, "docker1") {
		t.Errorf("left:\n%s", got)
	}
}

// TestStale: what others do meanwhile is seen, and a host that is always behind
// gets through.
func TestStale(t *testing.T) {
	l := ledgertest.New()
	one, two := newHost(t, l, "docker1"), newHost(t, l, "docker2")
	one.Late()
	if _, err := two.start("x", "", "203.0.113.56"); err != nil {
		t.Fatal(err)
	}
	_, err := one.start("e", "", "203.0.113.56")
	if taken, ok := errors.AsType[*store.TakenError](err); !ok || taken.Host != "docker2" {
		t.Errorf("%v", err)
	}
	if err := two.DeleteEndpoints("x"); err != nil {
		t.Fatal(err)
	}
	n := 0
	one.Answers(func([]store.Write) ledgertest.Answer {
		if n++; n < 4 {
			return ledgertest.Stale
		}
		return ledgertest.Right
	})
	if _, err := one.start("e", "", "203.0.113.56"); err != nil {
		t.Errorf("what was released meanwhile: %v", err)
	}
	one.Join()
	ledgertest.Check(t, "docker1", one.Store)
	ledgertest.Check(t, "docker2", two.Store)
}
