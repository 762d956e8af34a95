package driver_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	api "github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"

	"github.com/extip/extip/announce"
	"github.com/extip/extip/driver"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/nat/iptables"
	"github.com/extip/extip/nat/nftables"
	"github.com/extip/extip/store"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// crash ends the plugin in a write of its store.
const crash = "crash"

// A soak is a docker host in a namespace with the real kernel and the real
// packages; only the engine is played by the test.
type soak struct {
	t          testing.TB
	random     *rand.Rand
	host, peer *nettest.Node
	path       string
	// backend is nftables or iptables; "": at each start another one.
	backend string

	kernel  *link.Host
	records *store.Store
	plugin  *driver.Driver

	networks   map[string]int // id → third byte of its subnet
	containers map[string]*container
	serial     int
	steps      map[string]int
}

// A container has one endpoint, as most do; its namespace goes with it.
type container struct {
	endpoint, network, external string
	address, address6           string
	netns                       string
	// operated: an operator has taken addresses from it.
	operated bool
}

// TestSoak makes random operations, damage and crashes among them, and checks
// after each that records, kernel and engine agree. At the end nothing is left.
// EXTIP_SOAK_STEPS and EXTIP_SOAK_SEED choose length and course.
func TestSoak(t *testing.T) {
	steps, seed := env(t, "EXTIP_SOAK_STEPS", 100), env(t, "EXTIP_SOAK_SEED", time.Now().UnixNano())
	s := newSoak(t, seed)
	before := s.host.Dump()
	s.start()
	operations := []struct {
		name   string
		weight int
		do     func()
	}{
		{"create network", 6, s.createNetwork}, {"remove network", 3, s.removeNetwork},
		{"run", 30, s.run}, {"remove", 22, s.remove}, {"restart container", 8, s.restartContainer},
		{"kill plugin", 4, s.restart}, {"kill plugin in a call", 6, s.crashInCall}, {"kill engine", 2, s.killEngine},
		{"flush nat", 3, s.damage("iptables", "-t", "nat", "-F")},
		{"flush all", 2, s.damage("nft", "flush", "ruleset")},
		{"flush addresses", 3, s.flushAddresses},
		{"parent down and up", 2, s.damage("sh", "-c", "ip link set eth0 down; ip link set eth0 up; ip addr add 2001:db8::10/64 dev eth0 nodad")},
		{"delete a bridge", 2, s.deleteBridge},
		{"ping", 8, s.ping},
		{"attach", 8, s.attach}, {"detach", 4, s.detach}, {"move", 12, s.move},
	}
	total := 0
	for _, op := range operations {
		total += op.weight
	}
	for step := range steps {
		pick := s.random.IntN(total)
		for _, op := range operations {
			if pick -= op.weight; pick < 0 {
				s.steps[op.name]++
				op.do()
				s.check()
				if t.Failed() {
					t.Fatalf("seed %d, step %d: after %q", seed, step, op.name)
				}
				break
			}
		}
	}
	for len(s.containers) > 0 {
		s.remove()
	}
	for len(s.networks) > 0 {
		s.removeNetwork()
	}
	s.check()
	s.stop()
	if after := s.host.Dump(); after != before {
		t.Errorf("seed %d: after:\n%s\nbefore:\n%s", seed, after, before)
	}
	t.Logf("seed %d: %d steps: %v", seed, steps, s.steps)
}

func newSoak(t testing.TB, seed int64) *soak {
	nettest.RequireTool(t, "iptables")
	nettest.RequireTool(t, "nft")
	lan := nettest.NewSegment(t)
	s := &soak{
		t: t, random: rand.New(rand.NewPCG(uint64(seed), 0)), path: filepath.Join(t.TempDir(), "extip.db"),
		host: lan.Attach("host", "203.0.113.10/24", "2001:db8::10/64"), peer: lan.Attach("peer", "203.0.113.200/24", "2001:db8::200/64"),
		networks: map[string]int{}, containers: map[string]*container{}, steps: map[string]int{},
	}
	s.host.Sysctl("ipv4.ip_forward", "1") // which stays on
	s.host.Sysctl("ipv6.conf.all.forwarding", "1")
	return s
}

func env(t *testing.T, name string, fallback int64) int64 {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		return fallback
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// call makes a call of the plugin on the host.
func (s *soak) call(what string, fn func() error) bool {
	s.t.Helper()
	if err := s.host.Do(fn); err != nil {
		s.t.Errorf("%s: %v", what, err)
		return false
	}
	return true
}

func (s *soak) start() {
	s.call("start", func() (err error) {
		if s.kernel, err = link.New("/proc/sys/net"); err != nil {
			return err
		}
		announcer, err := announce.New()
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { _ = announcer.Close() })
		rules, err := s.rules()
		if err != nil {
			return err
		}
		if s.records, err = store.Open(s.path); err != nil {
			return err
		}
		log := logrus.New()
		log.SetOutput(io.Discard)
		guard, err := nftables.NewGuard()
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { _ = guard.Close() })
		k := driver.Kernel{Links: s.kernel, Addresses: s.kernel, Settings: s.kernel, Neighbours: announcer, NAT: rules, Guard: guard}
		if s.plugin, err = driver.New(k, s.records, driver.Defaults{}, log); err != nil {
			return err
		}
		return s.plugin.Restore()
	})
}

// rules is either backend, as the program would use it: a start after a crash
// may be with the other.
func (s *soak) rules() (nat.Backend, error) {
	nft, err := nftables.New(nftables.Config{})
	if err != nil {
		return nil, err
	}
	if s.backend == "iptables" || s.backend == "" && s.random.IntN(2) == 0 {
		s.steps["(start with iptables)"]++
		ipt, err := iptables.New("")
		return &nat.Admitted{Backend: ipt, Former: func() ([]string, error) {
			removed, err := nft.Sync(nat.State{})
			return removed, errors.Join(err, nft.Close())
		}}, err
	}
	s.steps["(start with nftables)"]++
	s.t.Cleanup(func() { _ = nft.Close() })
	admission, err := iptables.NewAdmission("")
	return &nat.Admitted{Backend: nft, Admission: admission, Former: func() ([]string, error) { return iptables.Clear("") }}, err
}

// stop ends the plugin as a kill does: nothing but its files is closed.
func (s *soak) stop() {
	s.kernel.Close()
	if err := s.records.Close(); err != nil {
		s.t.Error(err)
	}
}

func (s *soak) restart() {
	s.stop()
	s.start()
}

func (s *soak) createNetwork() {
	if len(s.networks) >= 4 {
		return
	}
	s.serial++
	id, n := fmt.Sprintf("%08x%056d", s.random.Uint32(), s.serial), s.serial%200
	s.networks[id] = n
	s.call("CreateNetwork", func() error {
		return s.plugin.CreateNetwork(&api.CreateNetworkRequest{
			NetworkID: id,
			Options: map[string]any{"com.docker.network.generic": map[string]any{
				"extip.parent": "eth0", "extip.pool": "203.0.113.56-203.0.113.89,2001:db8::56-2001:db8::8f",
				"extip.dad":                      []string{"fast", "off", "off", "off"}[s.random.IntN(4)],
				"com.docker.network.bridge.name": fmt.Sprintf("br-soak%d", n),
			}},
			IPv4Data: []*api.IPAMData{{AddressSpace: "LocalDefault", Pool: fmt.Sprintf("172.30.%d.0/24", n), Gateway: fmt.Sprintf("172.30.%d.1/24", n)}},
			IPv6Data: []*api.IPAMData{{AddressSpace: "LocalDefault", Pool: fmt.Sprintf("2001:db8:30:%d::/64", n), Gateway: fmt.Sprintf("2001:db8:30:%d::1/64", n)}},
		})
	})
}

func (s *soak) removeNetwork() {
	id, ok := pick(s.random, s.networks)
	if !ok {
		return
	}
	for name, c := range s.containers {
		if c.network == id {
			s.removeContainer(name)
		}
	}
	delete(s.networks, id)
	s.call("DeleteNetwork", func() error { return s.plugin.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: id}) })
}

func pick[V any](random *rand.Rand, m map[string]V) (string, bool) {
	if len(m) == 0 {
		return "", false
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys[random.IntN(len(keys))], true
}

// run starts a container: sometimes with an address asked for, or none.
func (s *soak) run() {
	network, ok := pick(s.random, s.networks)
	if !ok {
		s.createNetwork()
		return
	}
	if len(s.containers) >= 15 {
		return
	}
	s.serial++
	c := &container{network: network, address: s.freeAddress(network)}
	if s.random.IntN(3) > 0 {
		c.address6 = fmt.Sprintf("2001:db8:30:%d::%x/64", s.networks[network], s.serial)
	}
	switch s.random.IntN(5) {
	case 0:
		c.external = "none"
	case 1:
		n := 100 + s.serial%80
		c.external = fmt.Sprintf("203.0.113.%d", n)
		if c.address6 != "" {
			c.external = fmt.Sprintf("2001:db8::1:%x,", n) + c.external
		}
		if slices.ContainsFunc(s.plugin.Addresses(), func(a driver.Address) bool {
			return a.External == netip.AddrFrom4([4]byte{203, 0, 113, byte(n)}) || a.External == netip.MustParseAddr(fmt.Sprintf("2001:db8::1:%x", n))
		}) {
			return
		}
	}
	name := fmt.Sprintf("c%d", s.serial)
	if s.startContainer(c) {
		s.containers[name] = c
	}
}

func values[V any](m map[string]V) []V {
	var list []V
	for _, v := range m {
		list = append(list, v)
	}
	return list
}

// freeAddress is what the engine's IPAM gives: the lowest that is free.
func (s *soak) freeAddress(network string) string {
	for i := 2; ; i++ {
		a := fmt.Sprintf("172.30.%d.%d/24", s.networks[network], i)
		if !slices.ContainsFunc(values(s.containers), func(c *container) bool { return c.address == a }) {
			return a
		}
	}
}

// startContainer makes the engine's calls, and does with the link what the
// engine does.
func (s *soak) startContainer(c *container) bool {
	s.serial++
	c.endpoint, c.operated = fmt.Sprintf("%08x%056d", s.random.Uint32(), s.serial), false
	options := map[string]any{}
	if c.external != "" {
		options["extip.address"] = c.external
	}
	if !s.call("CreateEndpoint", func() error {
		_, err := s.plugin.CreateEndpoint(&api.CreateEndpointRequest{
			NetworkID: c.network, EndpointID: c.endpoint, Options: options,
			Interface: &api.EndpointInterface{Address: c.address, AddressIPv6: c.address6},
		})
		return err
	}) {
		return false
	}
	var joined *api.JoinResponse
	if !s.call("Join", func() (err error) {
		joined, err = s.plugin.Join(&api.JoinRequest{NetworkID: c.network, EndpointID: c.endpoint})
		return err
	}) {
		return false
	}
	c.netns = "soak" + c.endpoint[:8]
	s.host.Run("ip", "netns", "add", c.netns)
	s.host.Run("ip", "link", "set", joined.InterfaceName.SrcName, "netns", c.netns, "name", "eth0")
	setUp := [][]string{{"addr", "add", c.address, "dev", "eth0"}, {"link", "set", "eth0", "up"}, {"route", "add", "default", "via", joined.Gateway}}
	if c.address6 != "" {
		setUp = append(setUp, []string{"addr", "add", c.address6, "dev", "eth0", "nodad"}, []string{"route", "add", "default", "via", joined.GatewayIPv6})
	}
	for _, args := range setUp {
		s.host.Run(append([]string{"ip", "-n", c.netns}, args...)...)
	}
	return true
}

func (s *soak) remove() {
	if name, ok := pick(s.random, s.containers); ok {
		s.removeContainer(name)
	}
}

func (s *soak) removeContainer(name string) {
	c := s.containers[name]
	delete(s.containers, name)
	s.endContainer(c)
}

// endContainer makes the engine's calls for a container that stops.
func (s *soak) endContainer(c *container) {
	s.call("Leave", func() error { return s.plugin.Leave(&api.LeaveRequest{NetworkID: c.network, EndpointID: c.endpoint}) })
	_, peer := link.VethNames(c.endpoint)
	s.host.Run("ip", "-n", c.netns, "link", "set", "eth0", "down")
	s.host.Run("ip", "-n", c.netns, "link", "set", "eth0", "netns", filepath.Base(s.host.NetNS), "name", peer)
	s.host.Run("ip", "netns", "del", c.netns)
	s.call("DeleteEndpoint", func() error {
		return s.plugin.DeleteEndpoint(&api.DeleteEndpointRequest{NetworkID: c.network, EndpointID: c.endpoint})
	})
}

func (s *soak) restartContainer() {
	if name, ok := pick(s.random, s.containers); ok {
		c := s.containers[name]
		s.endContainer(c)
		if !s.startContainer(c) {
			delete(s.containers, name)
		}
	}
}

// crashInCall kills the plugin at a write of the store in the middle of a
// container's start or end. The engine gives the container up.
func (s *soak) crashInCall() {
	network, ok := pick(s.random, s.networks)
	if !ok {
		return
	}
	left := s.random.IntN(5) + 1
	s.records.Intercept = func(string) error {
		if left--; left == 0 {
			panic(crash)
		}
		return nil
	}
	s.serial++
	id, address := fmt.Sprintf("%08x%056d", s.random.Uint32(), s.serial), s.freeAddress(network)
	err := s.host.Do(func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = errors.New(fmt.Sprint(p))
			}
		}()
		if _, err := s.plugin.CreateEndpoint(&api.CreateEndpointRequest{NetworkID: network, EndpointID: id, Interface: &api.EndpointInterface{Address: address}}); err != nil {
			return err
		}
		if _, err := s.plugin.Join(&api.JoinRequest{NetworkID: network, EndpointID: id}); err != nil {
			return err
		}
		if err := s.plugin.Leave(&api.LeaveRequest{NetworkID: network, EndpointID: id}); err != nil {
			return err
		}
		return s.plugin.DeleteEndpoint(&api.DeleteEndpointRequest{NetworkID: network, EndpointID: id})
	})
	if err != nil && err.Error() != crash {
		s.t.Errorf("call before the crash: %v", err)
	}
	s.restart()
	// What was begun is removed when the engine has its answer.
	s.call("DeleteEndpoint", func() error {
		return s.plugin.DeleteEndpoint(&api.DeleteEndpointRequest{NetworkID: network, EndpointID: id})
	})
}
