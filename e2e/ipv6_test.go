package e2e

import (
	"strings"
	"testing"
)

// TestIPv6 is the traffic table for IPv6, beside IPv4 on the same containers.
func TestIPv6(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) { ipv6(t, options{backend: backend}) })
	}
}

func ipv6(t *testing.T, o options) {
	lab := newLab(t, o)
	lab.host.Serve(80)
	before := lab.host.Dump()
	lab.dual("web", "172.31.0.0/16", "2001:db8:31::/64", "extip.pool=203.0.113.56-203.0.113.62,2001:db8::56-2001:db8::5f")
	lab.dual("db", "172.30.0.0/16", "2001:db8:30::/64", "extip.pool=2001:db8::60-2001:db8::6f")
	web := lab.run("web", "--network", "name=web,\"driver-opt=extip.address=203.0.113.56,2001:db8::56,203.0.113.57,2001:db8::57\"")
	auto := lab.run("auto", "--network", "name=web")
	bare := lab.run("bare", "--network", "name=web,driver-opt=extip.address=none")
	db := lab.run("db", "--network", "name=db,driver-opt=extip.address=2001:db8::60")
	inside := lab.docker("inspect", "-f", "{{.NetworkSettings.Networks.web.GlobalIPv6Address}}", "web")
	lab.outside.Run("ip", "route", "add", "2001:db8:31::/64", "via", hostAddr6)
	ask(t, []question{
		{lab.outside, "tcp", "[2001:db8::56]:80", "web saw " + outsideAddr6},
		{lab.outside, "udp", "[2001:db8::56]:80", "web saw " + outsideAddr6},
		{lab.outside, "tcp", "[2001:db8::57]:8080", "web saw " + outsideAddr6},
		{lab.outside, "tcp", "203.0.113.57:80", "web saw " + outsideAddr},
		{lab.outside, "icmp", "2001:db8::56", "ttl 63"},
		{lab.outside, "tcp", "[2001:db8::60]:80", "db saw " + outsideAddr6},
		{lab.outside, "tcp", "[" + hostAddr6 + "]:80", "host saw " + outsideAddr6},

		{web, "tcp", "[" + outsideAddr6 + "]:80", "outside saw 2001:db8::56"},
		{web, "udp", "[" + outsideAddr6 + "]:80", "outside saw 2001:db8::56"},
		{web, "icmp", outsideAddr6, "ttl 63"},
		{web, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
		{bare, "tcp", "[" + outsideAddr6 + "]:80", "outside saw " + hostAddr6},
		{lab.host, "tcp", "[" + outsideAddr6 + "]:80", "outside saw " + hostAddr6},

		{web, "tcp", "[2001:db8::56]:80", "web saw 2001:db8::56"},
		{db, "tcp", "[2001:db8::56]:80", "web saw 2001:db8::60"},
		{bare, "udp", "[2001:db8::57]:80", "web saw 2001:db8:31::1"},
		{lab.host, "tcp", "[2001:db8::56]:80", "web saw 2001:db8:31::1"},

		{lab.outside, "tcp", "[" + inside + "]:80", ""},
		{db, "tcp", "[" + inside + "]:80", ""},
		{lab.outside, "tcp", "[2001:db8::5f]:80", ""},
	})
	external := ""
	for line := range strings.Lines(lab.host.Run("ip", "-6", "-o", "addr", "show", "dev", lab.parent)) {
		if fields := strings.Fields(line); strings.HasSuffix(fields[3], "/128") {
			external += fields[3] + " "
			if !strings.Contains(line, "deprecated") {
				t.Errorf("the host may use it as its source: %s", line)
			}
		}
	}
	if n := strings.Count(external, "/128"); n != 4 {
		t.Errorf("external addresses: %s", external)
	}
	running := lab.host.Dump()
	in := startFlow(t, lab.outside, "[2001:db8::56]:80")
	lab.killPlugin()
	lab.startPlugin()
	lab.unchanged(running)
	lostNone(t, "a killed plugin", map[string]*flow{"in": in})
	for _, damage := range [][]string{{"nft", "flush", "ruleset"}, {"ip", "-6", "addr", "flush", "dev", lab.parent}} {
		lab.must(damage...)
		if damage[0] == "ip" {
			lab.host.Run("ip", "addr", "add", hostAddr6+"/64", "dev", lab.parent, "nodad")
			lab.host.Run("ip", "route", "replace", "default", "via", outsideAddr6)
		}
		eventually(t, "IPv6 works again", func() bool {
			return lab.outside.Ask("tcp", "[2001:db8::56]:80") == "web saw "+outsideAddr6 && auto.Ask("tcp", "["+outsideAddr6+"]:80") != ""
		})
	}
	lab.docker("rm", "-f", "web", "auto", "bare", "db")
	lab.docker("network", "rm", "web", "db")
	// The engine's own rules were flushed.
	if strings.Contains(lab.host.Dump(), "xip") || strings.Contains(lab.host.Dump(), "extip") {
		t.Errorf("left: %s", difference(before, lab.host.Dump()))
	}
}

// TestIPv6Only: engines since 28 make networks without IPv4.
func TestIPv6Only(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	if v := lab.docker("version", "-f", "{{.Server.APIVersion}}"); v < "1.48" {
		t.Skipf("this engine, API %s, has no networks without IPv4", v)
	}
	lab.docker("network", "create", "-d", "extip", "--ipv4=false", "--ipv6", "--subnet", "2001:db8:31::/64",
		"-o", "extip.parent="+lab.parent, "-o", "extip.pool=2001:db8::56-2001:db8::5f", "six")
	six := lab.run("six", "--network", "name=six")
	ask(t, []question{
		{lab.outside, "tcp", "[2001:db8::56]:80", "six saw " + outsideAddr6},
		{six, "udp", "[" + outsideAddr6 + "]:80", "outside saw 2001:db8::56"},
	})
	if got := six.Run("ip", "-4", "addr", "show", "dev", "eth0"); strings.Contains(got, "inet ") {
		t.Errorf("IPv4: %s", got)
	}
	lab.docker("rm", "-f", "six")
	lab.docker("network", "rm", "six")
}
