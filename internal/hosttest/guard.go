package hosttest

import (
	"fmt"
	"maps"
	"slices"

	"github.com/extip/extip/nat"
)

// Guard is the machine's nat.Guard. From then on a container must not be there
// unguarded; String shows only where the guard and the links differ.
func (h *Host) Guard() nat.Guard {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guarding = true
	return guard{h}
}

// Guarded tells what a link may send: in the kernel, not as the guard was told.
func (h *Host) Guarded(link string) (nat.Port, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p, ok := h.guarded.ports[link]
	return p, ok
}

type guard struct{ h *Host }

// ports is what is guarded.
type ports struct {
	networks map[string]bool
	ports    map[string]nat.Port
}

func noPorts() ports { return ports{map[string]bool{}, map[string]nat.Port{}} }

func (p ports) add(g nat.Guarded) {
	for _, id := range g.Networks {
		p.networks[id] = true
	}
	for _, port := range g.Ports {
		p.ports[port.Link] = port
	}
}

func (p ports) remove(g nat.Guarded) {
	for _, id := range g.Networks {
		delete(p.networks, id)
	}
	for _, port := range g.Ports {
		delete(p.ports, port.Link)
	}
}

func (p ports) clone() ports { return ports{maps.Clone(p.networks), maps.Clone(p.ports)} }

func (g guard) Add(put nat.Guarded) error {
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	if err := g.h.write(fmt.Sprintf("guard %d networks, %d ports", len(put.Networks), len(put.Ports))); err != nil {
		return err
	}
	for _, p := range put.Ports {
		if err := p.Check(); err != nil {
			return err
		}
	}
	g.h.guardTold.add(put)
	g.h.guarded.add(put)
	return nil
}

func (g guard) Remove(drop nat.Guarded) error {
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	if err := g.h.write(fmt.Sprintf("unguard %d networks, %d ports", len(drop.Networks), len(drop.Ports))); err != nil {
		return err
	}
	g.h.guardTold.remove(drop)
	g.h.guarded.remove(drop)
	return nil
}

func (g guard) Sync(want nat.Guarded) ([]string, error) {
	g.h.mu.Lock()
	g.h.guardTold = noPorts()
	g.h.guardTold.add(want)
	g.h.mu.Unlock()
	return g.Repair()
}

func (g guard) Repair() ([]string, error) {
	lines, _ := g.Check()
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	if len(lines) > 0 {
		if err := g.h.write("repair the guard"); err != nil {
			return nil, err
		}
		g.h.guarded = g.h.guardTold.clone()
	}
	return lines, nil
}

func (g guard) Check() ([]string, error) {
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	if maps.Equal(g.h.guarded.networks, g.h.guardTold.networks) && maps.EqualFunc(g.h.guarded.ports, g.h.guardTold.ports, nat.Port.Same) {
		return nil, nil
	}
	return []string{"the guard differed"}, nil
}

// guardLines prints what is unguarded, or guarded in vain; mu is held.
func (h *Host) guardLines() (lines []string) {
	if !h.guarding {
		return nil
	}
	for name, l := range h.links {
		if _, ok := h.guarded.ports[name]; !ok && !l.IsBridge {
			lines = append(lines, "unguarded "+name)
		}
		if l.IsBridge && !h.guarded.networks[l.Owner] {
			lines = append(lines, "unguarded "+name)
		}
	}
	for name := range h.guarded.ports {
		if _, ok := h.links[name]; !ok {
			lines = append(lines, "guard of "+name+", which is gone")
		}
	}
	for id := range h.guarded.networks {
		if !slices.ContainsFunc(slices.Collect(maps.Values(h.rules.networks)), func(n nat.Network) bool { return n.ID == id[:min(len(id), 12)] }) {
			lines = append(lines, "guard of network "+id+", which is gone")
		}
	}
	return lines
}
