package link

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nettest"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// newHost makes a docker host on a segment and its Host.
func newHost(t testing.TB, addrs ...string) (*nettest.Segment, *nettest.Node, *Host) {
	t.Helper()
	lan := nettest.NewSegment(t)
	node := lan.Attach("host", addrs...)
	var h *Host
	node.MustDo(func() (err error) {
		h, err = New("/proc/sys/net")
		return err
	})
	t.Cleanup(h.Close)
	return lan, node, h
}

// do fails the test if any of the calls does, made on the host. Sysctls are
// those of the thread's namespace, hence the detour.
func do(t *testing.T, node *nettest.Node, calls ...func() error) {
	t.Helper()
	for _, call := range calls {
		if err := node.Do(call); err != nil {
			t.Fatal(err)
		}
	}
}

var (
	bridge = Bridge{
		Name: "xip-0123456789a", Owner: "0123456789ab", Note: "parent=eth0", MTU: 1450,
		Addresses: []netip.Prefix{netip.MustParsePrefix("172.31.0.1/16")},
	}
	web = Veth{
		Host: "xipe1", Peer: "xice1", Owner: "e1", Bridge: bridge.Name, MTU: 1450,
		MAC: MAC([]netip.Prefix{netip.MustParsePrefix("172.31.0.2/16")}),
	}
	external = netip.MustParseAddr("192.0.2.56")
)

func TestEnsureAndRemoveTwice(t *testing.T) {
	_, node, h := newHost(t, "192.0.2.2/24")
	before := node.Dump()
	ensure := []func() error{
		func() error { return h.EnsureBridge(bridge) },
		func() error { return h.EnsureVeth(web) },
		func() error { return h.EnsureAlias("eth0", external) },
	}
	do(t, node, ensure...)
	once := node.Dump()
	for _, want := range []string{"xip-0123456789a: <BROADCAST,MULTICAST,UP> mtu 1450", "172.31.0.1/16", "192.0.2.56/32 scope host eth0:xip", "02:42:ac:1f:00:01"} {
		if !strings.Contains(once, want) {
			t.Errorf("dump lacks %q:\n%s", want, once)
		}
	}
	if port := node.Run("ip", "-d", "link", "show", "xipe1"); !strings.Contains(port, "alias extip:e1") || !strings.Contains(port, "hairpin on") || !strings.Contains(port, "isolated off") {
		t.Errorf("port: %s", port)
	}
	if peer := node.Run("ip", "link", "show", "xice1"); !strings.Contains(peer, "mtu 1450") || !strings.Contains(peer, "02:42:ac:1f:00:02") {
		t.Errorf("container's end: %s", peer)
	}
	survey, err := h.Survey()
	want := Survey{
		Links: map[string]Found{
			"xip-0123456789a": {Owner: "0123456789ab", Note: "parent=eth0", IsBridge: true, Up: true, MTU: 1450, Addresses: bridge.Addresses},
			"xipe1":           {Owner: "e1", Bridge: "xip-0123456789a", Up: true, MTU: 1450},
		},
		Aliases: map[netip.Addr][]string{external: {"eth0"}},
	}
	if diff := cmp.Diff(want, survey, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" || err != nil {
		t.Errorf("survey (-want +got), %v:\n%s", err, diff)
	}
	do(t, node, ensure...)
	if again := node.Dump(); again != once {
		t.Errorf("ensured twice:\n%s\nonce:\n%s", again, once)
	}
	for range 2 {
		do(t, node,
			func() error { return h.RemoveAlias("eth0", external) },
			func() error { return h.RemoveVeth(web) },
			func() error { return h.RemoveBridge(bridge) },
		)
		if after := node.Dump(); after != before {
			t.Errorf("removed:\n%s\nbefore:\n%s", after, before)
		}
	}
}

func TestCustomBridgeName(t *testing.T) {
	_, node, h := newHost(t)
	named := bridge
	named.Name = "br-mail"
	do(t, node, func() error { return h.EnsureBridge(named) }, func() error { return h.EnsureBridge(named) })
	if links := node.Run("ip", "link"); !strings.Contains(links, "br-mail") || strings.Contains(links, "xip-") {
		t.Errorf("links: %s", links)
	}
	do(t, node, func() error { return h.RemoveBridge(named) })
	// A crash before the rename leaves a draft, which the next attempt completes.
	node.Run("ip", "link", "add", BridgeName(named.Owner), "type", "bridge")
	do(t, node, func() error { return h.EnsureBridge(named) })
	if links := node.Run("ip", "-d", "link"); !strings.Contains(links, "br-mail") || strings.Contains(links, "xip-") || !strings.Contains(links, "alias extip:0123456789ab") {
		t.Errorf("links: %s", links)
	}
}

// What a bridge keeps to itself, no rule for bridges sees: link-layer discovery.
func TestBridgeKeepsNothingToItself(t *testing.T) {
	_, node, h := newHost(t)
	passes := func() bool {
		return strings.Contains(node.Run("ip", "-d", "link", "show", bridge.Name), "group_fwd_mask 0x4000 ")
	}
	do(t, node, func() error { return h.EnsureBridge(bridge) })
	if !passes() {
		t.Error("not when it is made")
	}
	// One that an earlier version made.
	node.Run("ip", "link", "set", bridge.Name, "type", "bridge", "group_fwd_mask", "0")
	do(t, node, func() error { return h.EnsureBridge(bridge) })
	if !passes() {
		t.Error("not when it is completed")
	}
}

func TestForeignThingsStay(t *testing.T) {
	_, node, h := newHost(t, "192.0.2.2/24")
	node.Run("ip", "link", "add", "br-mail", "type", "bridge")
	node.Run("ip", "addr", "add", "192.0.2.56/32", "dev", "eth0")
	before := node.Dump()
	foreign := bridge
	foreign.Name = "br-mail"
	for what, call := range map[string]func() error{
		"bridge": func() error { return h.EnsureBridge(foreign) },
		"alias":  func() error { return h.EnsureAlias("eth0", external) },
	} {
		if err := node.Do(call); !errors.Is(err, ErrNotOurs) {
			t.Errorf("%s: %v", what, err)
		}
	}
	do(t, node, func() error { return h.RemoveBridge(foreign) }, func() error { return h.RemoveAlias("eth0", external) })
	if after := node.Dump(); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
}

func TestIsolatedPortsDontTalk(t *testing.T) {
	for _, isolated := range []bool{false, true} {
		t.Run(fmt.Sprint(isolated), func(t *testing.T) {
			_, node, h := newHost(t)
			do(t, node, func() error { return h.EnsureBridge(bridge) })
			var containers []*nettest.Node
			for i, name := range []string{"a", "b"} {
				v := Veth{Host: "xip" + name, Peer: "xic" + name, Owner: name, Bridge: bridge.Name, MTU: 1450, Isolated: isolated}
				c := nettest.NewNode(t, name)
				do(t, node, func() error { return h.EnsureVeth(v) })
				node.Run("ip", "link", "set", v.Peer, "netns", c.NetNS, "name", "eth0", "up")
				c.Run("ip", "addr", "add", fmt.Sprintf("172.31.0.%d/16", 2+i), "dev", "eth0")
				node.AwaitPort(v.Host)
				containers = append(containers, c)
			}
			if got := containers[0].Ping("172.31.0.3") > 0; got == isolated {
				t.Errorf("sibling answers: %v", got)
			}
			if containers[0].Ping("172.31.0.1") == 0 {
				t.Error("the gateway doesn't answer")
			}
		})
	}
}

func TestUnusable(t *testing.T) {
	_, node, h := newHost(t, "192.0.2.2/24", "2001:db8::2/64")
	node.Run("ip", "addr", "add", "198.51.100.4/31", "dev", "eth0")
	node.Run("ip", "route", "add", "default", "via", "192.0.2.1")
	node.Run("ip", "route", "add", "blackhole", "203.0.113.64/26")
	node.Run("ip", "route", "add", "blackhole", "2001:db8:64::/64")
	do(t, node, func() error { return h.EnsureAlias("eth0", external) })
	for addr, want := range map[string]string{
		"192.0.2.57":        "",
		"192.0.2.56":        "", // our own alias
		"203.0.113.9":       "", // beyond the gateway: routed to this host, perhaps
		"203.0.113.70":      "", // what isn't ours of a block that is routed to this host goes nowhere
		"192.0.2.2":         "this host's own, on eth0",
		"192.0.2.0":         "the network address of 192.0.2.0/24",
		"192.0.2.255":       "a broadcast address",
		"198.51.100.5":      "", // a /31 has neither
		"127.0.0.9":         "this host's own, on lo",
		"224.0.0.5":         "a multicast address",
		"255.255.255.255":   "a broadcast address",
		"0.0.0.0":           "not an address that a host can have",
		"169.254.1.1":       "a link-local address",
		"2001:db8::57":      "",
		"2001:db8:ffff::57": "",
		"2001:db8:64::57":   "",
		"2001:db8::2":       "this host's own, on eth0",
		"2001:db8::":        "the network address of 2001:db8::/64",
		"::1":               "this host's own, on lo",
		"::":                "not an address that a host can have",
		"ff02::5":           "a multicast address",
		"fe80::5":           "a link-local address",
	} {
		got, err := h.Unusable("eth0", netip.MustParseAddr(addr))
		if err != nil || got != want && (want == "" || !strings.Contains(got, want)) {
			t.Errorf("%s: got %q, %v; want %q", addr, got, err, want)
		}
	}
	node.Sysctl("ipv6.conf.all.forwarding", "1")
	if got, err := h.Unusable("eth0", netip.MustParseAddr("2001:db8::")); got != "is an anycast address of this host's network" || err != nil {
		t.Errorf("on a router: %q, %v", got, err)
	}
}

// TestForget: a datagram flow keeps its old way until it is forgotten.
func TestForget(t *testing.T) {
	nettest.RequireTool(t, "iptables")
	lan, node, h := newHost(t, "192.0.2.2/24", "192.0.2.56/32")
	peer := lan.Attach("peer", "192.0.2.9/24")
	node.Serve(53)
	// Connection tracking is on only while a rule needs it.
	node.Run("iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
	if got := peer.Ask("udp", "192.0.2.56:53"); got == "" {
		t.Fatal("no answer")
	}
	flows := func() string { return node.Run("cat", "/proc/net/nf_conntrack") }
	if !strings.Contains(flows(), "dst=192.0.2.56") {
		t.Fatal("the flow isn't tracked")
	}
	do(t, node, func() error { return h.Forget(Flows{External: []netip.Addr{netip.MustParseAddr("192.0.2.57")}}) })
	if !strings.Contains(flows(), "dst=192.0.2.56") {
		t.Error("forgetting another address forgets this one too")
	}
	do(t, node, func() error { return h.Forget(Flows{External: []netip.Addr{external}}) }, func() error { return h.Forget(Flows{External: []netip.Addr{external}}) })
	if got := flows(); strings.Contains(got, "dst=192.0.2.56") {
		t.Errorf("not forgotten: %s", got)
	}
}

func TestNames(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	host, peer := VethNames(id)
	for _, name := range []string{BridgeName(id), host, peer} {
		if len(name) > MaxName {
			t.Errorf("%s has %d characters", name, len(name))
		}
	}
	if got := BridgeName("m353"); got != "xip-m353" {
		t.Errorf("short id: %s", got)
	}
	if got := aliasLabel("a-long-parent"); got != "xip" {
		t.Errorf("label %s", got)
	}
}
