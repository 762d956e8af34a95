package driver

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	api "github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"
)

// Guard is an api.Driver around another: it logs each call in one line,
// answers a panic with an error, refuses requests without their ids, and knows
// when the last call has ended. Without it a panic would close the connection,
// and the engine would repeat the call for 15 seconds with an empty body.
type Guard struct {
	next     api.Driver
	log      logrus.FieldLogger
	observer Observer
	calls    sync.WaitGroup
}

// NewGuard returns a Guard around next.
func NewGuard(next api.Driver, log logrus.FieldLogger) *Guard {
	return &Guard{next: next, log: log, observer: unobserved{}}
}

// Wait returns when no call is under way, or ctx ends. No new ones must come.
func (g *Guard) Wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		g.calls.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ids are those that a request must have.
type ids []struct{ name, value string }

func networkOf(id string) ids { return ids{{"network", id}} }

func endpointOf(network, endpoint string) ids {
	return ids{{"network", network}, {"endpoint", endpoint}}
}

// nothing is the answer of calls that have none.
type nothing struct{}

// ask makes one call of the driver.
func ask[T any](g *Guard, method string, of ids, fn func() (T, error)) (answer T, err error) {
	g.calls.Add(1)
	defer g.calls.Done()
	start := time.Now()
	log := g.log.WithField("call", method)
	for _, id := range of {
		log = log.WithField(id.name, short(id.value))
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: internal error: %v", method, p)
			log = log.WithField("stack", string(debug.Stack()))
		}
		took := time.Since(start)
		g.observer.Call(method, took, err)
		log = log.WithField("ms", float64(took.Microseconds())/1000)
		if err != nil {
			log.WithError(err).Error("refused")
			return
		}
		log.Info("done")
	}()
	for _, id := range of {
		if id.value == "" {
			return answer, fmt.Errorf("%s: the request names no %s", method, id.name)
		}
	}
	return fn()
}

// tell is ask for a call without an answer.
func tell(g *Guard, method string, of ids, fn func() error) error {
	_, err := ask(g, method, of, func() (nothing, error) { return nothing{}, fn() })
	return err
}

// GetCapabilities implements api.Driver.
func (g *Guard) GetCapabilities() (*api.CapabilitiesResponse, error) {
	return ask(g, "GetCapabilities", nil, func() (*api.CapabilitiesResponse, error) { return g.next.GetCapabilities() })
}

// CreateNetwork implements api.Driver.
func (g *Guard) CreateNetwork(r *api.CreateNetworkRequest) error {
	return tell(g, "CreateNetwork", networkOf(r.NetworkID), func() error { return g.next.CreateNetwork(r) })
}

// AllocateNetwork implements api.Driver.
func (g *Guard) AllocateNetwork(r *api.AllocateNetworkRequest) (*api.AllocateNetworkResponse, error) {
	return ask(g, "AllocateNetwork", networkOf(r.NetworkID), func() (*api.AllocateNetworkResponse, error) { return g.next.AllocateNetwork(r) })
}

// DeleteNetwork implements api.Driver.
func (g *Guard) DeleteNetwork(r *api.DeleteNetworkRequest) error {
	return tell(g, "DeleteNetwork", networkOf(r.NetworkID), func() error { return g.next.DeleteNetwork(r) })
}

// FreeNetwork implements api.Driver.
func (g *Guard) FreeNetwork(r *api.FreeNetworkRequest) error {
	return tell(g, "FreeNetwork", networkOf(r.NetworkID), func() error { return g.next.FreeNetwork(r) })
}

// CreateEndpoint implements api.Driver.
func (g *Guard) CreateEndpoint(r *api.CreateEndpointRequest) (*api.CreateEndpointResponse, error) {
	return ask(g, "CreateEndpoint", endpointOf(r.NetworkID, r.EndpointID), func() (*api.CreateEndpointResponse, error) { return g.next.CreateEndpoint(r) })
}

// DeleteEndpoint implements api.Driver.
func (g *Guard) DeleteEndpoint(r *api.DeleteEndpointRequest) error {
	return tell(g, "DeleteEndpoint", endpointOf(r.NetworkID, r.EndpointID), func() error { return g.next.DeleteEndpoint(r) })
}

// EndpointInfo implements api.Driver.
func (g *Guard) EndpointInfo(r *api.InfoRequest) (*api.InfoResponse, error) {
	return ask(g, "EndpointInfo", endpointOf(r.NetworkID, r.EndpointID), func() (*api.InfoResponse, error) { return g.next.EndpointInfo(r) })
}

// Join implements api.Driver.
func (g *Guard) Join(r *api.JoinRequest) (*api.JoinResponse, error) {
	return ask(g, "Join", endpointOf(r.NetworkID, r.EndpointID), func() (*api.JoinResponse, error) { return g.next.Join(r) })
}

// Leave implements api.Driver.
func (g *Guard) Leave(r *api.LeaveRequest) error {
	return tell(g, "Leave", endpointOf(r.NetworkID, r.EndpointID), func() error { return g.next.Leave(r) })
}

// DiscoverNew implements api.Driver.
func (g *Guard) DiscoverNew(r *api.DiscoveryNotification) error {
	return tell(g, "DiscoverNew", nil, func() error { return g.next.DiscoverNew(r) })
}

// DiscoverDelete implements api.Driver.
func (g *Guard) DiscoverDelete(r *api.DiscoveryNotification) error {
	return tell(g, "DiscoverDelete", nil, func() error { return g.next.DiscoverDelete(r) })
}

// ProgramExternalConnectivity implements api.Driver.
func (g *Guard) ProgramExternalConnectivity(r *api.ProgramExternalConnectivityRequest) error {
	return tell(g, "ProgramExternalConnectivity", endpointOf(r.NetworkID, r.EndpointID), func() error { return g.next.ProgramExternalConnectivity(r) })
}

// RevokeExternalConnectivity implements api.Driver.
func (g *Guard) RevokeExternalConnectivity(r *api.RevokeExternalConnectivityRequest) error {
	return tell(g, "RevokeExternalConnectivity", endpointOf(r.NetworkID, r.EndpointID), func() error { return g.next.RevokeExternalConnectivity(r) })
}
