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
)

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
