package store_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/extip/extip/internal/ledgertest"
	"github.com/extip/extip/store"
)

var errDisk = errors.New("no space left on device")

// A fault is what befalls a host at its n-th write, of the ledger or of its file.
type fault struct {
	host   int
	file   bool
	answer ledgertest.Answer
	n      int
}

func (f fault) String() string {
	where := map[bool]string{true: "file", false: "ledger"}[f.file]
	return fmt.Sprintf("docker%d: write %d of the %s, %d", f.host+1, f.n, where, f.answer)
}

// strike has the fault befall a host, and tells whether it has.
func (f fault) strike(h *host) (struck *bool) {
	n, hit := 0, false
	happens := func() bool {
		n++
		hit = hit || n == f.n
		return n == f.n
	}
	if f.file {
		h.Intercept = func(string) error {
			if happens() {
				return errDisk
			}
			return nil
		}
		return &hit
	}
	h.Answers(func([]store.Write) ledgertest.Answer {
		if happens() {
			return f.answer
		}
		return ledgertest.Right
	})
	return &hit
}

// mend ends faults, and restarts the host.
func (h *host) mend(t *testing.T) {
	h.Intercept = nil
	h.Answers(nil)
	h.Join()
	h.restart(t)
}

// takeOver records what a host was given.
func (h *host) takeOver() error {
	given, err := h.Given()
	if err != nil {
		return err
	}
	endpoints, err := h.Endpoints()
	for a, c := range given {
		for i, e := range endpoints {
			if e.ID == c.Endpoint {
				e.External = append(slices.Clone(e.External), a)
				failed := h.TakeOver(e, a)
				if err = errors.Join(err, failed); failed == nil {
					endpoints[i] = e
				}
			}
		}
	}
	return err
}

// TestHandOverFails: whichever write fails, or is the last of the program, both
// hosts agree in the end who has the address.
func TestHandOverFails(t *testing.T) {
	a := ledgertest.Addrs("203.0.113.57")[0]
	ends := map[string]int{}
	for at := range 2 {
		for _, kind := range []fault{{file: true}, {answer: ledgertest.Stale}, {answer: ledgertest.NotMade}, {answer: ledgertest.Unanswered}} {
			for n, struck := 1, true; struck; n++ {
				f := fault{host: at, file: kind.file, answer: kind.answer, n: n}
				l := ledgertest.New()
				hosts := []*host{newHost(t, l, "docker1"), newHost(t, l, "docker2")}
				from, err := hosts[0].start("web", "web", "203.0.113.56", "203.0.113.57")
				to, err2 := hosts[1].start("c", "mail", "203.0.113.60")
				if err := errors.Join(err, err2); err != nil {
					t.Fatal(err)
				}
				hit := f.strike(hosts[at])
				err = hosts[0].HandOver(without(from, a.String()), a, store.Claim{Host: "docker2", Endpoint: to.ID, Network: to.Network, Reservation: "mail"})
				if err == nil {
					err = hosts[1].takeOver()
				}
				if struck = *hit; !struck && err != nil {
					t.Errorf("without a fault: %v", err)
				}
				for _, h := range hosts {
					h.mend(t)
				}
				for range 2 {
					for _, h := range hosts {
						if _, err := h.Reclaim(); err != nil {
							t.Errorf("%s: %v", f, err)
						}
						if err := h.takeOver(); err != nil {
							t.Errorf("%s: %v", f, err)
						}
					}
				}
				ends[settled(t, f.String(), l, hosts, a)]++
			}
		}
	}
	t.Logf("who has it in the end, and who has it on record: %v", ends)
	for _, want := range []string{"docker1 [docker1]", "docker2 [docker2]", "docker2 [docker1 docker2]"} {
		if ends[want] == 0 {
			t.Errorf("no fault has ended in %s: %v", want, ends)
		}
	}
}

// settled says who has an address, and which hosts have it on record, of which all
// others must know it as lost.
func settled(t *testing.T, what string, l *ledgertest.Ledger, hosts []*host, a netip.Addr) string {
	t.Helper()
	c, ok := hosts[0].Holder(a)
	if !ok {
		t.Errorf("%s: nobody has %s:\n%s", what, a, l)
	}
	var records []string
	for _, h := range hosts {
		claims, err := h.Claims()
		lost, err2 := h.Reclaim()
		if err := errors.Join(err, err2); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		mine := c.Host == h.Host.Host()
		if claims[a] != "" {
			records = append(records, h.Host.Host())
		}
		if mine && claims[a] != c.Endpoint || !mine && claims[a] != "" && lost[a] != c.Host {
			t.Errorf("%s: %+v has it, on record of %s it is %q, lost %v", what, c, h.Host.Host(), claims[a], lost)
		}
		ledgertest.Check(t, what, h.Store)
	}
	return fmt.Sprint(c.Host, " ", records)
}

// TestGivenGrace: what was handed over and is never recorded is dropped in the end, at
// once if its endpoint is gone.
func TestGivenGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ledgertest.New()
		one, two := newHost(t, l, "docker1"), newHost(t, l, "docker2")
		web, err := one.start("web", "", "203.0.113.56", "203.0.113.57")
		to, err2 := two.start("c", "", "203.0.113.60")
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		a, b := ledgertest.Addrs("203.0.113.56")[0], ledgertest.Addrs("203.0.113.57")[0]
		claim := store.Claim{Host: "docker2", Endpoint: to.ID}
		if err := one.HandOver(without(web, a.String()), a, claim); err != nil {
			t.Fatal(err)
		}
		for i, want := range []bool{true, true, false} {
			two.reclaim(t, "map[]")
			if _, ok := one.Holder(a); ok != want {
				t.Errorf("after %d s: %t", 40*i, ok)
			}
			time.Sleep(40 * time.Second)
		}
		if err := errors.Join(one.HandOver(store.Endpoint{ID: "web"}, b, claim), two.DeleteEndpoints(to.ID)); err != nil {
			t.Fatal(err)
		}
		two.reclaim(t, "map[]")
		if c, ok := one.Holder(b); ok {
			t.Errorf("of an endpoint that is gone: %+v", c)
		}
	})
}

// TestHandOverUnanswered: what was handed over without an answer may be the other
// host's at any time from then on. The host doesn't count as the holder, whatever it
// knows, until it has claimed the address once more: then it can't be any more.
func TestHandOverUnanswered(t *testing.T) {
	for _, answer := range []ledgertest.Answer{ledgertest.NotMade, ledgertest.Unanswered} {
		l := ledgertest.New()
		a, b := newHost(t, l, "docker1"), newHost(t, l, "docker2")
		e, err := a.start("web", "", "203.0.113.64")
		other, err2 := b.start("mail", "")
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		addr := e.External[0]
		_, before := a.Get("claims/" + addr.String())
		a.Late()
		a.Answers(func([]store.Write) ledgertest.Answer { return answer })
		err = a.HandOver(without(e, addr.String()), addr, store.Claim{Host: "docker2", Endpoint: other.ID, Network: other.Network})
		if !errors.Is(err, store.ErrApart) {
			t.Fatalf("answer %d: %v", answer, err)
		}
		a.Answers(nil)
		for range 2 {
			if c, ok := a.Holder(addr); ok {
				t.Errorf("answer %d: held by %+v, though that isn't known", answer, c)
			}
			a.restart(t) // which changes nothing
		}
		if answer == ledgertest.Unanswered {
			a.reclaim(t, "map[203.0.113.64:docker2]")
			if c, ok := a.Holder(addr); !ok || c.Host != "docker2" {
				t.Errorf("held by %+v", c)
			}
			continue
		}
		a.reclaim(t, "map[]")
		if c, ok := a.Holder(addr); !ok || c.Endpoint != e.ID {
			t.Errorf("held by %+v", c)
		}
		if _, now := a.Get("claims/" + addr.String()); now == before {
			t.Error("its claim is as it was: the hand-over can still be made")
		}
		a.reclaim(t, "map[]")
	}
}
