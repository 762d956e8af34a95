package driver

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	api "github.com/docker/go-plugins-helpers/network"

	"github.com/extip/extip/internal/hosttest"
)

// recorded is what the store holds, as text.
func (l *lab) recorded() string {
	l.t.Helper()
	claims, err := l.store.Claims()
	endpoints, err2 := l.store.Endpoints()
	networks, err3 := l.store.Networks()
	if err := errors.Join(err, err2, err3); err != nil {
		l.t.Fatal(err)
	}
	for i := range endpoints {
		endpoints[i].Created = endpoints[i].Created.Truncate(0)
	}
	return fmt.Sprintf("%v\n%v\n%v", claims, endpoints, networks)
}

// TestFailAtEveryStep makes each write of a container's life fail in turn.
// Setting up must leave the machine and the records as they were; tearing down
// must go on, keep on record what would not go, and end well when the plugin
// starts the next time.
func TestFailAtEveryStep(t *testing.T) {
	up := []struct {
		name string
		call func(*lab) error
	}{
		{"create network", func(l *lab) error {
			return l.CreateNetwork(createNetwork(netID, 31, "extip.parent", "br-ex", "extip.pool", "203.0.113.56"))
		}},
		{"create endpoint", func(l *lab) error {
			return l.endpoint(epID, "172.31.0.2/16", "extip.address", "203.0.113.60,203.0.113.61")
		}},
		{"join", func(l *lab) error {
			_, err := l.Join(&api.JoinRequest{NetworkID: netID, EndpointID: epID})
			return err
		}},
	}
	down := []struct {
		name string
		call func(*lab) error
	}{
		{"leave", func(l *lab) error { return l.Leave(&api.LeaveRequest{NetworkID: netID, EndpointID: epID}) }},
		{"delete endpoint", func(l *lab) error {
			return l.DeleteEndpoint(&api.DeleteEndpointRequest{NetworkID: netID, EndpointID: epID})
		}},
		{"delete network", func(l *lab) error { return l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID}) }},
	}
	length := 0
	for i, call := range up {
		for write := 1; ; write++ {
			l := newLab(t)
			for _, before := range up[:i] {
				if err := before.call(l); err != nil {
					t.Fatal(err)
				}
			}
			machine, records := l.host.String(), l.recorded()
			l.host.FailAt = l.host.Writes() + write
			err := call.call(l)
			if err == nil {
				break // beyond the last write
			}
			length++
			if !errors.Is(err, hosttest.ErrInjected) || !strings.Contains(err.Error(), ": ") {
				t.Errorf("%s, write %d: error %v doesn't name the step", call.name, write, err)
			}
			if got := l.host.String(); got != machine {
				t.Errorf("%s, write %d: machine\n%s\nwas\n%s", call.name, write, got, machine)
			}
			if got := l.recorded(); got != records {
				t.Errorf("%s, write %d: records\n%s\nwere\n%s", call.name, write, got, records)
			}
			// The engine may try again.
			l.host.FailAt = 0
			if err := call.call(l); err != nil {
				t.Errorf("%s after a failed write %d: %v", call.name, write, err)
			}
		}
	}
	for write := 1; ; write++ {
		l := newLab(t)
		for _, call := range up {
			if err := call.call(l); err != nil {
				t.Fatal(err)
			}
		}
		l.host.FailAt = l.host.Writes() + write
		var errs []error
		for _, call := range down {
			errs = append(errs, call.call(l))
		}
		if errors.Join(errs...) == nil {
			break
		}
		length++
		l.host.FailAt = 0
		l.restart()
		for _, call := range down {
			if err := call.call(l); err != nil {
				t.Errorf("write %d, once more: %v", write, err)
			}
		}
		l.clean()
	}
	t.Logf("%d writes failed in turn", length)
	if length < 15 {
		t.Errorf("the sweep is only %d writes long", length)
	}
}
