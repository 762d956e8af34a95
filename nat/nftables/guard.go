package nftables

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/extip/extip/nat"
)

// bridging is the family of the guard's table.
var bridging = family{bridge: true}

// Guard is a nat.Guard, in a table of its own, whichever backend translates.
// Make one with NewGuard. Like a Backend it starts with Sync.
type Guard struct {
	mu sync.Mutex
	keeper
	networks map[string]bool
	ports    map[string]nat.Port // by link
}

var _ nat.Guard = (*Guard)(nil)

// NewGuard uses nf_tables of the calling thread's network namespace. It returns
// an error if the kernel can't filter on bridges, which it tries without leaving
// a trace.
func NewGuard() (*Guard, error) {
	k, err := dial()
	if err == nil {
		if err = k.try(bridging, guardTable(true)); err != nil {
			err = errors.Join(err, k.close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("nat: guard bridges with nftables: %w", err)
	}
	g := &Guard{networks: map[string]bool{}, ports: map[string]nat.Port{}}
	g.keeper = keeper{kernel: k, commit: k.commit, families: []family{bridging}, want: func(family) *table {
		return g.view(true, slices.Collect(maps.Keys(g.ports)))
	}}
	return g, nil
}

// Close lets go of the kernel. What was written stays.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.kernel.close()
}

// view is the part of the table that holds the links' elements and, if framed,
// its rules; nil if there is nothing to guard.
func (g *Guard) view(framed bool, links []string) *table {
	if !g.active() {
		return nil
	}
	t := guardTable(framed)
	for _, link := range links {
		if p, ok := g.ports[link]; ok {
			fillPort(t, p)
		}
	}
	return t
}

func (g *Guard) active() bool { return len(g.networks)+len(g.ports) > 0 }

// Add implements nat.Guard.
func (g *Guard) Add(put nat.Guarded) error {
	for _, p := range put.Ports {
		if err := p.Check(); err != nil {
			return err
		}
	}
	return g.change(func(e *edit) {
		for _, id := range put.Networks {
			e.networks[id] = true
		}
		for _, p := range put.Ports {
			e.ports[p.Link] = &p
		}
	})
}

// Remove implements nat.Guard.
func (g *Guard) Remove(drop nat.Guarded) error {
	return g.change(func(e *edit) {
		for _, id := range drop.Networks {
			e.networks[id] = false
		}
		for _, p := range drop.Ports {
			e.ports[p.Link] = nil
		}
	})
}

// An edit says of networks whether they are to be there, and of links what
// they may send, nil for those that go.
type edit struct {
	networks map[string]bool
	ports    map[string]*nat.Port
}

// apply makes an edit and returns the one that undoes it, which is empty if
// nothing has changed.
func (g *Guard) apply(e edit) (undo edit) {
	undo = edit{networks: map[string]bool{}, ports: map[string]*nat.Port{}}
	for id, there := range e.networks {
		if g.networks[id] == there {
			continue
		}
		undo.networks[id] = !there
		if there {
			g.networks[id] = true
		} else {
			delete(g.networks, id)
		}
	}
	for link, p := range e.ports {
		held, ok := g.ports[link]
		if ok == (p != nil) && (!ok || held.Same(*p)) {
			continue
		}
		undo.ports[link] = nil
		if ok {
			undo.ports[link] = &held
		}
		if p == nil {
			delete(g.ports, link)
		} else {
			g.ports[link] = *p
		}
	}
	return undo
}

// change makes a change in memory and in the kernel. After an error both are
// as before.
func (g *Guard) change(fill func(*edit)) error {
	e := edit{networks: map[string]bool{}, ports: map[string]*nat.Port{}}
	fill(&e)
	g.mu.Lock()
	defer g.mu.Unlock()
	links := slices.Collect(maps.Keys(e.ports))
	was := g.active()
	before := g.view(false, links)
	undo := g.apply(e)
	if len(undo.networks)+len(undo.ports) == 0 && g.agreed {
		return nil
	}
	var err error
	if g.agreed {
		bt := newBatch()
		bridging.diff(bt, before, g.view(!was, links)) // the rules come with the first of them
		err = g.send(bt)
	} else {
		_, err = g.converge(true)
	}
	if err != nil {
		g.apply(undo)
		return fmt.Errorf("nat: guard %q: %w", links, err)
	}
	return nil
}

// Sync implements nat.Guard. Ports that can't be guarded are left out, so that
// what they send is dropped, and reported as errors.
func (g *Guard) Sync(want nat.Guarded) (repaired []string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.networks)
	clear(g.ports)
	for _, id := range want.Networks {
		g.networks[id] = true
	}
	var errs []error
	for _, p := range want.Ports {
		if err := p.Check(); err != nil {
			errs = append(errs, err)
			continue
		}
		g.ports[p.Link] = p
	}
	g.agreed = false
	if repaired, err = g.converge(true); err != nil {
		errs = append(errs, fmt.Errorf("nat: guard: %w", err))
	}
	return repaired, errors.Join(errs...)
}

// Repair implements nat.Guard.
func (g *Guard) Repair() (repaired []string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if repaired, err = g.converge(true); err != nil {
		err = fmt.Errorf("nat: guard: %w", err)
	}
	return repaired, err
}

// Check implements nat.Guard.
func (g *Guard) Check() (differences []string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if differences, err = g.converge(false); err != nil {
		err = fmt.Errorf("nat: check the guard: %w", err)
	}
	return differences, err
}
