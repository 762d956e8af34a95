package driver

import (
	"time"

	api "github.com/docker/go-plugins-helpers/network"

	"github.com/extip/extip/store"
)

// A container on several networks has its default route on one of them only
// (which, the engine decides: protocol of libnetwork, Endpoint.Less). On the
// others its answers to clients beyond the bridge would leave by the wrong way,
// so there it has to see the bridge's address as its client: then they come
// back to the bridge, whatever its routes. The engine tells with
// ProgramExternalConnectivity that an endpoint has the default route, and with
// RevokeExternalConnectivity that it has it no longer, but the latter also
// before each Leave, and neither for an endpoint that never had it. So what it
// did not say is looked at a moment later.

// detourAfter is how long after a Join or a Revoke it is looked what followed;
// the engine needs milliseconds.
const detourAfter = time.Second

// A look is at an endpoint, at a time.
type look struct {
	endpoint string
	at       time.Time
}

// lookLater has detour look at an endpoint. All waits are equally long, so the
// looks are in order of time. One that is dropped costs a container on several
// networks its clients, until it is started again; the queue is long.
func (d *Driver) lookLater(e *endpoint) {
	select {
	case d.detours <- look{e.id, time.Now().Add(detourAfter)}:
	default:
		d.log.WithField("endpoint", short(e.id)).Warn("not looked whether it has its container's default route")
	}
}

// ProgramExternalConnectivity says that the endpoint now holds the container's
// default route.
func (d *Driver) ProgramExternalConnectivity(r *api.ProgramExternalConnectivityRequest) error {
	if err := d.settle(r.NetworkID, r.EndpointID); err != nil {
		return err
	}
	n, err := d.enter(r.NetworkID)
	if err != nil {
		return err
	}
	defer n.mu.RUnlock()
	e, err := d.lockLiving(r.EndpointID)
	if err != nil {
		return err
	}
	defer e.mu.Unlock()
	e.routed = true
	if e.rec.Detour {
		return d.setDetour(n, e, false)
	}
	if e.rec.State == store.Published {
		return nil
	}
	return d.publish(n, e)
}

// RevokeExternalConnectivity says that another network of the container holds
// its default route from now on, or that a Leave follows. The first must not
// cut off whoever is connected, and the second does its own work.
func (d *Driver) RevokeExternalConnectivity(r *api.RevokeExternalConnectivityRequest) error {
	return d.withEndpoint(r.NetworkID, r.EndpointID, func(_ *network, e *endpoint) error {
		e.routed = false
		d.lookLater(e)
		return nil
	})
}

// detour looks whether an endpoint is still without its container's default
// route, and if so lets the container see its bridge as the client.
func (d *Driver) detour(id string) {
	d.mu.Lock()
	e := d.endpoints[id]
	d.mu.Unlock()
	if e == nil {
		return
	}
	err := d.withEndpoint(e.network, e.id, func(n *network, e *endpoint) error {
		if e.routed || e.rec.Detour || e.rec.State != store.Published || len(e.rec.External) == 0 {
			return nil
		}
		return d.setDetour(n, e, true)
	})
	if err != nil {
		d.log.WithField("endpoint", short(id)).WithError(err).Error("its container's default route is elsewhere, and clients can't be answered")
	}
}

// setDetour records whether the default route is elsewhere, and has the mapping
// follow; e.mu is held. Connections that are open already keep what they began
// with.
func (d *Driver) setDetour(n *network, e *endpoint, elsewhere bool) error {
	rec := e.rec
	rec.Detour = elsewhere
	if err := d.store.PutEndpoint(rec); err != nil {
		return err
	}
	e.rec = rec
	if rec.Source == store.SourceClient {
		log := d.log.WithField("endpoint", short(e.id)).WithField("external", join(rec.External))
		if elsewhere {
			log.Warnf("another network has the container's default route: it sees the gateway of this one as its client (docker's --gw-priority decides which network has it)")
		} else {
			log.Info("the container's default route is here: it sees its clients")
		}
	}
	if rec.State != store.Published {
		return d.publish(n, e)
	}
	return d.kernel.NAT.Add(mappings(rec)...)
}
