package hosttest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"

	"github.com/extip/extip/announce"
)

// Probe implements driver.Neighbours. Nobody has to be waited for.
func (h *Host) Probe(_ context.Context, parent string, addrs []netip.Addr, _ announce.Timing) (map[netip.Addr]net.HardwareAddr, error) {
	h.mu.Lock()
	wire, unplugged := h.wire, h.Unplugged[parent]
	owners := map[netip.Addr]net.HardwareAddr{}
	for _, a := range addrs {
		if unplugged {
			break
		}
		h.probed = append(h.probed, a.String())
		if mac, ok := h.Others[a]; ok {
			owners[a] = mac
		}
	}
	h.mu.Unlock()
	if unplugged {
		return nil, fmt.Errorf("no neighbours on %s", parent)
	}
	if wire != nil {
		maps.Copy(owners, wire.ask(h, parent, addrs))
	}
	return owners, nil
}

// Probed lists the addresses that were asked for since the last call.
func (h *Host) Probed() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	probed := h.probed
	h.probed = nil
	return probed
}

// Watched tells which addresses are listened to, with their parents.
func (h *Host) Watched() map[netip.Addr]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.watched)
}

// Watch implements driver.Neighbours.
func (h *Host) Watch(parent string, a netip.Addr) error {
	h.listen(parent, a, false)
	return nil
}

// Defend implements driver.Neighbours.
func (h *Host) Defend(parent string, a netip.Addr) error {
	h.listen(parent, a, true)
	return nil
}

func (h *Host) listen(parent string, a netip.Addr, hold bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watched[a] = parent
	if h.wire != nil {
		h.held[a] = hold
	}
}

// Unwatch implements driver.Neighbours.
func (h *Host) Unwatch(_ string, a netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watched, a)
	delete(h.held, a)
	delete(h.defended, a)
}

// Announce implements driver.Neighbours.
func (h *Host) Announce(parent string, a netip.Addr) error {
	h.mu.Lock()
	if on := h.aliases[a]; on != parent && on != "lo" {
		h.mu.Unlock()
		return fmt.Errorf("%s is announced on %s, where it isn't", a, parent)
	}
	h.announced = append(h.announced, fmt.Sprintf("%s on %s", a, parent))
	h.mu.Unlock()
	h.listen(parent, a, true)
	h.say("announce", parent, a)
	return nil
}

// Challenge implements driver.Neighbours.
func (h *Host) Challenge(parent string, a netip.Addr) error {
	h.say("challenge for", parent, a)
	return nil
}

func (h *Host) say(what, parent string, a netip.Addr) {
	h.mu.Lock()
	h.steps = append(h.steps, fmt.Sprintf("%s %s on %s", what, a, parent))
	wire := h.wire
	h.mu.Unlock()
	if wire != nil {
		wire.tell(h, parent, a)
	}
}
