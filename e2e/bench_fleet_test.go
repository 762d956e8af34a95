package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
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

// perBridge is how many endpoints share a network: a bridge has 1,023 ports.
const perBridge = 1000

// A fleet is a host with many endpoints, made in bulk: records, links and
// addresses are as the driver's calls would have left them. The driver runs in
// the test's own process, on the host's network.
type fleet struct {
	t    *testing.T
	host *nettest.Node
	// containers is where all the containers' ends are.
	containers *nettest.Node
	backend    string
	count      int
	state      string // the file

	driver *driver.Driver
	store  *store.Store
	nat    nat.Backend
	clock  *clock
}

func newFleet(t *testing.T, backend string, count int) *fleet {
	t.Helper()
	name := fmt.Sprintf("%s-%d", backend, count)
	lan := nettest.NamedSegment(t, "lan-"+name)
	f := &fleet{
		t: t, host: lan.Attach("host-"+name, "10.0.0.1/8"), containers: nettest.NewNode(t, "containers-"+name),
		backend: backend, count: count, state: filepath.Join(t.TempDir(), "extip.db"),
	}
	f.host.Sysctl("ipv4.ip_forward", "1")
	f.records()
	f.links()
	f.start()
	return f
}

// networkID and endpointID are as the engine's: 64 digits, of which the first
// tell them apart.
func networkID(i int) string  { return fmt.Sprintf("%03x%061x", i+1, i) }
func endpointID(i int) string { return fmt.Sprintf("%06x%058x", i+1, i) }

func (f *fleet) networks() int { return (f.count + perBridge - 1) / perBridge }

// endpoint is the i-th's record.
func (f *fleet) endpoint(i int) store.Endpoint {
	place := i%perBridge + 2
	inside := netip.AddrFrom4([4]byte{172, byte(16 + i/perBridge), byte(place >> 8), byte(place)})
	e := store.Endpoint{
		ID: endpointID(i), Network: networkID(i / perBridge), State: store.Published, Name: fmt.Sprintf("c%d", i),
		Addresses: []netip.Prefix{netip.PrefixFrom(inside, 16)}, Source: store.SourceClient, Egress: store.EgressExternal, Created: time.Now().UTC(),
	}
	e.MAC = link.MAC(e.Addresses).String()
	return e
}

func (f *fleet) external(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
}

// natState is what the fleet's rules should be.
func (f *fleet) natState() nat.State {
	var s nat.State
	for i := range f.networks() {
		s.Networks = append(s.Networks, nat.Network{
			ID: networkID(i)[:12], Bridge: link.BridgeName(networkID(i)), Uplinks: []string{"eth0"},
			Subnets: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("172.%d.0.0/16", 16+i))},
		})
	}
	for i := range f.count {
		s.Mappings = append(s.Mappings, nat.Mapping{
			Endpoint: endpointID(i)[:12], External: f.external(i), Internal: f.endpoint(i).Addresses[0].Addr(), Egress: true,
		})
	}
	return s
}

// records has the driver make the networks, and writes the endpoints on a file
// in memory: thousands of writes to a disk, one by one, take long.
func (f *fleet) records() {
	f.t.Helper()
	draft := filepath.Join("/run", filepath.Base(f.host.NetNS)+".db")
	defer func() { _ = os.Remove(draft) }()
	f.do(func() error {
		s, err := store.Open(draft)
		if err != nil {
			return err
		}
		if err := f.open(s); err != nil {
			return err
		}
		for i := range f.networks() {
			if err := f.driver.CreateNetwork(createNetwork(i, "10.1.0.0/16")); err != nil {
				return err
			}
		}
		for i := range f.count {
			if _, err := s.CreateEndpoint(f.endpoint(i), store.Want{Addresses: []netip.Addr{f.external(i)}}); err != nil {
				return err
			}
		}
		return s.Close()
	})
	content, err := os.ReadFile(draft)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(f.state, content, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// createNetwork is the engine's request for the i-th network.
func createNetwork(i int, pool string) *api.CreateNetworkRequest {
	return &api.CreateNetworkRequest{
		NetworkID: networkID(i),
		Options: map[string]any{"com.docker.network.generic": map[string]any{
			"extip.parent": "eth0", "extip.pool": pool, "extip.dad": "off",
		}},
		IPv4Data: []*api.IPAMData{{AddressSpace: "LocalDefault", Pool: fmt.Sprintf("172.%d.0.0/16", 16+i), Gateway: fmt.Sprintf("172.%d.0.1/16", 16+i)}},
	}
}

// links makes the veth pairs and the aliases.
func (f *fleet) links() {
	f.t.Helper()
	var script strings.Builder
	for i := range f.count {
		e := f.endpoint(i)
		host, peer := link.VethNames(e.ID)
		fmt.Fprintf(&script, "link add %s type veth peer name %s netns %s\n", host, peer, f.containers.NetNS)
		// As the driver writes it, which would mend another.
		note := fmt.Sprintf("network=%s ip=%s external=%s source=client egress=external", e.Network[:12], e.Addresses[0], f.external(i))
		fmt.Fprintf(&script, "link set %s alias %q master %s up\n", host, link.Mark(e.ID, note), link.BridgeName(e.Network))
	}
	f.host.Sysctl("ipv6.conf.default.disable_ipv6", "1")
	f.batch(script.String())
	f.aliases()
}

// aliases puts the external addresses on the parent.
func (f *fleet) aliases() {
	f.t.Helper()
	var script strings.Builder
	for i := range f.count {
		fmt.Fprintf(&script, "addr add %s/32 dev eth0 scope host label eth0:xip\n", f.external(i))
	}
	f.batch(script.String())
}

func (f *fleet) batch(script string) {
	f.t.Helper()
	cmd := f.host.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		f.t.Fatalf("ip -batch: %v\n%s", err, out)
	}
}

// do runs fn on the host's network.
func (f *fleet) do(fn func() error) {
	f.t.Helper()
	f.host.MustDo(fn)
}

// start opens the records and the driver, and lets the rules be as they say.
func (f *fleet) start() {
	f.t.Helper()
	f.do(func() error {
		s, err := store.Open(f.state)
		if err != nil {
			return err
		}
		f.store = s
		f.t.Cleanup(f.stop)
		if err := f.open(s); err != nil {
			return err
		}
		if _, err = f.nat.Sync(f.natState()); err != nil {
			return err
		}
		return someFlow()
	})
	f.retire()
}

// someFlow leaves a flow in connection tracking, as every host has some: by
// the first one, it is found out what the kernel's filter is worth.
func someFlow() error {
	c, err := net.Dial("udp", "10.0.0.1:9")
	if err != nil {
		return err
	}
	_, err = c.Write([]byte("?"))
	return errors.Join(err, c.Close())
}

// retire has links removed after the calls, as the program does.
func (f *fleet) retire() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.driver.Retire(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
}

// stop closes the records, for others to open.
func (f *fleet) stop() {
	if f.store != nil {
		_ = f.store.Close()
	}
	f.store = nil
}

// open joins the packages as the program does, with a clock in between.
func (f *fleet) open(s *store.Store) error {
	host, err := link.New("/proc/sys/net")
	if err != nil {
		return err
	}
	announcer, err := announce.New()
	if err != nil {
		return err
	}
	f.t.Cleanup(func() {
		host.Close()
		_ = announcer.Close()
	})
	if f.nat, err = openBackend(f.t, f.backend); err != nil {
		return err
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	f.clock = &clock{}
	f.driver, err = driver.New(f.clock.kernel(driver.Kernel{
		Links: host, Addresses: host, Settings: host, Neighbours: announcer, NAT: f.nat,
	}), s, driver.Defaults{}, log)
	return err
}

// openBackend is a backend of the current thread's network, as the program
// uses it.
func openBackend(t *testing.T, name string) (nat.Backend, error) {
	if name == "iptables" {
		rules, err := iptables.New("")
		return &nat.Admitted{Backend: rules}, err
	}
	rules, err := nftables.New(nftables.Config{})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = rules.Close() })
	admission, err := iptables.NewAdmission("")
	return &nat.Admitted{Backend: rules, Admission: admission}, err
}
