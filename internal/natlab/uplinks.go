package natlab

import (
	"testing"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// RunUplinks shows that a network's mark takes its packets to a parent of its
// own, with a rule of policy routing that looks at it, and that without the
// mark they go astray. The far machine is there twice, so that a packet on the
// wrong way is answered by name.
//
//	one 198.51.100.9 ─── eth0 host eth1 ─── two 198.51.100.9
//	                         host ┬ br1 172.30.1.1   c1 203.0.113.1, an address on eth1
//	                              └ br2 172.30.2.1   c2
//
// open makes a backend on the host. There is no foreign firewall.
func RunUplinks(t *testing.T, open func(*nettest.Node) nat.Backend) {
	first, second := nettest.NamedSegment(t, "lan1"), nettest.NamedSegment(t, "lan2")
	host := first.Attach("host", "192.0.2.2/24", "2001:db8:1::2/64")
	second.Plug(host, "eth1", "203.0.113.254/24", "2001:db8:cafe::fe/64")
	one := first.Attach("one", "192.0.2.1/24", "2001:db8:1::1/64")
	two := second.Attach("two", "203.0.113.253/24", "2001:db8:cafe::fd/64")
	for _, far := range []*nettest.Node{one, two} {
		far.Run("ip", "addr", "add", "198.51.100.9/32", "dev", "lo")
		far.Run("ip", "addr", "add", "2001:db8:f::9/128", "dev", "lo")
		far.AwaitIPv6("lo")
		far.Serve(80)
	}
	one.Run("ip", "route", "add", "203.0.113.0/24", "via", "192.0.2.2")
	one.Run("ip", "route", "add", "2001:db8:cafe::/64", "via", "2001:db8:1::2")
	two.Run("ip", "route", "add", "203.0.113.1/32", "dev", "eth0", "src", "198.51.100.9")
	two.Run("ip", "route", "add", "2001:db8:cafe::1/128", "dev", "eth0", "src", "2001:db8:f::9")

	l := &Lab{Host: host, nodes: map[string]*nettest.Node{"one": one, "two": two}, t: t}
	host.Sysctl("ipv4.ip_forward", "1")
	host.Sysctl("ipv6.conf.all.forwarding", "1")
	host.Run("ip", "addr", "add", "203.0.113.1/32", "dev", "eth1", "scope", "host")
	host.Run("ip", "addr", "add", "2001:db8:cafe::1/128", "dev", "eth1", "nodad", "preferred_lft", "0")
	host.AwaitAsked("eth1", "2001:db8:cafe::1/128")
	l.bridge("br1", "172.30.1.", "2001:db8:30:1::", map[string]string{"c1": "2"})
	l.bridge("br2", "172.30.2.", "2001:db8:30:2::", map[string]string{"c2": "2"})
	l.nodes["c1"].Serve(80)
	for _, version := range []struct{ ip, gw1, gw2 string }{{"-4", "192.0.2.1", "203.0.113.253"}, {"-6", "2001:db8:1::1", "2001:db8:cafe::fd"}} {
		host.Run("ip", version.ip, "route", "add", "default", "via", version.gw1)
		host.Run("ip", version.ip, "route", "add", "default", "via", version.gw2, "table", "107")
		host.Run("ip", version.ip, "rule", "add", "fwmark", "7", "lookup", "107")
	}

	st := nat.State{
		Networks: []nat.Network{
			{ID: "n1", Bridge: "br1", Uplinks: []string{"eth1"}, Subnets: prefixes("172.30.1.0/24", "2001:db8:30:1::/64")},
			{ID: "n2", Bridge: "br2", Uplinks: []string{"eth0"}, Subnets: prefixes("172.30.2.0/24", "2001:db8:30:2::/64")},
		},
		Mappings: []nat.Mapping{
			mapping("c1", "203.0.113.1", "172.30.1.2"), mapping("c1", "2001:db8:cafe::1", "2001:db8:30:1::2"),
		},
	}
	b := open(host)
	if _, err := b.Sync(st); err != nil {
		t.Fatal(err)
	}
	unmarked := []Probe{
		{"c2", "tcp", "198.51.100.9:80", "one saw 192.0.2.2"},
		{"c2", "udp", "[2001:db8:f::9]:80", "one saw 2001:db8:1::2"},
	}
	astray := append([]Probe{
		{"two", "tcp", "203.0.113.1:80", ""}, {"two", "udp", "203.0.113.1:80", ""},
		{"two", "tcp", "[2001:db8:cafe::1]:80", ""}, {"two", "udp", "[2001:db8:cafe::1]:80", ""},
		{"c1", "tcp", "198.51.100.9:80", "one saw 203.0.113.1"},
		{"c1", "tcp", "[2001:db8:f::9]:80", "one saw 2001:db8:cafe::1"},
	}, unmarked...)
	right := append([]Probe{
		// Answers.
		{"two", "tcp", "203.0.113.1:80", "c1 saw 198.51.100.9"}, {"two", "udp", "203.0.113.1:80", "c1 saw 198.51.100.9"},
		{"two", "ping", "203.0.113.1", ping(past)},
		{"two", "tcp", "[2001:db8:cafe::1]:80", "c1 saw 2001:db8:f::9"}, {"two", "udp", "[2001:db8:cafe::1]:80", "c1 saw 2001:db8:f::9"},
		{"two", "ping", "2001:db8:cafe::1", ping(past)},
		// What the container begins.
		{"c1", "tcp", "198.51.100.9:80", "two saw 203.0.113.1"},
		{"c1", "udp", "198.51.100.9:80", "two saw 203.0.113.1"},
		{"c1", "tcp", "[2001:db8:f::9]:80", "two saw 2001:db8:cafe::1"},
		{"c1", "udp", "[2001:db8:f::9]:80", "two saw 2001:db8:cafe::1"},
	}, unmarked...)

	l.Check(t, "without a mark", astray)
	for _, step := range []struct {
		what string
		mark uint32
		want []Probe
	}{{"marked", 7, right}, {"with a mark nobody looks at", 8, astray}, {"marked again", 7, right}, {"no longer marked", 0, astray}} {
		st.Networks[0].Mark = step.mark
		if err := b.AddNetwork(st.Networks[0]); err != nil {
			t.Fatal(err)
		}
		l.Check(t, step.what, step.want)
	}
}
