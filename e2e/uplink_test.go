package e2e

import (
	"strings"
	"testing"

	"github.com/extip/extip/internal/nettest"
)

// TestTwoUplinks: a network on the uplink that is not the host's default one.
// What comes in there is answered there, and what its containers send goes out
// there; the default uplink's networks stay as they are.
func TestTwoUplinks(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) { twoUplinks(t, options{backend: backend}) })
	}
}

func twoUplinks(t *testing.T, o options) {
	lab := newLab(t, o)
	wan := nettest.NamedSegment(t, "wan")
	router := wan.Attach("router", "198.51.100.1/24", "2001:db8:100::1/64")
	// Far away, as far as the host knows: only default routes lead there.
	router.Run("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
	router.Run("ip", "addr", "add", "2001:db8:200::1/128", "dev", "lo")
	router.AwaitIPv6("lo")
	router.Run("ip", "route", "add", "198.51.100.56", "dev", "eth0", "src", "192.0.2.1")
	router.Run("ip", "route", "add", "2001:db8:100::56", "dev", "eth0", "src", "2001:db8:200::1")
	router.Serve(80)
	wan.Plug(lab.host, "eth9", "198.51.100.10/24", "2001:db8:100::10/64")
	lab.host.Sysctl("ipv4.conf.eth9.rp_filter", "1")
	lab.host.Sysctl("ipv6.conf.all.forwarding", "1") // which stays on
	lab.outside.Run("ip", "route", "add", "198.51.100.0/24", "via", hostAddr)
	before := lab.host.Dump()

	create := []string{"network", "create", "-d", "extip", "--subnet", "172.31.0.0/16", "--ipv6", "--subnet", "2001:db8:31::/64",
		"-o", "extip.parent=eth9", "-o", "extip.pool=198.51.100.56-198.51.100.62,2001:db8:100::56-2001:db8:100::5f", "wan"}
	lab.docker(create...)
	lab.network("lan", "172.30.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	second := lab.run("second", "--network", "wan")
	first := lab.run("first", "--network", "lan")
	bad := question{router, "tcp", "198.51.100.56:80", "second saw 192.0.2.1"}
	if got := bad.ask(); got == bad.want {
		t.Error("without a second default route it works already: the test proves nothing")
	}
	eventually(t, "the log says that a route is missing", func() bool { return strings.Contains(lab.pluginLog(), "no default route through it") })
	lab.host.Run("ip", "route", "add", "default", "via", "198.51.100.1", "dev", "eth9", "metric", "200")
	lab.host.Run("ip", "route", "add", "default", "via", "2001:db8:100::1", "dev", "eth9", "metric", "2000")
	eventually(t, "answers leave by their uplink", func() bool { return bad.ask() == bad.want })
	ask(t, []question{
		{router, "udp", "198.51.100.56:80", "second saw 192.0.2.1"},
		{router, "tcp", "[2001:db8:100::56]:80", "second saw 2001:db8:200::1"},
		{second, "tcp", "192.0.2.1:80", "router saw 198.51.100.56"},
		{second, "udp", "[2001:db8:200::1]:80", "router saw 2001:db8:100::56"},
		{lab.outside, "tcp", "203.0.113.56:80", "first saw " + outsideAddr},
		{first, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
		{first, "tcp", "198.51.100.56:80", "second saw 203.0.113.56"},
		{second, "tcp", "203.0.113.56:80", "first saw 198.51.100.56"},
		{second, "tcp", outsideAddr + ":80", "outside saw 198.51.100.56"},
		{lab.host, "tcp", "198.51.100.56:80", "second saw 172.31.0.1"},
	})
	lab.killPlugin()
	lab.startPlugin()
	ask(t, []question{bad, {second, "tcp", "192.0.2.1:80", "router saw 198.51.100.56"}})
	lab.host.Run("ip", "route", "del", "default", "via", "198.51.100.1", "dev", "eth9", "metric", "200")
	lab.host.Run("ip", "route", "del", "default", "via", "2001:db8:100::1", "dev", "eth9", "metric", "2000")
	eventually(t, "nothing is left of the second uplink", func() bool { return !strings.Contains(lab.host.Run("ip", "rule"), "fwmark") })
	lab.docker("rm", "-f", "first", "second")
	lab.docker("network", "rm", "wan", "lan")
	lab.unchanged(before)
}

// TestOneAnswers: the host has another interface on the parent's segment, which
// would answer for external addresses, too.
func TestOneAnswers(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.lan.Plug(lab.host, "eth9", "203.0.113.11/24")
	answers := func(addr string) map[string]bool {
		macs := map[string]bool{}
		for range 12 {
			lab.outside.Run("ip", "neigh", "flush", "dev", "eth0")
			lab.outside.Ping(addr)
			for _, f := range strings.Fields(lab.outside.Run("ip", "neigh", "show", addr)) {
				if strings.Count(f, ":") == 5 {
					macs[f] = true
				}
			}
		}
		return macs
	}
	lab.host.Run("ip", "addr", "add", "203.0.113.99/32", "dev", lab.parent)
	if got := answers("203.0.113.99"); len(got) < 2 {
		t.Skipf("only %v answers anyway", got)
	}
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	lab.run("web", "--network", "web")
	if got := answers("203.0.113.56"); len(got) != 1 || !got[mac(lab.host, lab.parent)] {
		t.Errorf("%v answer for the external address", got)
	}
	if got := answers("203.0.113.11"); !got[mac(lab.host, "eth9")] {
		t.Errorf("%v answer for the other interface's own address", got)
	}
}

// TestDefaultParent: a network whose parent nobody named follows the default
// route.
func TestDefaultParent(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	other := nettest.NamedSegment(t, "wan")
	router := other.Attach("router", "198.51.100.1/24")
	other.Plug(lab.host, "eth9", "198.51.100.10/24")
	lab.docker("network", "create", "-d", "extip", "--subnet", "172.31.0.0/16", "-o", "extip.pool=198.51.100.56-198.51.100.62", "web")
	lab.run("web", "--network", "web")
	if got := router.Ask("tcp", "198.51.100.56:80"); got != "" {
		t.Errorf("before: %s", got)
	}
	lab.host.Run("ip", "route", "replace", "default", "via", "198.51.100.1", "dev", "eth9")
	eventually(t, "the address is where the default route leads", func() bool { return router.Ask("tcp", "198.51.100.56:80") == "web saw 198.51.100.1" })
	if addrs := lab.host.Run("ip", "addr", "show", "dev", lab.parent); strings.Contains(addrs, "198.51.100.56") {
		t.Errorf("it is still on %s: %s", lab.parent, addrs)
	}
}
