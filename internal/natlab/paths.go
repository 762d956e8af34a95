package natlab

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// A paths is a host at some distance from its clients, with a narrow link on
// the way and a narrower one behind it.
//
//	far ── b ══ 1300 ══ a ── host ┬ br1        c1, g1: Gateway
//	                              ├ br2 1280   c2
//	                              └ br6        c6: IPv6 only
type paths struct {
	*Lab
	far, a, b *nettest.Node
}

const (
	narrow   = 1300
	narrower = 1280 // the least that IPv6 allows
)

// A pathView is a family's addresses in a paths.
type pathView struct {
	version    string // option of ip
	far        string
	a, b       string // as seen from the host's side
	aOut, bOut string // from the other
	bridge     string
	c1, g1, c2 string // external
	full       int    // UDP payload of a packet of 1500 bytes
}

// RunPaths has ICMP errors and large packets cross the host in all directions,
// in both families. open makes a backend on the host. There is no foreign
// firewall.
func RunPaths(t *testing.T, open func(*nettest.Node) nat.Backend) {
	p := newPaths(t)
	b := open(p.Host)
	only6 := nat.State{
		Networks: []nat.Network{{ID: "n6", Bridge: "br6", Uplinks: []string{"eth0"}, Subnets: prefixes("2001:db8:36::/64")}},
		Mappings: []nat.Mapping{mapping("c6", "2001:db8:1::56", "2001:db8:36::2")},
	}
	sync := func(st nat.State) {
		t.Helper()
		if _, err := b.Sync(st); err != nil {
			t.Fatal(err)
		}
	}
	sync(only6)
	p.checkOnly6(t)

	all := nat.State{
		Networks: append([]nat.Network{
			{ID: "n1", Bridge: "br1", Uplinks: []string{"eth0"}, Subnets: prefixes("172.31.1.0/24", "2001:db8:31::/64")},
			{ID: "n2", Bridge: "br2", Uplinks: []string{"eth0"}, Subnets: prefixes("172.31.2.0/24", "2001:db8:32::/64")},
		}, only6.Networks...),
		Mappings: append([]nat.Mapping{
			mapping("c1", "192.0.2.51", "172.31.1.2"), mapping("c1", "2001:db8:1::51", "2001:db8:31::2"),
			mapping("g1", "192.0.2.52", "172.31.1.3"), mapping("g1", "2001:db8:1::52", "2001:db8:31::3"),
			mapping("c2", "192.0.2.53", "172.31.2.2"), mapping("c2", "2001:db8:1::53", "2001:db8:32::2"),
		}, only6.Mappings...),
	}
	all.Mappings[2].Gateway, all.Mappings[3].Gateway = true, true
	views := []pathView{{
		version: "-4", far: "198.51.100.9", a: "192.0.2.1", b: "203.0.113.2", aOut: "203.0.113.1", bOut: "198.51.100.1",
		bridge: "172.31.1.1", c1: "192.0.2.51", g1: "192.0.2.52", c2: "192.0.2.53", full: 1500 - 28,
	}, {
		version: "-6", far: "2001:db8:3::9", a: "2001:db8:1::1", b: "2001:db8:2::2", aOut: "2001:db8:2::1", bOut: "2001:db8:3::1",
		bridge: "2001:db8:31::1", c1: "2001:db8:1::51", g1: "2001:db8:1::52", c2: "2001:db8:1::53", full: 1500 - 48,
	}}
	sync(all)
	for _, x := range views {
		p.checkErrors(t, x)
		p.checkBulk(t, x)
	}
	p.checkNeighbours(t)

	// Filters let pass errors about what they allow, and whoever asks for a
	// neighbour.
	for i := range all.Mappings {
		all.Mappings[i].Filter = &nat.Filter{Ports: []nat.Ports{port(tcp, 1, 81), port(udp, 1, 81)}}
	}
	sync(all)
	for _, x := range views {
		if got := p.far.Ping(x.c1); got != 0 {
			t.Errorf("%s: echo passes the filter", x.c1)
		}
		p.checkBulk(t, x)
	}
	p.checkNeighbours(t)
}

func newPaths(t *testing.T) *paths {
	lan, mid, wan := nettest.NamedSegment(t, "lan"), nettest.NamedSegment(t, "mid"), nettest.NamedSegment(t, "wan")
	p := &paths{Lab: &Lab{nodes: map[string]*nettest.Node{}, t: t}}
	p.Host = lan.Attach("host", "192.0.2.2/24", "2001:db8:1::2/64")
	p.a = lan.Attach("a", "192.0.2.1/24", "2001:db8:1::1/64")
	mid.Plug(p.a, "eth1", "203.0.113.1/24", "2001:db8:2::1/64")
	p.b = mid.Attach("b", "203.0.113.2/24", "2001:db8:2::2/64")
	wan.Plug(p.b, "eth1", "198.51.100.1/24", "2001:db8:3::1/64")
	p.far = wan.Attach("far", "198.51.100.9/24", "2001:db8:3::9/64")
	p.nodes["far"] = p.far
	p.a.Run("ip", "link", "set", "eth1", "mtu", fmt.Sprint(narrow))
	p.b.Run("ip", "link", "set", "eth0", "mtu", fmt.Sprint(narrow))
	for _, n := range []*nettest.Node{p.Host, p.a, p.b} {
		n.Sysctl("ipv4.ip_forward", "1")
		n.Sysctl("ipv6.conf.all.forwarding", "1")
	}
	for _, hop := range []struct {
		n        *nettest.Node
		gw4, gw6 string
	}{{p.Host, "192.0.2.1", "2001:db8:1::1"}, {p.a, "203.0.113.2", "2001:db8:2::2"}, {p.b, "203.0.113.1", "2001:db8:2::1"}, {p.far, "198.51.100.1", "2001:db8:3::1"}} {
		hop.n.Run("ip", "route", "add", "default", "via", hop.gw4)
		hop.n.Run("ip", "route", "add", "default", "via", hop.gw6)
	}
	p.bridge("br1", "172.31.1.", "2001:db8:31::", map[string]string{"c1": "2", "g1": "3"})
	p.bridge("br2", "172.31.2.", "2001:db8:32::", map[string]string{"c2": "2"})
	p.bridge("br6", "172.31.6.", "2001:db8:36::", map[string]string{"c6": "2"})
	for _, dev := range []string{"vc2", "br2"} {
		p.Host.Run("ip", "link", "set", dev, "mtu", fmt.Sprint(narrower))
	}
	p.nodes["c2"].Run("ip", "link", "set", "eth0", "mtu", fmt.Sprint(narrower))
	for i := 1; i <= 6; i++ {
		p.Host.Run("ip", "addr", "add", fmt.Sprintf("192.0.2.5%d/32", i), "dev", "eth0", "scope", "host")
		p.Host.Run("ip", "addr", "add", fmt.Sprintf("2001:db8:1::5%d/128", i), "dev", "eth0", "nodad", "preferred_lft", "0")
		p.Host.AwaitAsked("eth0", fmt.Sprintf("2001:db8:1::5%d/128", i))
	}
	p.nodes["host"], p.nodes["a"], p.nodes["b"] = p.Host, p.a, p.b
	for _, n := range p.nodes {
		n.Serve(80)
		n.ServeBulk(81)
		// Errors are asked for faster than a router tells them.
		n.Sysctl("ipv4.icmp_ratelimit", "0")
		n.Sysctl("ipv6.icmp.ratelimit", "0")
	}
	return p
}

// checkOnly6: a network without IPv4 works, and nothing of ours is in IPv4.
func (p *paths) checkOnly6(t *testing.T) {
	p.Check(t, "IPv6 only", []Probe{
		{"far", "tcp", "[2001:db8:1::56]:80", "c6 saw 2001:db8:3::9"},
		{"far", "udp", "[2001:db8:1::56]:80", "c6 saw 2001:db8:3::9"},
		{"far", "ping", "2001:db8:1::56", ping(near - 3)},
		{"c6", "tcp", "[2001:db8:3::9]:80", "far saw 2001:db8:1::56"},
		{"c6", "ping", "2001:db8:3::9", ping(near - 3)},
	})
	for _, list := range []string{"nft list ruleset ip", "iptables-nft-save", "iptables-legacy-save"} {
		out, err := p.Host.Command(strings.Fields(list)...).Output()
		if strings.Contains(string(out), "extip") {
			t.Errorf("%s, with a network of IPv6 only: %v\n%s", list, err, out)
		}
	}
}

// join is an address with a port.
func join(addr string, port int) string {
	if strings.Contains(addr, ":") {
		return fmt.Sprintf("[%s]:%d", addr, port)
	}
	return fmt.Sprintf("%s:%d", addr, port)
}

// checkErrors: who sends a datagram hears what became of it, in words about
// the address that it sent it to, from whom it knows.
func (p *paths) checkErrors(t *testing.T, x pathView) {
	p.Check(t, "echo", []Probe{
		{"far", "ping", x.c1, ping(near - 3)},
		{"c1", "ping", x.far, ping(near - 3)},
	})
	const closed, small = 9, 100
	c1, far := p.nodes["c1"], p.far
	for _, tt := range []struct {
		from      *nettest.Node
		to        string
		port      int
		size, ttl int
		want      string
	}{
		// In: along the way, at the host, at the container. What the host
		// says, too, comes from the address that was asked.
		{far, x.c1, 80, small, 1, "expired, says " + x.bOut},
		{far, x.c1, 80, small, 2, "expired, says " + x.aOut},
		{far, x.c1, 80, small, 3, "expired, says " + x.c1},
		{far, x.c1, closed, small, 4, "port unreachable, says " + x.c1},
		{far, x.g1, 80, small, 3, "expired, says " + x.g1},
		{far, x.g1, closed, small, 64, "port unreachable, says " + x.g1},
		{far, x.c1, 80, x.full, 64, fmt.Sprintf("too big %d, says %s", narrow, x.bOut)},
		{far, x.c2, 80, x.full - (1500 - narrow), 64, fmt.Sprintf("too big %d, says %s", narrower, x.c2)},
		// Out.
		{c1, x.far, 80, small, 1, "expired, says " + x.bridge},
		{c1, x.far, 80, small, 2, "expired, says " + x.a},
		{c1, x.far, 80, small, 3, "expired, says " + x.b},
		{c1, x.far, closed, small, 4, "port unreachable, says " + x.far},
		{c1, x.far, 80, x.full, 64, fmt.Sprintf("too big %d, says %s", narrow, x.a)},
		// Between containers, by external address.
		{c1, x.c2, closed, small, 64, "port unreachable, says " + x.c2},
		{c1, x.c2, 80, x.full, 64, fmt.Sprintf("too big %d, says %s", narrower, x.c2)},
		{c1, x.g1, closed, small, 64, "port unreachable, says " + x.g1},
	} {
		want := tt.want + " of " + tt.to
		if got := tt.from.Patient().Provoke(join(tt.to, tt.port), tt.size, tt.ttl); got != want {
			t.Errorf("%s sends %d bytes to %s with ttl %d: got %q, want %q", tt.from.Name, tt.size, join(tt.to, tt.port), tt.ttl, got, want)
		}
	}
}

// checkBulk: what a container sends fits through the narrow link, because it
// was told of it. Without the errors it would not.
func (p *paths) checkBulk(t *testing.T, x pathView) {
	c1 := p.nodes["c1"]
	learnt := fmt.Sprintf("mtu %d", narrow)
	forget := func() {
		for _, n := range p.nodes {
			n.Run("ip", x.version, "route", "flush", "cache")
		}
	}
	path := func() string { return c1.Run("ip", x.version, "route", "get", x.far) }
	forget()
	mute := map[string][]string{
		"-4": {"iptables-nft", "-t", "raw", "-A", "OUTPUT", "-p", "icmp", "--icmp-type", "fragmentation-needed", "-j", "DROP"},
		"-6": {"ip6tables-nft", "-t", "raw", "-A", "OUTPUT", "-p", "icmpv6", "--icmpv6-type", "packet-too-big", "-j", "DROP"},
	}[x.version]
	p.a.Run(mute...)
	if got := p.far.Fetch(join(x.c1, 81)); got == nettest.Bulk || strings.Contains(path(), learnt) {
		t.Errorf("with a router that does not say what is too big: %d bytes, %s", got, path())
	}
	mute[3] = "-D"
	p.a.Run(mute...)
	if got := p.far.Patient().Fetch(join(x.c1, 81)); got != nettest.Bulk || !strings.Contains(path(), learnt) {
		t.Errorf("got %d bytes, want %d; the container's path: %s", got, nettest.Bulk, path())
	}
	large := []Probe{
		{"far", "big", join(x.c1, 80), "c1 saw " + x.far + " send 5000 bytes"},
		{"far", "big", join(x.c2, 80), "c2 saw " + x.far + " send 5000 bytes"},
		{"c1", "big", join(x.far, 80), "far saw " + x.c1 + " send 5000 bytes"},
	}
	// Of IPv6, each narrow link on the way costs a datagram.
	for range 2 {
		p.ask(large, func(Probe) bool { return false })
	}
	p.Check(t, "large datagrams", large)
}

// checkNeighbours: the host answers for the external address whoever asks
// everybody and whoever asks it.
func (p *paths) checkNeighbours(t *testing.T) {
	const external = "2001:db8:1::51"
	_, mac, _ := strings.Cut(p.Host.Run("ip", "-o", "link", "show", "eth0"), "link/ether ")
	mac, _, _ = strings.Cut(mac, " ")
	p.a.Run("ip", "neigh", "flush", "dev", "eth0")
	ask := func() string { return p.far.Patient().Ask("udp", join(external, 80)) }
	if got := ask(); got != "c1 saw 2001:db8:3::9" {
		t.Errorf("after asking everybody: %q", got)
	}
	neighbour := func() string { return p.a.Run("ip", "neigh", "show", external, "dev", "eth0") }
	if got := neighbour(); !strings.Contains(got, mac) {
		t.Errorf("neighbour is %s, want %s", got, mac)
	}
	// Who knows an address but not since when asks there, not everybody.
	p.a.Sysctl("ipv6.neigh.eth0.delay_first_probe_time", "0")
	p.a.Run("ip", "neigh", "change", external, "lladdr", mac, "dev", "eth0", "nud", "stale")
	ask()
	for end := time.Now().Add(time.Minute); !strings.Contains(neighbour(), "REACHABLE"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after asking the host: %s", neighbour())
		}
	}
}
