package driver

import (
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
)

// received is what comes until the network with that id is gone, as "kind
// address endpoint".
func received(t *testing.T, events <-chan Event, until string) (lines []string) {
	t.Helper()
	for {
		select {
		case e := <-events:
			if e.Time.IsZero() {
				t.Errorf("%+v has no time", e)
			}
			line := e.Kind
			if e.Address.IsValid() {
				line += " " + e.Address.String()
			}
			lines = append(lines, strings.TrimSpace(line+" "+e.Endpoint))
			if e.Kind == EventNetworkRemoved && e.Network == until {
				return lines
			}
		case <-time.After(time.Minute):
			t.Fatalf("no more after %q", lines)
		}
	}
}

func TestEvents(t *testing.T) {
	l := newLab(t)
	events, cancel := l.Events()
	late, cancelLate := l.Events()
	cancelLate()
	cancelLate()
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56", "extip.conflict", "yield")
	if err := errors.Join(l.run(ep1, "172.31.0.2/16"), l.run(ep2, "172.31.0.3/16", "extip.address", "none")); err != nil {
		t.Fatal(err)
	}
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	must(l.Attach(t.Context(), ep1, addrs("203.0.113.60"), false))
	must(l.Move(t.Context(), a56, ep2, true, false))
	must(l.Detach(t.Context(), addr("203.0.113.60"), false))
	must(l.Reserve("web", addrs("203.0.113.99"), false))
	must(l.Unreserve("web", false))
	l.host.DropAlias(a56)
	must(l.Reconcile("test"))
	l.host.Others = map[netip.Addr]net.HardwareAddr{a56: stranger}
	l.Conflict(announce.Conflict{Parent: "br-ex", Address: a56, MAC: stranger})
	l.host.Others = nil
	l.releaseWithheld(t.Context())
	must(nil, errors.Join(l.rm(ep1), l.rm(ep2), l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID})))
	want := []string{
		"network-created",
		"claimed 203.0.113.56 aaaa1111", "published 203.0.113.56 aaaa1111",
		"claimed 203.0.113.60 aaaa1111", "published 203.0.113.60 aaaa1111",
		"moved 203.0.113.56 aaaa2222",
		"withdrawn 203.0.113.60 aaaa1111", "released 203.0.113.60 aaaa1111",
		"reserved 203.0.113.99", "unreserved 203.0.113.99",
		"drained 203.0.113.56 aaaa1111", "repaired", "reconciled",
		"conflict 203.0.113.56 aaaa2222", "withheld 203.0.113.56 aaaa2222", "published 203.0.113.56 aaaa2222",
		"withdrawn 203.0.113.56 aaaa2222", "released 203.0.113.56 aaaa2222",
		"network-removed",
	}
	if diff := cmp.Diff(want, received(t, events, netID)); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	cancel()
	for _, ch := range []<-chan Event{events, late} {
		select {
		case e, open := <-ch:
			if open {
				t.Errorf("after the end: %+v", e)
			}
		case <-time.After(time.Minute):
			t.Error("not closed")
		}
	}
}

// TestSlowSubscriber loses what he is too slow for, and is told how much that is;
// nobody waits for him.
func TestSlowSubscriber(t *testing.T) {
	var ev events
	slow, cancel := ev.subscribe()
	defer cancel()
	const sent = 5 * maxBacklog
	for i := range sent {
		ev.emit(Event{Kind: EventRepaired, Text: fmt.Sprint(i)})
	}
	got, lost := 0, 0
	for got+lost < sent {
		e := <-slow
		if e.Kind == EventLost {
			n := 0
			if _, err := fmt.Sscanf(e.Text, "%d events were lost", &n); err != nil {
				t.Fatal(e.Text)
			}
			lost += n
			continue
		}
		if e.Text != fmt.Sprint(got+lost) {
			t.Errorf("%q came after %d others and %d lost ones", e.Text, got, lost)
		}
		got++
	}
	if got < maxBacklog || lost < maxBacklog {
		t.Errorf("%d came and %d were lost", got, lost)
	}
	ev.emit(Event{Kind: EventDrained})
	if e := <-slow; e.Kind != EventDrained {
		t.Errorf("then came %+v", e)
	}
}

// TestCheck: what a check finds is what a reconciliation mends, and it is still
// there after the check.
func TestCheck(t *testing.T) {
	for name, damage := range map[string]func(*lab){
		"rules":   func(l *lab) { l.host.Flush() },
		"alias":   func(l *lab) { l.host.DropAlias(addr("203.0.113.60")) },
		"bridge":  func(l *lab) { l.host.DropLink(l.networks[netID].rec.Bridge) },
		"a link":  func(l *lab) { l.host.DropLink("xip" + ep1) },
		"a stray": func(l *lab) { l.store.DeleteEndpoints(ep2); l.forgetEndpoint(l.endpoints[ep2]) },
	} {
		t.Run(name, func(t *testing.T) {
			l := operated(t)
			l.whole()
			damage(l)
			machine, records, writes := l.host.String(), l.recorded(), l.host.Writes()
			found, err := l.Check()
			if err != nil || len(found) == 0 {
				t.Errorf("check: %q, %v", found, err)
			}
			if l.host.String() != machine || l.recorded() != records || l.host.Writes() != writes {
				t.Errorf("the check leaves\n%s\n%s", l.host, l.recorded())
			}
			mended, err := l.Reconcile("test")
			if !slices.Equal(found, mended) && name != "a link" || err != nil {
				t.Errorf("found %q, mended %q, %v", found, mended, err)
			}
			l.whole()
		})
	}
}
