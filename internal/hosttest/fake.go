// Package hosttest is a host for tests: a small machine in memory that holds
// links, addresses and mappings, refuses orders that would be wrong on a real
// one, fails where it is told to, and prints itself.
package hosttest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
)

// ErrInjected is what a write fails with that was told to.
var ErrInjected = errors.New("injected failure")

// Host is the machine. Its zero value is not usable; see New.
type Host struct {
	// FailAt makes that write fail, counted from 1; 0 fails none.
	FailAt int
	// Own are addresses that the machine had before.
	Own []netip.Addr
	// Routers are the next hops of its routes.
	Routers []netip.Addr

	mu        sync.Mutex
	writes    int
	links     map[string]string
	ports     map[string]string // veth → bridge
	aliases   map[netip.Addr]string
	networks  map[string]nat.Network
	mappings  map[netip.Addr]nat.Mapping
	announced []string
	forgotten []string
}

// New returns a machine with the interface eth0, which has the default route,
// and br-ex.
func New() *Host {
	return &Host{
		links:   map[string]string{},
		ports:   map[string]string{},
		aliases: map[netip.Addr]string{}, networks: map[string]nat.Network{}, mappings: map[netip.Addr]nat.Mapping{},
	}
}

// Writes is how many writes there have been.
func (h *Host) Writes() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.writes
}

// Announced lists the announcements so far.
func (h *Host) Announced() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.announced)
}

// Forgotten lists the addresses whose flows were forgotten, in order.
func (h *Host) Forgotten() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.forgotten)
}

// write counts a write and says whether it fails.
func (h *Host) write(what string) error {
	h.writes++
	if h.writes == h.FailAt {
		return fmt.Errorf("%s: %w", what, ErrInjected)
	}
	return nil
}

// String prints the machine as the tools of a real one would.
func (h *Host) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var lines []string
	for name, text := range h.links {
		lines = append(lines, "link "+name+" "+text)
	}
	for a, parent := range h.aliases {
		lines = append(lines, fmt.Sprintf("addr %s/32 on %s", a, parent))
	}
	for _, n := range h.networks {
		lines = append(lines, fmt.Sprintf("nat network %s: %s %v by %s%s", n.ID, n.Bridge, n.Subnets, n.Parent, flag(n.Internal, " internal")))
	}
	for _, m := range h.mappings {
		lines = append(lines, fmt.Sprintf("nat %s <-> %s of %s%s%s", m.External, m.Internal, m.Endpoint, flag(m.Gateway, " gateway"), flag(m.Egress, " egress")))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func flag(set bool, text string) string {
	if set {
		return text
	}
	return ""
}

// EnsureBridge implements driver.Links.
func (h *Host) EnsureBridge(b link.Bridge) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.write("bridge " + b.Name); err != nil {
		return err
	}
	if text, ok := h.links[b.Name]; ok && !strings.HasPrefix(text, link.Mark(b.Owner)) {
		return link.ErrNotOurs
	}
	if !slices.ContainsFunc(h.networkList(), func(n nat.Network) bool { return n.Bridge == b.Name }) {
		return fmt.Errorf("bridge %s comes before its rules: it would forward what it must not", b.Name)
	}
	h.links[b.Name] = fmt.Sprintf("%s mtu %d %v", link.Mark(b.Owner), b.MTU, b.Addresses)
	return nil
}

// RemoveBridge implements driver.Links.
func (h *Host) RemoveBridge(b link.Bridge) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.write("remove bridge " + b.Name); err != nil {
		return err
	}
	for port, bridge := range h.ports {
		if bridge == b.Name {
			return fmt.Errorf("bridge %s still has the port %s", b.Name, port)
		}
	}
	if strings.HasPrefix(h.links[b.Name], link.Mark(b.Owner)) {
		delete(h.links, b.Name)
	}
	return nil
}

// EnsureVeth implements driver.Links.
func (h *Host) EnsureVeth(v link.Veth) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.write("veth " + v.Host); err != nil {
		return err
	}
	if _, ok := h.links[v.Bridge]; !ok {
		return fmt.Errorf("no bridge %s", v.Bridge)
	}
	h.links[v.Host] = fmt.Sprintf("%s mtu %d peer %s %s on %s%s", link.Mark(v.Owner), v.MTU, v.Peer, v.MAC, v.Bridge, flag(v.Isolated, " isolated"))
	h.ports[v.Host] = v.Bridge
	return nil
}

// RemoveVeth implements driver.Links.
func (h *Host) RemoveVeth(v link.Veth) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.write("remove veth " + v.Host); err != nil {
		return err
	}
	delete(h.links, v.Host)
	delete(h.ports, v.Host)
	return nil
}

// EnsureAlias implements driver.Addresses.
func (h *Host) EnsureAlias(parent string, a netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.write("alias " + a.String()); err != nil {
		return err
	}
	if _, ok := h.mappings[a]; !ok {
		return fmt.Errorf("alias %s comes before its mapping: the host would answer on it", a)
	}
	if slices.Contains(h.Own, a) {
		return link.ErrNotOurs
	}
	h.aliases[a] = parent
	return nil
}

// RemoveAlias implements driver.Addresses.
func (h *Host) RemoveAlias(parent string, a netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.write("remove alias " + a.String()); err != nil {
		return err
	}
	if h.aliases[a] == parent {
		delete(h.aliases, a)
	}
	return nil
}

// Unusable implements driver.Addresses.
func (h *Host) Unusable(_ string, a netip.Addr) (string, error) {
	if slices.Contains(h.Own, a) {
		return "is this host's own", nil
	}
	return "", nil
}

// Gateways implements driver.Addresses.
func (h *Host) Gateways() ([]netip.Addr, error) { return h.Routers, nil }

// Forget implements driver.Addresses.
func (h *Host) Forget(addrs ...netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.write(fmt.Sprint("forget ", addrs)); err != nil {
		return err
	}
	for _, a := range addrs {
		h.forgotten = append(h.forgotten, a.String())
	}
	return nil
}

// DefaultParent implements driver.Settings.
func (h *Host) DefaultParent() (string, error) { return "eth0", nil }

// MTU implements driver.Settings.
func (h *Host) MTU(name string) (int, error) {
	switch name {
	case "eth0":
		return 1500, nil
	case "br-ex":
		return 1450, nil
	default:
		return 0, fmt.Errorf("no interface %s", name)
	}
}

// EnableForwarding implements driver.Settings.
func (h *Host) EnableForwarding() (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return false, h.write("enable forwarding")
}

// Announce implements driver.Announcer.
func (h *Host) Announce(parent string, a netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.aliases[a] != parent {
		return fmt.Errorf("%s is announced on %s, where it isn't", a, parent)
	}
	h.announced = append(h.announced, fmt.Sprintf("%s on %s", a, parent))
	return nil
}

func (h *Host) networkList() []nat.Network {
	var list []nat.Network
	for _, n := range h.networks {
		list = append(list, n)
	}
	return list
}
