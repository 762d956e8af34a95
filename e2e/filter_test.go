package e2e

import "testing"

// TestFilters: what may be reached of an external address, and by whom.
func TestFilters(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) { filters(t, options{backend: backend}) })
	}
}

func filters(t *testing.T, o options) {
	lab := newLab(t, o)
	friend := lab.lan.Attach("friend", "203.0.113.201/24", "2001:db8::201/64")
	lab.dual("web", "172.31.0.0/16", "2001:db8:31::/64", "extip.pool=203.0.113.56-203.0.113.62,2001:db8::56-2001:db8::5f", "extip.ports=tcp/80")
	few := lab.run("few", "--network", `name=web,"driver-opt=extip.address=203.0.113.56,2001:db8::56"`)
	lab.run("friends", "--network", `name=web,"driver-opt=extip.address=203.0.113.57,2001:db8::57",driver-opt=extip.ports=all,"driver-opt=extip.allow=203.0.113.201,2001:db8::201"`)
	lab.run("open", "--network", `name=web,"driver-opt=extip.address=203.0.113.58,2001:db8::58","driver-opt=extip.ports=tcp/8080,udp/80,icmp",driver-opt=extip.refuse=reject`)
	works := func() {
		t.Helper()
		ask(t, []question{
			{lab.outside, "tcp", "203.0.113.56:80", "few saw " + outsideAddr},
			{lab.outside, "tcp", "203.0.113.56:8080", ""},
			{lab.outside, "udp", "203.0.113.56:80", ""},
			{lab.outside, "icmp", "203.0.113.56", ""},
			{lab.outside, "tcp", "[2001:db8::56]:80", "few saw " + outsideAddr6},
			{lab.outside, "tcp", "[2001:db8::56]:8080", ""},
			{lab.outside, "icmp", "2001:db8::56", ""},
			// What the container opens itself is not filtered.
			{few, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
			{few, "udp", outsideAddr + ":80", "outside saw 203.0.113.56"},
			{few, "udp", "[" + outsideAddr6 + "]:80", "outside saw 2001:db8::56"},
			{few, "icmp", outsideAddr, "ttl 63"},

			{friend, "tcp", "203.0.113.57:8080", "friends saw 203.0.113.201"},
			{friend, "udp", "[2001:db8::57]:80", "friends saw 2001:db8::201"},
			{lab.outside, "tcp", "203.0.113.57:80", ""},
			{lab.outside, "tcp", "[2001:db8::57]:80", ""},
			{lab.outside, "icmp", "203.0.113.57", ""},
			{few, "tcp", "203.0.113.57:80", ""}, // a sibling is no friend

			{lab.outside, "tcp", "203.0.113.58:8080", "open saw " + outsideAddr},
			{lab.outside, "udp", "[2001:db8::58]:80", "open saw " + outsideAddr6},
			{lab.outside, "icmp", "203.0.113.58", "ttl 63"},
			{lab.outside, "icmp", "2001:db8::58", "ttl 63"},
			{lab.outside, "tcp", "203.0.113.58:80", ""},
		})
	}
	works()
	running := lab.host.Dump()
	lab.killPlugin()
	lab.startPlugin()
	lab.unchanged(running)
	lab.must("nft", "flush", "ruleset")
	eventually(t, "the rules are back", func() bool {
		return lab.outside.Ask("tcp", "203.0.113.56:80") != "" && lab.outside.Ask("tcp", "[2001:db8::56]:80") != ""
	})
	works()
	// Changed while it runs: a conversation that was allowed ends at once.
	in := startFlow(t, lab.outside, "203.0.113.58:80")
	lab.extip("ports", "open", "tcp/8080,icmp")
	ask(t, []question{
		{lab.outside, "udp", "203.0.113.58:80", ""},
		{lab.outside, "tcp", "203.0.113.58:8080", "open saw " + outsideAddr},
	})
	n := in.answered.Load()
	ask(t, []question{{lab.outside, "udp", "203.0.113.58:80", ""}})
	if more := in.answered.Load() - n; more > 0 {
		t.Errorf("%d more answers after the change", more)
	}
	in.end()
	lab.extip("ports", "open", "all")
	lab.extip("allow", "open", "203.0.113.201,2001:db8::201")
	ask(t, []question{
		{friend, "udp", "203.0.113.58:80", "open saw 203.0.113.201"},
		{lab.outside, "tcp", "203.0.113.58:80", ""},
	})
	lab.docker("rm", "-f", "few", "friends", "open")
}
