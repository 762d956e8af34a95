package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	api "github.com/docker/go-plugins-helpers/network"
	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"github.com/extip/extip/internal/hosttest"
	"github.com/extip/extip/pool"
)

// A lab is a driver on a machine in memory, with a store on disk.
type lab struct {
	t    *testing.T
	host *hosttest.Host
	path string
	*Driver
	// member is what it is in a cluster, nil for a host of its own.
	member *member
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, host: hosttest.New(), path: filepath.Join(t.TempDir(), "extip.db")}
	l.start()
	t.Cleanup(func() { l.store.Close() })
	return l
}

// start opens the store and makes a driver, as the program does.
func (l *lab) start() {
	l.t.Helper()
	s, err := l.openStore()
	if err != nil {
		l.t.Fatal(err)
	}
	s.Intercept = l.host.Intercept
	log := logrus.New()
	log.SetOutput(io.Discard)
	k := Kernel{Links: l.host, Addresses: l.host, Settings: l.host, Neighbours: l.host, NAT: l.host.NAT(), Guard: l.host.Guard()}
	l.Driver, err = New(k, s, Defaults{}, log)
	if err == nil {
		l.joinCluster()
		err = l.Restore()
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// restart ends the driver as a crash would, and starts another.
func (l *lab) restart() {
	l.t.Helper()
	if err := l.store.Close(); err != nil {
		l.t.Fatal(err)
	}
	l.start()
}

const (
	netID = "02b1c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90"
	epID  = "4ea39db0c1d2e3f405162738495a6b7c8d9eafb0c1d2e3f405162738495a6b7c"
)

// options are a network's driver options as the engine sends them.
func options(kv ...string) map[string]any {
	generic := map[string]any{}
	for i := 0; i < len(kv); i += 2 {
		generic[kv[i]] = kv[i+1]
	}
	return map[string]any{"com.docker.network.enable_ipv6": false, "com.docker.network.generic": generic}
}

func createNetwork(id string, n int, kv ...string) *api.CreateNetworkRequest {
	return &api.CreateNetworkRequest{
		NetworkID: id, Options: options(kv...),
		IPv4Data: []*api.IPAMData{{AddressSpace: "LocalDefault", Pool: fmt.Sprintf("172.%d.0.0/16", n), Gateway: fmt.Sprintf("172.%d.0.1/16", n)}},
	}
}

func (l *lab) network(kv ...string) {
	l.t.Helper()
	if err := l.CreateNetwork(createNetwork(netID, 31, kv...)); err != nil {
		l.t.Fatal(err)
	}
}

// endpoint creates an endpoint with driver-opts and returns the error.
func (l *lab) endpoint(id, address string, kv ...string) error {
	opts := map[string]any{"com.docker.network.portmap": []any{}}
	for i := 0; i < len(kv); i += 2 {
		opts[kv[i]] = kv[i+1]
	}
	_, err := l.CreateEndpoint(&api.CreateEndpointRequest{
		NetworkID: netID, EndpointID: id, Interface: &api.EndpointInterface{Address: address}, Options: opts,
	})
	return err
}

// run is what the engine does for docker run.
func (l *lab) run(id, address string, kv ...string) error {
	if err := l.endpoint(id, address, kv...); err != nil {
		return err
	}
	_, err := l.Join(&api.JoinRequest{NetworkID: netID, EndpointID: id})
	if err != nil {
		return errors.Join(err, l.rm(id))
	}
	if err := l.ProgramExternalConnectivity(&api.ProgramExternalConnectivityRequest{NetworkID: netID, EndpointID: id}); err != nil {
		return errors.Join(err, l.rm(id))
	}
	return nil
}

// rm is what the engine does when a container stops.
func (l *lab) rm(id string) error {
	return errors.Join(
		l.RevokeExternalConnectivity(&api.RevokeExternalConnectivityRequest{NetworkID: netID, EndpointID: id}),
		l.Leave(&api.LeaveRequest{NetworkID: netID, EndpointID: id}),
		l.DeleteEndpoint(&api.DeleteEndpointRequest{NetworkID: netID, EndpointID: id}),
	)
}

func (l *lab) check(want string) {
	l.t.Helper()
	have := l.host.String()
	if want != "" && !strings.Contains(want, barrierLine) {
		// There is one with every network that has addresses.
		have = regexp.MustCompile(`(?m)^`+barrierLine+`.*\n?`).ReplaceAllString(have, "")
	}
	if diff := cmp.Diff(strings.TrimSpace(want), strings.TrimSpace(have)); diff != "" {
		l.t.Errorf("machine (-want +got):\n%s", diff)
	}
}

// barrierLine is how the machine begins to say what is barred.
const barrierLine = "nothing from "

// clean fails the test if anything is left, on the machine or on record.
func (l *lab) clean() {
	l.t.Helper()
	l.check("")
	claims, err := l.store.Claims()
	endpoints, err2 := l.store.Endpoints()
	networks, err3 := l.store.Networks()
	if err := errors.Join(err, err2, err3); err != nil {
		l.t.Fatal(err)
	}
	if len(claims)+len(endpoints)+len(networks) > 0 {
		l.t.Errorf("left on record: claims %v, endpoints %v, networks %v", claims, endpoints, networks)
	}
	if len(l.networks)+len(l.endpoints) > 0 {
		l.t.Errorf("left in memory: %v, %v", l.networks, l.endpoints)
	}
}

const running = `
addr 203.0.113.56/32 on br-ex
link xip-02b1c3d4e5f of 02b1c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90 mtu 1450 [172.31.0.1/16]
link xip4ea39db0c1d of 4ea39db0c1d2e3f405162738495a6b7c8d9eafb0c1d2e3f405162738495a6b7c mtu 1450 peer xic4ea39db0c1d 02:42:ac:1f:00:02 on xip-02b1c3d4e5f
nat 203.0.113.56 <-> 172.31.0.2 of 4ea39db0c1d2 egress
nat network 02b1c3d4e5f6: xip-02b1c3d4e5f [172.31.0.0/16] by br-ex,eth0`

func TestLifeOfAnEndpoint(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.62")
	answer, err := l.CreateEndpoint(&api.CreateEndpointRequest{
		NetworkID: netID, EndpointID: epID, Interface: &api.EndpointInterface{Address: "172.31.0.2/16"}, Options: map[string]any{},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&api.EndpointInterface{MacAddress: "02:42:ac:1f:00:02"}, answer.Interface); diff != "" {
		t.Errorf("CreateEndpoint (-want +got):\n%s", diff)
	}
	joined, err := l.Join(&api.JoinRequest{NetworkID: netID, EndpointID: epID, SandboxKey: "/var/run/docker/netns/2f0544bbcf69"})
	if err != nil {
		t.Fatal(err)
	}
	want := &api.JoinResponse{InterfaceName: api.InterfaceName{SrcName: "xic4ea39db0c1d", DstPrefix: "eth"}, Gateway: "172.31.0.1"}
	if diff := cmp.Diff(want, joined); diff != "" {
		t.Errorf("Join (-want +got):\n%s", diff)
	}
	l.check(running)
	if got := l.host.Announced(); len(got) != 1 || got[0] != "203.0.113.56 on br-ex" {
		t.Errorf("announced %v", got)
	}
	info, err := l.EndpointInfo(&api.InfoRequest{NetworkID: netID, EndpointID: epID})
	if err != nil || info.Value["extip.external"] != "203.0.113.56" || info.Value["extip.state"] != "published" {
		t.Errorf("info %v, %v", info, err)
	}

	// The engine's own repetitions, and a restart of the plugin, change nothing.
	writes := l.host.Writes()
	for _, err := range []error{
		l.ProgramExternalConnectivity(&api.ProgramExternalConnectivityRequest{NetworkID: netID, EndpointID: epID}),
		l.RevokeExternalConnectivity(&api.RevokeExternalConnectivityRequest{NetworkID: netID, EndpointID: epID}),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if l.host.Writes() != writes {
		t.Error("connectivity calls write to the kernel")
	}
	l.restart()
	l.check(running)

	for range 2 {
		if err := l.rm(epID); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID}); err != nil {
			t.Error(err)
		}
	}
	l.clean()
}

// TestRetiredEndpoint: when the engine has its answer, the addresses are free for
// others, and the link goes a little later.
func TestRetiredEndpoint(t *testing.T) {
	l := newLab(t)
	l.retiring.Store(true)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56")
	if err := errors.Join(l.run(epID, "172.31.0.2/16"), l.rm(epID)); err != nil {
		t.Fatal(err)
	}
	if got := l.host.String(); !strings.Contains(got, vethName) || strings.Contains(got, "203.0.113.56 ") {
		t.Errorf("machine:\n%s", got)
	}
	if _, err := l.Join(&api.JoinRequest{NetworkID: netID, EndpointID: epID}); err == nil {
		t.Error("an endpoint that is deleted joins")
	}
	if err := l.run("e2", "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Retire(ctx) }()
	for deadline := time.Now().Add(time.Minute); strings.Contains(l.host.String(), vethName); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the link doesn't go")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if lines, err := l.Reconcile("test"); len(lines) > 0 || err != nil {
		t.Errorf("%q, %v", lines, err)
	}
	if err := errors.Join(l.rm("e2"), l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID})); err != nil {
		t.Error(err)
	}
	l.clean()
}

func TestAddresses(t *testing.T) {
	l := newLab(t)
	l.host.Own = []netip.Addr{netip.MustParseAddr("203.0.113.57"), netip.MustParseAddr("203.0.113.10")}
	l.host.Routers = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.58")
	if err := l.CreateNetwork(createNetwork("other", 30)); err != nil {
		t.Fatal(err)
	}
	external := func(id string) string {
		info, _ := l.EndpointInfo(&api.InfoRequest{NetworkID: netID, EndpointID: id})
		return info.Value["extip.external"]
	}
	for _, tt := range []struct {
		id, option string
		want       string // external addresses, or part of the error
	}{
		{"e1", "", "203.0.113.56"},
		{"e2", "none", ""},
		{"e3", "auto", "203.0.113.58"}, // 57 is the host's own
		{"e4", "", "2 of 3 addresses are in use by e1, e3, 1 can't be used: 203.0.113.57 is this host's own"},
		{"e5", "203.0.113.60, 203.0.113.61", "203.0.113.60,203.0.113.61"},
		{"e6", "203.0.113.60", "extip.address=203.0.113.60: 203.0.113.60 is taken by endpoint e5 172.31.0.5"},
		{"e7", "203.0.113.10", "extip.address=203.0.113.10: it is this host's own"},
		{"e8", "203.0.113.1", "is a gateway"},
		{"e9", "172.31.0.77", "inside the container subnet 172.31.0.0/16"},
		{"eh", "172.30.0.77", "inside the container subnet 172.30.0.0/16"}, // another network's
		{"ea", "224.0.0.9", "not an address that others can connect to"},
		{"eb", "127.0.0.9", "not an address that others can connect to"},
		{"ec", "web", `extip.address=web: "web" is no address`},
		{"ed", "none,auto", "stand alone"},
		{"ee", "203.0.113.70,203.0.113.70", "twice"},
		{"ef", "2001:db8::1", "needs a subnet of its family, and the network has only 172.31.0.1/16"},
		{"eg", "203.0.113.62,203.0.113.60", "is taken by"},
	} {
		before, claims := l.host.String(), l.claims()
		var kv []string
		if tt.option != "" {
			kv = []string{"extip.address", tt.option}
		}
		err := l.run(tt.id, fmt.Sprintf("172.31.0.%d/16", hexDigit(tt.id[1])), kv...)
		if err != nil {
			if tt.want == "" || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s %q: %v, want %q", tt.id, tt.option, err, tt.want)
			}
			if l.host.String() != before || l.claims() != claims {
				t.Errorf("%s: the refusal leaves\n%s\n%s", tt.id, l.host, l.claims())
			}
			continue
		}
		if got := external(tt.id); got != tt.want {
			t.Errorf("%s %q: got %q, want %q", tt.id, tt.option, got, tt.want)
		}
	}
}

func hexDigit(c byte) int {
	if c >= 'a' {
		return int(c-'a') + 10
	}
	return int(c - '0')
}

func (l *lab) claims() string {
	claims, err := l.store.Claims()
	return fmt.Sprint(claims, err)
}

func TestNetworkRefusals(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex", "com.docker.network.bridge.name", "br-web")
	if err := l.run(epID, "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	before := l.host.String()
	other := strings.Repeat("b", 64)
	request := func(change func(*api.CreateNetworkRequest), kv ...string) *api.CreateNetworkRequest {
		r := createNetwork(other, 32, kv...)
		if change != nil {
			change(r)
		}
		return r
	}
	for want, r := range map[string]*api.CreateNetworkRequest{
		"extip.parent=eth9: interface eth9: ":                                              request(nil, "extip.parent", "eth9"),
		"extip.parent=port0: it is a port of br-ex":                                        request(nil, "extip.parent", "port0"),
		"extip.auto=perhaps: allowed are true and false":                                   request(nil, "extip.auto", "perhaps"),
		"extip.source=me: allowed are client and gateway":                                  request(nil, "extip.source", "me"),
		"extip.dad=on: allowed are fast, rfc5227 and off":                                  request(nil, "extip.dad", "on"),
		"extip.pool=x: pool: \"x\" is no address":                                          request(nil, "extip.pool", "x"),
		"extip.pool=172.32.0.9: it has addresses inside the container subnet":              request(nil, "extip.pool", "172.32.0.9"),
		"IPv6 addresses need a network with --ipv6":                                        request(nil, "extip.pool", "2001:db8::/64"),
		"com.docker.network.driver.mtu=9: allowed are 68 to 65535":                         request(nil, "com.docker.network.driver.mtu", "9"),
		"com.docker.network.bridge.name=a b: no interface":                                 request(nil, "com.docker.network.bridge.name", "a b"),
		"com.docker.network.bridge.name=br-web: it is the bridge of":                       request(nil, "com.docker.network.bridge.name", "br-web"),
		"unknown option extip.parrent; on a network there are: extip.alias, extip.allow, ": request(nil, "extip.parrent", "br-ex"),
		"extip.address can be set on: endpoint; on a network there are: ":                  request(nil, "extip.address", "203.0.113.9"),
		"IPv4 addresses need a network with an IPv4 subnet": request(func(r *api.CreateNetworkRequest) {
			r.IPv4Data, r.IPv6Data = nil, []*api.IPAMData{{Pool: "2001:db8::/64", Gateway: "2001:db8::1/64"}}
		}, "extip.pool", "203.0.113.9"),
		"one IPv4 subnet, one IPv6 subnet, or one of each, not 0 and 0": request(func(r *api.CreateNetworkRequest) { r.IPv4Data = nil }),
		"a network needs a subnet of its own": request(func(r *api.CreateNetworkRequest) {
			r.IPv4Data[0] = &api.IPAMData{AddressSpace: "null", Pool: "0.0.0.0/0"}
		}),
		"--subnet 172.31.0.0/16 overlaps": request(func(r *api.CreateNetworkRequest) {
			r.IPv4Data[0] = &api.IPAMData{AddressSpace: "LocalDefault", Pool: "172.31.0.0/16", Gateway: "172.31.0.1/16"}
		}),
		"an --internal network has no external addresses": request(func(r *api.CreateNetworkRequest) {
			r.Options["com.docker.network.internal"] = true
		}, "extip.pool", "203.0.113.9"),
	} {
		err := l.CreateNetwork(r)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
		if got := l.host.String(); got != before {
			t.Fatalf("the refusal leaves\n%s", got)
		}
	}
	if networks, err := l.store.Networks(); len(networks) != 1 || err != nil {
		t.Errorf("networks on record: %v, %v", networks, err)
	}
}

func TestOptionsReachTheKernel(t *testing.T) {
	l := newLab(t)
	l.network("Extip.Parent", "br-ex", "extip.source", "gateway", "extip.egress", "host", "extip.auto", "false", "extip.pool", "203.0.113.56",
		"com.docker.network.bridge.name", "br-web", "com.docker.network.driver.mtu", "1400", "com.docker.network.bridge.enable_icc", "false")
	if err := errors.Join(
		l.run("e1", "172.31.0.2/16"),
		l.run("e2", "172.31.0.3/16", "EXTIP.address", "auto", "extip.source", "client", "extip.egress", "external"),
		l.run("e3", "172.31.0.4/16", "extip.address", "203.0.113.60,203.0.113.61"),
	); err != nil {
		t.Fatal(err)
	}
	l.check(`
addr 203.0.113.56/32 on br-ex
addr 203.0.113.60/32 on br-ex
addr 203.0.113.61/32 on br-ex
link br-web of 02b1c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90 mtu 1400 [172.31.0.1/16]
link xipe1 of e1 mtu 1400 peer xice1 02:42:ac:1f:00:02 isolated on br-web
link xipe2 of e2 mtu 1400 peer xice2 02:42:ac:1f:00:03 isolated on br-web
link xipe3 of e3 mtu 1400 peer xice3 02:42:ac:1f:00:04 isolated on br-web
nat 203.0.113.56 <-> 172.31.0.3 of e2 egress
nat 203.0.113.60 <-> 172.31.0.4 of e3 gateway
nat 203.0.113.61 <-> 172.31.0.4 of e3 gateway
nat network 02b1c3d4e5f6: br-web [172.31.0.0/16] by br-ex,eth0`)
}

func TestInternalNetwork(t *testing.T) {
	l := newLab(t)
	l.defaults.Pool, _ = pool.Parse("203.0.113.56")
	r := createNetwork(netID, 31)
	r.Options["com.docker.network.internal"] = true
	if err := l.CreateNetwork(r); err != nil {
		t.Fatal(err)
	}
	if err := l.endpoint("e0", "172.31.0.9/16", "extip.address", "203.0.113.60"); err == nil || !strings.Contains(err.Error(), "--internal") {
		t.Errorf("an external address: %v", err)
	}
	if err := l.endpoint(epID, "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	joined, err := l.Join(&api.JoinRequest{NetworkID: netID, EndpointID: epID})
	if err != nil || joined.Gateway != "" {
		t.Errorf("Join: %v, %v; want no gateway", joined, err)
	}
	if got := l.host.String(); strings.Contains(got, "addr") || !strings.Contains(got, "by  internal") {
		t.Errorf("machine:\n%s", got)
	}
}

func TestReplacedNetwork(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56")
	if err := l.run(epID, "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.57")
	l.check(`
link xip-02b1c3d4e5f of 02b1c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90 mtu 1450 [172.31.0.1/16]
nat network 02b1c3d4e5f6: xip-02b1c3d4e5f [172.31.0.0/16] by br-ex,eth0`)
	if err := l.run("e2", "172.31.0.2/16"); err != nil {
		t.Error(err)
	}
	if err := l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID}); err != nil { // an endpoint is left
		t.Error(err)
	}
	l.clean()
}

// TestUnknownIDs: what is gone stays gone, and what needs a record says so.
func TestUnknownIDs(t *testing.T) {
	l := newLab(t)
	l.network()
	for _, id := range []string{"x", strings.Repeat("y", 64)} {
		for _, networkID := range []string{"x", netID} {
			if err := errors.Join(
				l.Leave(&api.LeaveRequest{NetworkID: networkID, EndpointID: id}),
				l.DeleteEndpoint(&api.DeleteEndpointRequest{NetworkID: networkID, EndpointID: id}),
				l.RevokeExternalConnectivity(&api.RevokeExternalConnectivityRequest{NetworkID: networkID, EndpointID: id}),
			); err != nil {
				t.Error(err)
			}
			if info, err := l.EndpointInfo(&api.InfoRequest{NetworkID: networkID, EndpointID: id}); err != nil || info.Value == nil {
				t.Errorf("info %v, %v", info, err)
			}
			if _, err := l.Join(&api.JoinRequest{NetworkID: networkID, EndpointID: id}); err == nil || !strings.Contains(err.Error(), "unknown") {
				t.Errorf("Join: %v", err)
			}
			if err := l.ProgramExternalConnectivity(&api.ProgramExternalConnectivityRequest{NetworkID: networkID, EndpointID: id}); err == nil {
				t.Error("connectivity for an endpoint that doesn't exist")
			}
		}
	}
	if _, err := l.CreateEndpoint(&api.CreateEndpointRequest{NetworkID: "x", EndpointID: "e"}); err == nil {
		t.Error("an endpoint of an unknown network")
	}
	if err := l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: "x"}); err != nil {
		t.Error(err)
	}
	if err := l.endpoint(epID, "10.0.0.1/8"); err == nil || !strings.Contains(err.Error(), "subnet") {
		t.Errorf("an address of another subnet: %v", err)
	}
	if err := errors.Join(l.run(epID, "172.31.0.2/16")); err != nil {
		t.Fatal(err)
	}
	if err := l.endpoint(epID, "172.31.0.3/16"); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("an endpoint created twice: %v", err)
	}
}
