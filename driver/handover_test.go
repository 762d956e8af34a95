package driver

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extip/extip/internal/ledgertest"
	"github.com/extip/extip/store"
)

// name has a driver know a container's name, as an audit does.
func (l *lab) name(id, name string) {
	l.t.Helper()
	e := l.lockEndpoint(id)
	defer e.mu.Unlock()
	rec := e.rec
	rec.Name = name
	if err := l.store.PutEndpoint(rec); err != nil {
		l.t.Fatal(err)
	}
	e.rec = rec
}

// twoContainers are one with the address on docker1, and one without on docker2.
func twoContainers(t *testing.T, kv ...string) (s *site, one, two *lab) {
	s = newSite(t, 2, kv...)
	one, two = s.hosts[0], s.hosts[1]
	if err := errors.Join(one.run(ep1, "172.31.0.2/16", "extip.address", shared+",203.0.113.61"), two.run(ep2, "172.31.0.3/16", "extip.address", "none")); err != nil {
		t.Fatal(err)
	}
	one.name(ep1, "old")
	two.name(ep2, "web")
	return s, one, two
}

func TestMoveToHost(t *testing.T) {
	s, one, two := twoContainers(t)
	ctx := t.Context()
	s.follow()
	one.host.Connect(addr(shared))
	before := one.host.String()
	planned, err := one.Move(ctx, addr(shared), "docker2/web", false, true)
	if err != nil {
		t.Fatal(err)
	}
	if one.host.String() != before || one.store.Free(one.networkRecords()[0].Pool) != 5 {
		t.Error("a dry run changes something")
	}
	one.host.Steps()
	two.host.Steps()
	done, err := one.Move(ctx, addr(shared), "docker2/web", false, false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(planned.Done, done.Done); diff != "" {
		t.Errorf("done (-planned +done):\n%s", diff)
	}
	want := `- claim 203.0.113.60: container "old" (endpoint aaaa1111)
- mapping 203.0.113.60 to 172.31.0.2, source client
- egress of 172.31.0.2: from 203.0.113.60
- address 203.0.113.60/32 on br-ex
+ egress of 172.31.0.2: from 203.0.113.61
+ claim 203.0.113.60: container "web" (endpoint aaaa2222) of host docker2`
	if diff := cmp.Diff(want, strings.Join(done.Done, "\n")); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
	left := strings.Join(done.Left, "\n")
	if !regexp.MustCompile(`203\.0\.113\.60 was nobody's for \d+m?s, until host docker2 answered for it`).MatchString(left) ||
		!strings.Contains(left, `container "web" (endpoint aaaa2222) has no reservation`) {
		t.Errorf("left:\n%s", left)
	}
	s.mustAnswer(shared, "docker2")
	s.noDoubles()
	if len(one.host.Flows()) > 0 {
		t.Errorf("flows %v", one.host.Flows())
	}
	// Down: alias, mapping, flows, note, record. Up: record, mapping, alias.
	inOrder(t, one.host.Steps(), "add mappings 2", "remove alias 203.0.113.60", "remove mappings 1", "forget ", "veth ", "hand 203.0.113.60 over to host docker2")
	inOrder(t, two.host.Steps(), "take 203.0.113.60 over", "add mappings 1", "forget ", "alias 203.0.113.60", "announce 203.0.113.60 on br-ex", "veth ")
	for i, l := range s.hosts {
		if lines, err := l.Check(); len(lines) > 0 || err != nil {
			t.Errorf("docker%d: %q, %v", i+1, lines, err)
		}
	}
	eventually(t, "nothing is given any more", func() bool { given, _ := two.store.Given(); return len(given) == 0 })
	// And back, by the endpoint's id.
	if _, err := two.Move(ctx, addr(shared), "docker1/"+ep1[:6], false, false); err != nil {
		t.Fatal(err)
	}
	s.mustAnswer(shared, "docker1")
	s.noDoubles()
}

// inOrder fails unless there are steps that begin so, in this order.
func inOrder(t *testing.T, steps []string, want ...string) {
	t.Helper()
	rest := steps
	for _, w := range want {
		i := slices.IndexFunc(rest, func(s string) bool { return strings.HasPrefix(s, w) })
		if i < 0 {
			t.Errorf("no %q in its place in\n%s", w, strings.Join(steps, "\n"))
			return
		}
		rest = rest[i+1:]
	}
}

func TestMoveToHostRefused(t *testing.T) {
	s, one, two := twoContainers(t)
	s.follow()
	if err := two.run(epID, "172.31.0.4/16", "extip.address", "203.0.113.62"); err != nil {
		t.Fatal(err)
	}
	before := one.host.String()
	for _, tt := range []struct {
		addr, to string
		drain    bool
		want     string
	}{
		{shared, "docker2/web", true, "docker2/web: connections can't drain from one host"},
		{shared, "docker2/nobody", false, `docker2/nobody: it has no container "nobody"`},
		{shared, "docker3/web", false, "docker3/web: host docker3 doesn't answer"},
		{shared, "docker1/old", false, "docker1/old: that is this host"},
		{"203.0.113.99", "docker2/web", false, "203.0.113.99 is no external address of a running container"},
		{"203.0.113.62", "docker2/web", false, "203.0.113.62 is no external address of a running container"},
	} {
		_, err := one.Move(t.Context(), addr(tt.addr), tt.to, tt.drain, false)
		mustContain(t, err, tt.want)
	}
	two.host.Own = addrs(shared)
	_, err := one.Move(t.Context(), addr(shared), "docker2/web", false, false)
	mustContain(t, err, "docker2/web: extip.address=203.0.113.60: it is this host's own")
	two.host.Own = nil
	if err := two.rm(ep2); err != nil {
		t.Fatal(err)
	}
	_, err = one.Move(t.Context(), addr(shared), "docker2/web", false, false)
	mustContain(t, err, `it has no container "web"`)
	if got := one.host.String(); got != before {
		t.Errorf("refusals leave\n%s\nwas\n%s", got, before)
	}
	alone := newLab(t)
	_, err = alone.Move(t.Context(), addr(shared), "docker2/web", false, false)
	mustContain(t, err, "docker2/web: this host shares its addresses with no other")
}

// TestMoveToHostReserved: what is moved is kept by the reservation of the container
// that gets it.
func TestMoveToHostReserved(t *testing.T) {
	s := newSite(t, 2)
	one, two := s.hosts[0], s.hosts[1]
	if err := errors.Join(
		one.run(ep1, "172.31.0.2/16", "extip.address", shared, "extip.reservation", "old"),
		two.run(ep2, "172.31.0.3/16", "extip.address", "203.0.113.61", "extip.reservation", "new"),
	); err != nil {
		t.Fatal(err)
	}
	s.follow()
	r, err := one.Move(t.Context(), addr(shared), "docker2/"+ep2[:8], false, false)
	if err != nil || strings.Contains(strings.Join(r.Left, "\n"), "has no reservation") {
		t.Fatal(r, err)
	}
	if got := fmt.Sprint(one.names()); got != fmt.Sprint(two.names()) || !strings.Contains(got, "new") {
		t.Errorf("reserved: %s", got)
	}
	if err := errors.Join(one.rm(ep1), two.rm(ep2), one.run(epID, "172.31.0.4/16", "extip.reservation", "new")); err != nil {
		t.Fatal(err)
	}
	s.mustAnswer(shared, "docker1")
	s.mustAnswer("203.0.113.61", "docker1")
	s.noDoubles()
}

// TestHandOverUnanswered: if the ledger stops to answer while it is asked, the
// address is nobody's here until it is known whether it was handed over.
func TestHandOverUnanswered(t *testing.T) {
	for answer, want := range map[ledgertest.Answer]string{ledgertest.NotMade: "docker1", ledgertest.Unanswered: "docker2"} {
		t.Run(want, func(t *testing.T) {
			s, one, _ := twoContainers(t)
			one.member.ledger.Answers(func(writes []store.Write) ledgertest.Answer {
				if slices.ContainsFunc(writes, func(w store.Write) bool { return w.Host == "docker2" }) {
					return answer
				}
				return ledgertest.Right
			})
			_, err := one.Move(t.Context(), addr(shared), "docker2/web", false, false)
			mustContain(t, err, "203.0.113.60 is withheld until it is known whether host docker2 has it", "nothing new is claimed")
			s.mustAnswer(shared)
			if m := one.host.Mappings()[addr(shared)]; m.Internal != addr("172.31.0.2") {
				t.Errorf("mapping %+v", m)
			}
			s.catchUp()
			one.join()
			s.catchUp()
			s.mustAnswer(shared, want)
			s.noDoubles()
			_, mapped := one.host.Mappings()[addr(shared)]
			if on := one.withheldWhy(shared); on != map[string]string{"docker1": "", "docker2": "it is not there"}[want] || mapped != (want == "docker1") {
				t.Errorf("docker1: %q, mapped %t", on, mapped)
			}
			for i, l := range s.hosts {
				if lines, err := l.Reconcile("a test"); len(lines) > 0 || err != nil {
					t.Errorf("docker%d: %q, %v", i+1, lines, err)
				}
			}
		})
	}
}

// TestHandOverFails makes each write of both hosts fail in turn. The address is
// then where it was, or has arrived.
func TestHandOverFails(t *testing.T) {
	length := 0
	for host := range 2 {
		for write := 1; ; write++ {
			s, one, two := twoContainers(t, "extip.dad", "off")
			failing, before := s.hosts[host], one.host.String()
			failing.host.FailAt = failing.host.Writes() + write
			_, err := one.Move(t.Context(), addr(shared), "docker2/web", false, false)
			s.catchUp()
			failed := failing.host.Writes() >= failing.host.FailAt
			failing.host.FailAt = 0
			if c, ok := one.store.Holder(addr(shared)); err != nil && ok && c.Host == "docker1" {
				if got := one.host.String(); got != before || host == 1 {
					t.Errorf("docker%d, write %d: %v: docker1\n%s\nwas\n%s", host+1, write, err, got, before)
				}
				s.mustAnswer(shared, "docker1")
			} else {
				two.reclaim() // half a minute later at most
				if _, err := two.Reconcile("a test"); err != nil {
					t.Error(err)
				}
				s.mustAnswer(shared, "docker2")
			}
			s.sound(t, fmt.Sprintf("docker%d, write %d", host+1, write))
			if !failed {
				break
			}
			length++
		}
	}
	t.Logf("%d writes failed in turn", length)
	if length < 10 {
		t.Errorf("the sweep is only %d writes long", length)
	}
}

// TestHandOverCrashes ends the program of either host before each write in turn, and
// starts it again. Then one of them has the address.
func TestHandOverCrashes(t *testing.T) {
	length := 0
	for host := range 2 {
		for write := 1; ; write++ {
			s, one, two := twoContainers(t, "extip.dad", "off")
			l := s.hosts[host]
			l.host.CrashAt = l.host.Writes() + write
			move := func() error {
				_, err := one.Move(context.WithoutCancel(t.Context()), addr(shared), "docker2/web", false, false)
				return err
			}
			crashed := crashes(t, func() error {
				err := move()
				two.catchUp()
				return err
			})
			l.host.CrashAt = 0
			l.restart()
			l.name([]string{ep1, ep2}[host], []string{"old", "web"}[host])
			s.catchUp()
			what := fmt.Sprintf("docker%d, crash before write %d", host+1, write)
			if at := s.answering(shared); len(at) != 1 || host == 1 && at[0] != "docker2" {
				t.Errorf("%s: answered for by %q", what, at)
			}
			s.sound(t, what)
			if !crashed {
				break // a crash after the last write
			}
			length++
			if at := s.answering(shared); len(at) == 1 && at[0] == "docker1" {
				if err := move(); err != nil {
					t.Errorf("%s: again: %v", what, err)
				}
				s.catchUp()
				s.mustAnswer(shared, "docker2")
			}
		}
	}
	t.Logf("%d crashes", length)
	if length < 10 {
		t.Errorf("the sweep is only %d crashes long", length)
	}
}

// sound fails unless ledger, records and machines agree, and nobody ever had what
// another host answered for.
func (s *site) sound(t *testing.T, what string) {
	t.Helper()
	if doubles := s.wire.Doubles(); len(doubles) > 0 {
		t.Errorf("%s: two hosts had the same address: %q", what, doubles)
	}
	for i, l := range s.hosts {
		lines, err := l.Check()
		lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, "is held by host") })
		if len(lines) > 0 || err != nil {
			t.Errorf("%s: docker%d differs: %q, %v", what, i+1, lines, err)
		}
		claims, err := l.store.Claims()
		if err != nil {
			t.Fatal(err)
		}
		for a, id := range claims {
			c, ok := l.store.Holder(a)
			if v := l.withheldWhy(a.String()); v == "" && (!ok || c.Host != l.member.name || c.Endpoint != id) {
				t.Errorf("%s: docker%d publishes %s for %s, which %+v has", what, i+1, a, id, c)
			}
		}
	}
}

// TestOfferToNewcomer: a container whose name the engine has not told yet is waited
// for.
func TestOfferToNewcomer(t *testing.T) {
	s := newSite(t, 2)
	one, two := s.hosts[0], s.hosts[1]
	if err := errors.Join(one.run(ep1, "172.31.0.2/16", "extip.address", shared), two.run(ep2, "172.31.0.3/16", "extip.address", "none")); err != nil {
		t.Fatal(err)
	}
	named := make(chan error)
	go func() {
		time.Sleep(2 * auditDelay)
		named <- two.withEndpoint(netID, ep2, func(_ *network, e *endpoint) error {
			rec := e.rec
			rec.Name = "newcomer"
			two.setRecord(e, rec)
			return nil
		})
	}()
	got, err := two.Offered(store.Offer{Address: addr(shared), From: "docker1", To: "docker2", Container: "newcomer"})
	if err != nil || got.Endpoint != ep2 {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := <-named; err != nil {
		t.Error(err)
	}
	_, err = two.Offered(store.Offer{Address: addr(shared), From: "docker1", To: "docker2", Container: "nobody"})
	mustContain(t, err, `it has no container "nobody"`)
}
