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
	defer h.mu.Unlock()
	if h.Unplugged[parent] {
		return nil, fmt.Errorf("no neighbours on %s", parent)
	}
	owners := map[netip.Addr]net.HardwareAddr{}
	for _, a := range addrs {
		h.probed = append(h.probed, a.String())
		if mac, ok := h.Others[a]; ok {
			owners[a] = mac
		}
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
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watched[a] = parent
	return nil
}

// Defend implements driver.Neighbours.
func (h *Host) Defend(parent string, a netip.Addr) error { return h.Watch(parent, a) }

// Unwatch implements driver.Neighbours.
func (h *Host) Unwatch(_ string, a netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watched, a)
}

// Announce implements driver.Neighbours.
func (h *Host) Announce(parent string, a netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if on := h.aliases[a]; on != parent && on != "lo" {
		return fmt.Errorf("%s is announced on %s, where it isn't", a, parent)
	}
	h.announced = append(h.announced, fmt.Sprintf("%s on %s", a, parent))
	h.watched[a] = parent
	return nil
}
