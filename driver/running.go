package driver

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/extip/extip/store"
)

// minPrefix is how much of an endpoint's id must be given, in characters.
const minPrefix = 4

// find is the endpoint with an id that begins so.
func (d *Driver) find(prefix string) (*endpoint, error) {
	if len(prefix) < minPrefix {
		return nil, fmt.Errorf("endpoint %q: give at least %d characters of its id", prefix, minPrefix)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.endpoints[prefix]; e != nil {
		return e, nil
	}
	var found []*endpoint
	for id, e := range d.endpoints {
		if strings.HasPrefix(id, prefix) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("unknown endpoint %s", prefix)
	case 1:
		return found[0], nil
	}
	var ids []string
	for _, e := range found {
		ids = append(ids, short(e.id))
	}
	slices.Sort(ids)
	return nil, fmt.Errorf("endpoint %s: several begin so: %s", prefix, strings.Join(ids, ", "))
}

// ownerOf is the endpoint that has an address published.
func (d *Driver) ownerOf(a netip.Addr) (*endpoint, error) {
	if e := d.publisher(a); e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("%s is no external address of a running container", a)
}

// checkRunning says why an endpoint can't be changed now; e.mu is held.
func checkRunning(e *endpoint) error {
	if !e.known {
		return fmt.Errorf("unknown endpoint %s", short(e.id))
	}
	if e.rec.State != store.Published {
		return fmt.Errorf("%s is not running: it is %s", title(e.rec), e.rec.State)
	}
	return nil
}

// withRunning calls fn with a running endpoint, locked.
func (d *Driver) withRunning(e *endpoint, fn func(*network, *endpoint) error) error {
	n, err := d.enter(e.network)
	if err != nil {
		return err
	}
	defer n.mu.RUnlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := checkRunning(e); err != nil {
		return err
	}
	return fn(n, e)
}

// withBoth calls fn with two running endpoints and their networks, locked, each
// kind in the order of the ids: so nobody waits for who waits for him.
func (d *Driver) withBoth(a, b *endpoint, fn func(na, nb *network) error) error {
	networks := map[string]*network{}
	ids := []string{a.network, b.network}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		n, err := d.enter(id)
		if err != nil {
			return err
		}
		defer n.mu.RUnlock()
		networks[id] = n
	}
	first, second := a, b
	if b.id < a.id {
		first, second = b, a
	}
	for _, e := range []*endpoint{first, second} {
		e.mu.Lock()
		defer e.mu.Unlock()
		if err := checkRunning(e); err != nil {
			return err
		}
	}
	return fn(networks[a.network], networks[b.network])
}

// title names a container in a message.
func title(e store.Endpoint) string {
	if e.Name != "" {
		return fmt.Sprintf("container %q (endpoint %s)", e.Name, short(e.ID))
	}
	return "endpoint " + short(e.ID)
}
