package link

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extip/extip/internal/nettest"
)

// TestBarrier: with no firewall at all, the host answers on an address that it
// has; behind the barrier it doesn't, nor is it found out by ports, while
// neighbours still find the address, and what is translated still passes. An
// address of the host's own within a prefix is spared.
func TestBarrier(t *testing.T) {
	nettest.RequireTool(t, "nft")
	lan, host, h := newHost(t, "192.0.2.2/24", "2001:db8::2/64")
	peer := lan.Attach("peer", "192.0.2.9/24", "2001:db8::9/64")
	host.Serve(22)
	do(t, host, func() error { return h.EnsureAlias("eth0", external) }, func() error { return h.EnsureAlias("eth0", external6) })
	host.Bridge("br0", "172.31.0.1/16", "2001:db8:31::1/64")
	host.Sysctl("ipv4.ip_forward", "1")
	host.Sysctl("ipv6.conf.all.forwarding", "1")
	web := host.Container("web", "br0", "172.31.0.2/16", "172.31.0.1")
	web.Run("ip", "addr", "add", "2001:db8:31::2/64", "dev", "eth0", "nodad")
	web.Run("ip", "route", "add", "default", "via", "2001:db8:31::1")
	web.Serve(22)
	prefixes := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25"), netip.MustParsePrefix("2001:db8::/64")}
	rules := func() string { return host.Run("ip", "rule") + host.Run("ip", "-6", "rule") }
	bar := func(prefixes []netip.Prefix, want int) {
		t.Helper()
		do(t, host, func() error {
			would, err := h.CheckBar(prefixes)
			if err != nil {
				return err
			}
			changed, err := h.Bar(prefixes)
			if fmt.Sprint(would) != fmt.Sprint(changed) || len(changed) != want {
				t.Errorf("changed %q, and said before that it would %q; want %d lines", changed, would, want)
			}
			return err
		}, func() error {
			if again, err := h.Bar(prefixes); len(again) > 0 || err != nil {
				t.Errorf("again: %q, %v", again, err)
			}
			return nil
		})
	}
	type answers map[string]string
	// The host's service over UDP names the interface by which it was asked.
	const named = "udp 192.0.2.56:22"
	expect := func(when string, want answers) {
		t.Helper()
		peer.Run("ip", "neigh", "flush", "dev", "eth0")
		got := answers{}
		for what := range want {
			if network, addr, _ := strings.Cut(what, " "); network != "icmp" {
				got[what] = peer.Ask(network, addr)
			} else if peer.Ping(addr) > 0 {
				got[what] = "an answer"
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s (-want +got):\n%s", when, cmp.Diff(want, got))
		}
	}
	all := func(ext, ext6 string) answers {
		return answers{
			"tcp 192.0.2.56:22": ext, named: ext, "tcp [2001:db8::56]:22": ext6, "udp [2001:db8::56]:22": ext6,
			"icmp 192.0.2.56": "an answer", "icmp 2001:db8::56": "an answer",
			"tcp 192.0.2.2:22": "host saw 192.0.2.9", "udp [2001:db8::2]:22": "host saw 2001:db8::9",
		}
	}
	before := rules()
	expect("without a barrier", all("host saw 192.0.2.9", "host saw 2001:db8::9"))
	bar(prefixes, 8)
	for _, check := range []string{"0", "1"} { // of ARP's senders, too
		host.Sysctl("ipv4.conf.eth0.rp_filter", check)
		want := all("", "")
		want[named] = "host saw 192.0.2.9"
		expect("with one, rp_filter="+check, want)
	}

	host.Run("nft", `table ip t {
		chain in { type nat hook prerouting priority -110; ip daddr 192.0.2.56 dnat to 172.31.0.2; }
		chain local { type nat hook output priority -110; ip daddr 192.0.2.56 dnat to 172.31.0.2; }
		chain out { type nat hook postrouting priority 90; oifname br0 fib saddr type local masquerade; }
		chain check { type filter hook prerouting priority -300; fib saddr . mark . iif oif missing drop; }
	}
	table ip6 t {
		chain in { type nat hook prerouting priority -110; ip6 daddr 2001:db8::56 dnat to 2001:db8:31::2; }
		chain local { type nat hook output priority -110; ip6 daddr 2001:db8::56 dnat to 2001:db8:31::2; }
		chain out { type nat hook postrouting priority 90; oifname br0 fib saddr type local masquerade; }
	}`)
	host.Run("ip6tables", "-t", "raw", "-A", "PREROUTING", "-m", "rpfilter", "--invert", "-j", "DROP")
	expect("with translation, and others' checks of where packets come from", all("web saw 192.0.2.9", "web saw 2001:db8::9"))
	for addr, want := range map[string]string{"192.0.2.56:22": "web saw 172.31.0.1", "[2001:db8::56]:22": "web saw 2001:db8:31::1"} {
		if got := host.Ask("tcp", addr); got != want {
			t.Errorf("the host asks %s: %q, want %q", addr, got, want)
		}
	}

	host.Run("ip", "addr", "add", "192.0.2.3/24", "dev", "eth0")
	bar(prefixes, 1)
	expect("with another address of its own", answers{"tcp 192.0.2.3:22": "host saw 192.0.2.9"})
	host.Run("ip", "addr", "del", "192.0.2.3/24", "dev", "eth0")
	bar(prefixes, 1)
	host.Run("ip", "rule", "del", "pref", "11900")
	bar(prefixes, 1)
	bar(prefixes[:1], 4)
	do(t, host, func() error { _, err := h.Bar(nil); return err })
	if after := rules(); after != before {
		t.Errorf("rules\n%s\nwere\n%s", after, before)
	}
}
