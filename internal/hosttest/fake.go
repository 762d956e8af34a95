// Package hosttest is a host for tests: a small machine in memory that holds
// links, addresses and mappings, refuses orders that would be wrong on a real
// one, fails where it is told to, and prints itself.
package hosttest

import (
	"errors"
	"fmt"
	"maps"
	"net"
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
	// CrashAt makes that write panic with Crash, as a program ends that is
	// killed before it.
	CrashAt int
	// Own are addresses that the machine had before.
	Own []netip.Addr
	// Routers are the next hops of its routes.
	Routers []netip.Addr
	// Others are addresses that other machines on its segments have.
	Others map[netip.Addr]net.HardwareAddr
	// Unplugged are interfaces that it has lost.
	Unplugged map[string]bool

	// NoBarrier: its kernel can't keep one.
	NoBarrier bool

	mu        sync.Mutex
	writes    int
	barred    []netip.Prefix
	links     map[string]link.Found
	texts     map[string]string // what else there is to say of a link
	peers     map[string]string // ends of veth pairs that are on the host
	aliases   map[netip.Addr]string
	rules     rules // in the kernel
	told      rules // in the backend's memory
	announced []string
	probed    []string
	watched   map[netip.Addr]string
	forgotten []string
	// guarding: there is a guard; guarded is what it holds in the kernel,
	// guardTold what it was told.
	guarding           bool
	guarded, guardTold ports
	flows              map[flow]int
	// counters is what was counted of addresses; uncounted is why nobody can
	// read it.
	counters  map[netip.Addr]nat.Counters
	uncounted error
	steps     []string
	plug
}

// New returns a machine with the interface eth0, which has the default route,
// and br-ex.
func New() *Host {
	none := rules{networks: map[string]nat.Network{}, mappings: map[netip.Addr]nat.Mapping{}}
	return &Host{
		links: map[string]link.Found{}, texts: map[string]string{}, peers: map[string]string{}, aliases: map[netip.Addr]string{}, watched: map[netip.Addr]string{},
		flows: map[flow]int{}, rules: none, told: none.clone(), guarded: noPorts(), guardTold: noPorts(), counters: map[netip.Addr]nat.Counters{},
	}
}

// Flush takes all rules away behind the backend's back.
func (h *Host) Flush() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.rules.networks)
	clear(h.rules.mappings)
	h.guarded = noPorts()
}

// DropAlias takes an alias away behind the driver's back.
func (h *Host) DropAlias(a netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.aliases, a)
}

// DropLink takes a link away behind the driver's back; a bridge's ports stay,
// without a bridge.
func (h *Host) DropLink(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.links, name)
	delete(h.texts, name)
	for port, f := range h.links {
		if f.Bridge == name {
			f.Bridge = ""
			h.links[port] = f
		}
	}
}

// Reboot forgets all that a kernel does.
func (h *Host) Reboot() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.barred = nil
	clear(h.links)
	clear(h.texts)
	clear(h.aliases)
	clear(h.flows)
	clear(h.rules.networks)
	clear(h.rules.mappings)
	h.guarded = noPorts()
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

// Crash is what a write panics with that was told to.
const Crash = "crash"

// write counts a write and says whether it fails.
func (h *Host) write(what string) error {
	h.writes++
	if h.writes == h.CrashAt {
		panic(Crash)
	}
	if h.writes == h.FailAt {
		return fmt.Errorf("%s: %w", what, ErrInjected)
	}
	h.steps = append(h.steps, what)
	return nil
}

// Intercept counts a write that is made elsewhere, and says whether it fails:
// for a store.Store, so that its writes fail and crash like the kernel's.
func (h *Host) Intercept(what string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.write(what)
}

// String prints the machine as the tools of a real one would.
func (h *Host) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var lines []string
	for name, f := range h.links {
		lines = append(lines, fmt.Sprintf("link %s of %s mtu %d%s", name, f.Owner, f.MTU, h.texts[name]))
		if !f.IsBridge {
			lines[len(lines)-1] += " on " + f.Bridge
		}
	}
	for a, parent := range h.aliases {
		lines = append(lines, fmt.Sprintf("addr %s/%d on %s", a, a.BitLen(), parent))
	}
	if len(h.barred) > 0 {
		lines = append(lines, fmt.Sprint("nothing from ", h.barred))
	}
	lines = append(lines, h.rules.lines()...)
	lines = append(lines, h.guardLines()...)
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
	if have, ok := h.links[b.Name]; ok && have.Owner != b.Owner {
		return link.ErrNotOurs
	}
	if !h.rules.hasBridge(b.Name) {
		return fmt.Errorf("bridge %s comes before its rules: it would forward what it must not", b.Name)
	}
	h.links[b.Name] = link.Found{Owner: b.Owner, Note: b.Note, IsBridge: true, Up: true, MTU: b.MTU, Addresses: b.Addresses}
	h.texts[b.Name] = fmt.Sprintf(" %v", b.Addresses)
	return nil
}

// RemoveBridge implements driver.Links.
func (h *Host) RemoveBridge(b link.Bridge) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.write("remove bridge " + b.Name); err != nil {
		return err
	}
	for port, f := range h.links {
		if f.Bridge == b.Name {
			return fmt.Errorf("bridge %s still has the port %s", b.Name, port)
		}
	}
	h.remove(b.Name, b.Owner)
	return nil
}

func (h *Host) remove(name, owner string) {
	if h.links[name].Owner == owner {
		delete(h.links, name)
		delete(h.texts, name)
	}
}

// EnsureVeth implements driver.Links.
func (h *Host) EnsureVeth(v link.Veth) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.write("veth " + v.Host); err != nil {
		return err
	}
	if _, ok := h.guarded.ports[v.Host]; !ok && h.guarding {
		return fmt.Errorf("link %s comes before its guard: its container could pass for another", v.Host)
	}
	if !h.links[v.Bridge].IsBridge {
		return fmt.Errorf("no bridge %s", v.Bridge)
	}
	h.links[v.Host] = link.Found{Owner: v.Owner, Note: v.Note, Bridge: v.Bridge, Up: true, MTU: v.MTU}
	if _, ok := h.texts[v.Host]; !ok {
		h.peers[v.Host] = v.Peer
	}
	h.texts[v.Host] = fmt.Sprintf(" peer %s %s%s", v.Peer, v.MAC, flag(v.Isolated, " isolated"))
	return nil
}

// RemoveVeth implements driver.Links.
func (h *Host) RemoveVeth(v link.Veth) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.write("remove veth " + v.Host); err != nil {
		return err
	}
	h.remove(v.Host, v.Owner)
	return nil
}

// Survey implements driver.Links.
func (h *Host) Survey() (link.Survey, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := link.Survey{Links: maps.Clone(h.links), Aliases: map[netip.Addr][]string{}}
	for a, on := range h.aliases {
		s.Aliases[a] = []string{on}
	}
	return s, nil
}

// HasLink implements driver.Links.
func (h *Host) HasLink(name string) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.links[name]; ok {
		return true, nil
	}
	for host := range h.links {
		if h.peers[host] == name {
			return true, nil
		}
	}
	return false, nil
}

// Take moves the container's end of a veth pair out of the host, as the engine
// does after Join.
func (h *Host) Take(host string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.peers, host)
}

// EnsureAlias implements driver.Addresses.
func (h *Host) EnsureAlias(parent string, a netip.Addr) error {
	err := h.putAlias(parent, a)
	if err == nil && h.wire != nil {
		h.wire.put(h, parent, a)
	}
	return err
}

func (h *Host) putAlias(parent string, a netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.write("alias " + a.String()); err != nil {
		return err
	}
	if _, ok := h.rules.mappings[a]; !ok {
		return fmt.Errorf("alias %s comes before its mapping: the host would answer on it", a)
	}
	if !h.NoBarrier && !slices.ContainsFunc(h.barred, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return fmt.Errorf("alias %s comes before its barrier: the host could answer on it", a)
	}
	if slices.Contains(h.Own, a) {
		return link.ErrNotOurs
	}
	if h.Unplugged[parent] {
		return link.ErrNoLink
	}
	if h.Others[a] != nil {
		return fmt.Errorf("alias %s is somebody else's", a)
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
