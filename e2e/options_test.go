package e2e

import (
	"strings"
	"testing"
)

// TestInternal: nothing passes between an --internal network and what is
// beyond it; within it all is as usual.
func TestInternal(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{plugin: []string{"--pool", "203.0.113.56-203.0.113.62"}})
	lab.docker("network", "create", "-d", "extip", "--internal", "--subnet", "172.29.0.0/16", "-o", "extip.parent="+lab.parent, "vault")
	lab.network("web", "172.31.0.0/16")
	one, two := lab.run("one", "--network", "vault"), lab.run("two", "--network", "vault")
	web := lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	inside := lab.inspectIP("two", "vault")
	lab.outside.Run("ip", "route", "add", "172.29.0.0/16", "via", hostAddr)
	one.Run("ip", "route", "add", "default", "via", "172.29.0.1") // as one could with NET_ADMIN
	ask(t, []question{
		{one, "tcp", inside + ":80", "two saw " + lab.inspectIP("one", "vault")},
		{one, "tcp", outsideAddr + ":80", ""},
		{one, "udp", outsideAddr + ":80", ""},
		{one, "tcp", "203.0.113.56:80", ""},
		{lab.outside, "tcp", inside + ":80", ""},
		{web, "tcp", inside + ":80", ""},
	})
	if got := two.Run("ip", "route"); strings.Contains(got, "default") {
		t.Errorf("a default route: %s", got)
	}
	refused(t, lab, []string{"--internal"}, "--network", "name=vault,driver-opt=extip.address=203.0.113.57")
}

// TestNetworkOptions: what the bridge driver's options do there they do here.
func TestNetworkOptions(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	before := lab.host.Dump()
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62", "com.docker.network.driver.mtu=1400",
		"com.docker.network.bridge.enable_icc=false", "com.docker.network.bridge.name=br-web")
	one := lab.run("one", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	lab.run("two", "--network", "name=web,ip=172.31.7.7,driver-opt=extip.address=203.0.113.57")
	lab.run("host", "--network", "name=web,driver-opt=extip.address=203.0.113.58,driver-opt=extip.egress=host")
	ask(t, []question{
		{one, "tcp", "172.31.7.7:80", ""}, // not directly
		{one, "icmp", "172.31.7.7", ""},
		{one, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
		{lab.outside, "tcp", "203.0.113.57:80", "two saw " + outsideAddr},
		{lab.outside, "tcp", "203.0.113.58:80", "host saw " + outsideAddr},
		{lab.container("host"), "tcp", outsideAddr + ":80", "outside saw " + hostAddr},
	})
	if got := one.Run("ip", "link", "show", "eth0"); !strings.Contains(got, "mtu 1400") {
		t.Errorf("MTU: %s", got)
	}
	if got := lab.host.Run("ip", "link", "show", "br-web"); !strings.Contains(got, "mtu 1400") {
		t.Errorf("MTU: %s", got)
	}
	for words, args := range map[string][]string{
		"extip.pool=nonsense":            {"-o", "extip.pool=nonsense"},
		"extip.parent=eth9":              {"-o", "extip.parent=eth9"},
		"unknown option extip.colour":    {"-o", "extip.colour=blue"},
		"extip.address can be set on":    {"-o", "extip.address=203.0.113.60"},
		"allowed are client and gateway": {"-o", "extip.source=me"},
		"it is the bridge of network":    {"-o", "com.docker.network.bridge.name=br-web"},
		"exists and is not extip's":      {"-o", "com.docker.network.bridge.name=docker0"},
		"need a network with --ipv6":     {"-o", "extip.pool=2001:db8::56"},
		"allowed are fast, rfc5227":      {"-o", "extip.dad=slow"},
		"addresses inside the container": {"-o", "extip.pool=172.28.0.9"},
	} {
		out, err := lab.tryDocker(append(append([]string{"network", "create", "-d", "extip", "--subnet", "172.28.0.0/16"}, args...), "bad")...)
		if err == nil || !strings.Contains(out, words) {
			t.Errorf("%v: %v, %s; want %q", args, err, out, words)
		}
	}
	for words, address := range map[string]string{
		"this host's own": hostAddr, "a gateway": outsideAddr, "the network address": "203.0.113.0", "a broadcast address": "203.0.113.255",
		"inside the container subnet": "172.31.0.99", "is no address": "web", "not an address that others": "127.0.0.1",
	} {
		refused(t, lab, []string{"extip.address=" + address, words}, "--network", "name=web,driver-opt=extip.address="+address)
	}
	lab.docker("rm", "-f", "one", "two", "host")
	lab.docker("network", "rm", "web")
	lab.unchanged(before)
}

// TestTwoNetworks: a container on an extip network and one of the engine's own
// is reached on its external address whichever holds its default route: while
// the other does, it sees its bridge as the client.
func TestTwoNetworks(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	lab.docker("network", "create", "--subnet", "172.30.0.0/16", "aaa") // sorts first, and so takes the default route
	both := lab.run("both", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	sees := func(who string) {
		t.Helper()
		eventually(t, "both sees "+who, func() bool { return lab.outside.Ask("tcp", "203.0.113.56:80") == "both saw "+who })
		ask(t, []question{
			{lab.outside, "udp", "203.0.113.56:80", "both saw " + who},
			{lab.outside, "icmp", "203.0.113.56", "ttl 63"},
		})
	}
	sees(outsideAddr)
	lab.docker("network", "connect", "aaa", "both")
	if got := both.Run("ip", "route"); !strings.Contains(got, "default via 172.30.0.1") {
		t.Errorf("the default route is where it was: %s", got)
	}
	sees("172.31.0.1")
	lab.killPlugin()
	lab.startPlugin()
	sees("172.31.0.1")
	lab.docker("network", "disconnect", "aaa", "both")
	sees(outsideAddr)
	ask(t, []question{{both, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"}})

	// The other way round: one that never had the default route.
	lab.docker("run", "-d", "--name", "late", "--hostname", "late", "--network", "aaa", probeImage, "/probe", "serve", "80")
	lab.docker("network", "connect", "--driver-opt", "extip.address=203.0.113.57", "web", "late")
	eventually(t, "late sees its gateway", func() bool { return lab.outside.Ask("tcp", "203.0.113.57:80") == "late saw 172.31.0.1" })
	lab.docker("rm", "-f", "both", "late")
}
