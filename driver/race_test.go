package driver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/docker/go-plugins-helpers/network"

	"github.com/extip/extip/store"
)

// TestEverythingAtOnce has operators move, attach and detach a few addresses
// among containers that start and stop, while others look. What they are refused
// is their bad luck; afterwards records, memory and kernel agree.
func TestEverythingAtOnce(t *testing.T) {
	const containers, rounds = 6, 60
	seed := uint64(time.Now().UnixNano())
	l := newLab(t)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.75")
	other := createNetwork("other", 30, "extip.parent", "eth0", "extip.pool", "203.0.113.56-203.0.113.75")
	if err := l.CreateNetwork(other); err != nil {
		t.Fatal(err)
	}
	id := func(i int) string { return fmt.Sprintf("%04d%04d", i, i) }
	start := func(i int) error {
		r := &api.CreateEndpointRequest{NetworkID: netID, EndpointID: id(i), Interface: &api.EndpointInterface{Address: fmt.Sprintf("172.31.0.%d/16", i+2)}}
		if i%2 == 1 {
			r.NetworkID, r.Interface.Address = "other", fmt.Sprintf("172.30.0.%d/16", i+2)
		}
		r.Options = map[string]any{"extip.reservation": []string{"", "web", "db"}[i%3]}
		if i%3 == 0 {
			delete(r.Options, "extip.reservation")
		}
		_, err := l.CreateEndpoint(r)
		if err == nil {
			_, err = l.Join(&api.JoinRequest{NetworkID: r.NetworkID, EndpointID: r.EndpointID})
		}
		return err
	}
	stop := func(i int) error {
		network := []string{netID, "other"}[i%2]
		return errors.Join(l.Leave(&api.LeaveRequest{NetworkID: network, EndpointID: id(i)}),
			l.DeleteEndpoint(&api.DeleteEndpointRequest{NetworkID: network, EndpointID: id(i)}))
	}
	for i := range containers {
		_ = start(i)
	}
	events, cancel := l.Events()
	var wg, watching sync.WaitGroup
	watching.Go(func() {
		for range events {
		}
	})
	for worker := range 8 {
		random := rand.New(rand.NewPCG(seed, uint64(worker)))
		wg.Go(func() {
			for range rounds {
				i, a := random.IntN(containers), netip.AddrFrom4([4]byte{203, 0, 113, byte(56 + random.IntN(12))})
				switch random.IntN(10) {
				case 0:
					if err := stop(i); err != nil {
						t.Errorf("stop: %v", err)
					}
					_ = start(i)
				case 1:
					if _, err := l.Reconcile("race"); err != nil {
						t.Errorf("reconcile: %v", err)
					}
				case 2:
					if _, err := l.Check(); err != nil {
						t.Errorf("check: %v", err)
					}
					l.Addresses()
					l.NetworkInfos()
				case 3, 4:
					_, _ = l.Attach(t.Context(), id(i), []netip.Addr{a}, false)
				case 5:
					_, _ = l.Detach(t.Context(), a, false)
				case 6:
					_, _ = l.Unreserve([]string{"web", "db"}[random.IntN(2)], false)
					_, _ = l.Reserve("web", []netip.Addr{a}, false)
				default:
					_, _ = l.Move(t.Context(), a, id(i), random.IntN(2) == 0, random.IntN(9) == 0)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	watching.Wait()
	l.whole()
	claims, err := l.store.Claims()
	if err != nil {
		t.Fatal(err)
	}
	recorded := map[string]store.Endpoint{}
	records, err := l.store.Endpoints()
	for _, e := range records {
		recorded[e.ID] = e
	}
	if err != nil {
		t.Fatal(err)
	}
	had := 0
	l.eachEndpoint(func(_ *network, e *endpoint) {
		if got, want := fmt.Sprint(recorded[e.id]), fmt.Sprint(e.rec); got != want && len(e.rec.Draining)+len(recorded[e.id].Draining) == 0 {
			t.Errorf("seed %d: on record\n%s\nin memory\n%s", seed, got, want)
		}
		for _, a := range e.rec.External {
			had++
			on := "br-ex"
			if e.network == "other" {
				on = "eth0"
			}
			for _, line := range []string{fmt.Sprintf("addr %s/32 on %s", a, on), fmt.Sprintf("nat %s <-> %s of %s", a, insideFor(e.rec, a), e.id)} {
				if !strings.Contains(l.host.String(), line) {
					t.Errorf("seed %d: no %q in\n%s", seed, line, l.host)
				}
			}
			if claims[a] != e.id {
				t.Errorf("seed %d: %s is claimed by %q, and %s has it", seed, a, claims[a], e.id)
			}
		}
	})
	if had != len(claims) || strings.Count(l.host.String(), "addr ") != had {
		t.Errorf("seed %d: %d addresses, %d claims\n%s", seed, had, len(claims), l.host)
	}
	for _, r := range l.reservedOnce() {
		t.Errorf("seed %d: %s", seed, r)
	}
	for i := range containers {
		if err := stop(i); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID}), l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: "other"})); err != nil {
		t.Error(err)
	}
	l.clean()
	if len(l.published)+len(l.drains) > 0 {
		t.Errorf("left in memory: %v, %v", l.published, l.drains)
	}
}

// TestOppositeMoves: two containers that exchange addresses don't wait for each
// other, on one network or two.
func TestOppositeMoves(t *testing.T) {
	l := operated(t)
	if err := l.CreateNetwork(createNetwork("other", 30, "extip.parent", "br-ex", "extip.dad", "off")); err != nil {
		t.Fatal(err)
	}
	_, err := l.CreateEndpoint(&api.CreateEndpointRequest{NetworkID: "other", EndpointID: ep3, Interface: &api.EndpointInterface{Address: "172.30.0.2/16"}})
	if err == nil {
		_, err = l.Join(&api.JoinRequest{NetworkID: "other", EndpointID: ep3})
	}
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for a, ids := range map[string][]string{"203.0.113.60": {ep1, ep2}, "203.0.113.70": {ep2, ep1}, "203.0.113.61": {ep3, ep2}} {
		wg.Go(func() {
			for i := range 200 {
				_, err := l.Move(t.Context(), addr(a), ids[i%2], false, false)
				// Whoever is not locked yet may lose an address to the other.
				if err != nil && !strings.Contains(err.Error(), "no longer") {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	l.whole()
}

// reservedOnce lists addresses that several reservations hold.
func (l *lab) reservedOnce() (twice []string) {
	list, err := l.Reservations()
	if err != nil {
		l.t.Fatal(err)
	}
	var all []netip.Addr
	for _, r := range list {
		for _, a := range r.Addresses {
			if slices.Contains(all, a) {
				twice = append(twice, fmt.Sprintf("%s is reserved twice: %+v", a, list))
			}
			all = append(all, a)
		}
	}
	return twice
}
