package hosttest

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/extip/extip/link"
)

// DefaultParent implements driver.Settings.
func (h *Host) DefaultParent() (string, error) {
	if h.Unplugged["eth0"] {
		return "br-ex", nil
	}
	return "eth0", nil
}

// Parent implements driver.Settings.
func (h *Host) Parent(name string) (link.ParentInfo, error) {
	mtu, ok := map[string]int{"eth0": 1500, "br-ex": 1450, "port0": 1450, "lo": 65536}[name]
	if !ok || h.Unplugged[name] {
		return link.ParentInfo{}, fmt.Errorf("interface %s: %w", name, link.ErrNoLink)
	}
	p := link.ParentInfo{MTU: mtu, Up: true}
	if name == "port0" {
		p.Master = "br-ex"
	}
	return p, nil
}

// EnableForwarding implements driver.Settings.
func (h *Host) EnableForwarding([]string, link.Families) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return nil, h.write("enable forwarding")
}

// SettleARP implements driver.Settings.
func (h *Host) SettleARP(string) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return nil, h.write("settle ARP")
}

// ARPTrouble implements driver.Settings.
func (h *Host) ARPTrouble(string, string) (string, error) { return "", nil }

// DefaultLinks implements driver.Settings.
func (h *Host) DefaultLinks() ([]string, error) { return []string{"eth0"}, nil }

// SyncUplinks implements driver.Settings: the machine has one uplink.
func (h *Host) SyncUplinks([]string) (map[string]link.Uplink, []string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return nil, nil, h.write("uplinks")
}

// Bar implements driver.Settings. It counts as a write if it changes something.
func (h *Host) Bar(prefixes []netip.Prefix) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	lines := h.unlike(prefixes)
	switch {
	case h.NoBarrier:
		return nil, link.ErrNoBarrier
	case len(lines) == 0:
		return nil, nil
	}
	if err := h.write("barrier"); err != nil {
		return nil, err
	}
	h.barred = slices.Clone(prefixes)
	return lines, nil
}

// CheckBar implements driver.Settings.
func (h *Host) CheckBar(prefixes []netip.Prefix) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.NoBarrier {
		return nil, link.ErrNoBarrier
	}
	return h.unlike(prefixes), nil
}

func (h *Host) unlike(prefixes []netip.Prefix) (lines []string) {
	for _, p := range prefixes {
		if !slices.Contains(h.barred, p) {
			lines = append(lines, "nothing barred "+p.String())
		}
	}
	for _, p := range h.barred {
		if !slices.Contains(prefixes, p) {
			lines = append(lines, p.String()+" was barred")
		}
	}
	return lines
}
