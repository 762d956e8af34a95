package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	api "github.com/docker/go-plugins-helpers/network"

	"github.com/extip/extip/link"
)

// Engine is asked, now and then and outside of any of its calls, what it has.
// An error means that it can't be asked now, and is no news.
type Engine interface {
	// Networks are the ids of the engine's networks, of all drivers.
	Networks(context.Context) ([]string, error)
	// Endpoints are those of a network that containers have, with the
	// containers' names.
	Endpoints(ctx context.Context, network string) (map[string]string, error)
}

const (
	// auditInterval is between two audits without a reason.
	auditInterval = time.Minute
	// auditDelay is how long after a Join its container's name is asked for;
	// auditRest is how long there is at least between two audits.
	auditDelay = 300 * time.Millisecond
	auditRest  = 2 * time.Second
	// auditGrace is how long the engine must not know of something before it
	// is removed: what it is about to make is not in its lists yet.
	auditGrace = 45 * time.Second
)

// An auditor compares the records with what the engine has.
type auditor struct {
	*Driver
	engine Engine
	// missing is since when the engine didn't know an id.
	missing map[string]time.Time
}

// Audit compares the records with the engine's, soon after each Join and every
// minute, until ctx ends. It learns the containers' names for messages, and
// removes what the engine has forgotten and nobody uses.
func (d *Driver) Audit(ctx context.Context, engine Engine) error {
	a := &auditor{Driver: d, engine: engine, missing: map[string]time.Time{}}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.joined:
			if !wait(ctx, auditDelay) {
				return nil
			}
		case <-time.After(auditInterval):
		}
		if err := a.run(ctx); err != nil {
			d.log.WithError(err).Debug("no audit")
		}
		if !wait(ctx, auditRest) {
			return nil
		}
	}
}

func (a *auditor) run(ctx context.Context) error {
	known, err := a.engine.Networks(ctx)
	if err != nil {
		return err
	}
	networks := a.networkRecords()
	ours := func(id string) bool { return slices.Contains(known, id) }
	trusted := false
	for _, n := range networks {
		trusted = trusted || ours(n.ID)
	}
	if !trusted {
		// Another engine's socket, perhaps: it must not have our
		// networks removed.
		return errors.New("the engine has none of the networks")
	}
	seen := map[string]time.Time{}
	for _, n := range networks {
		if !ours(n.ID) {
			if a.stays(seen, n.ID) && len(a.endpointsOf(n.ID)) == 0 {
				a.log.WithField("network", short(n.ID)).Warn("removed: the engine doesn't have it")
				err = errors.Join(err, a.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: n.ID}))
			}
			continue
		}
		names, nerr := a.engine.Endpoints(ctx, n.ID)
		if nerr != nil {
			err = errors.Join(err, nerr)
			continue
		}
		for _, e := range a.endpointsOf(n.ID) {
			err = errors.Join(err, a.endpoint(seen, e, names))
		}
	}
	a.missing = seen
	return err
}

// stays tells whether an id has been missing for long, and remembers it.
func (a *auditor) stays(seen map[string]time.Time, id string) bool {
	since, ok := a.missing[id]
	if !ok {
		since = time.Now()
	}
	seen[id] = since
	return time.Since(since) >= auditGrace
}

// endpoint compares one endpoint with those that containers have.
func (a *auditor) endpoint(seen map[string]time.Time, e *endpoint, names map[string]string) error {
	n, err := a.enter(e.network)
	if err != nil {
		return nil // gone in the meantime
	}
	defer n.mu.RUnlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.known {
		return nil
	}
	if name, ok := names[e.id]; ok {
		return a.rename(e, name)
	}
	// With its end in a container's namespace it is in use, whoever knows.
	_, peer := link.VethNames(e.id)
	here, err := a.kernel.HasLink(peer)
	if err != nil || !here || !a.stays(seen, e.id) || time.Since(e.changed) < auditGrace {
		return err
	}
	a.log.WithField("endpoint", short(e.id)).Warn("removed: no container has it")
	return a.removeEndpoint(n, e)
}

// rename records a container's name; e.mu is held.
func (a *auditor) rename(e *endpoint, name string) error {
	if e.rec.Name == name {
		return nil
	}
	rec := e.rec
	rec.Name = name
	if err := a.store.PutEndpoint(rec); err != nil {
		return fmt.Errorf("name of endpoint %s: %w", short(e.id), err)
	}
	e.rec = rec
	return nil
}
