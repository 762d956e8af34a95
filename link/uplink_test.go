package link

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nettest"
	"github.com/google/go-cmp/cmp"
)

// uplinked is a host with two ways out, of which the second leads to a client
// far away, and a container with external addresses on the second:
//
//	(192.0.2.1) ── eth0 host up2 ── router ── far
//	                      │
//	                     web
type uplinked struct {
	*testing.T
	host, web, far *nettest.Node
	second         *nettest.Segment
	h              *Host
}

func newUplinked(t *testing.T) *uplinked {
	nettest.RequireTool(t, "nft")
	u := &uplinked{T: t}
	_, u.host, u.h = newHost(t, "192.0.2.2/24", "2001:db8:a::2/64")
	u.second = nettest.NamedSegment(t, "second")
	u.second.Plug(u.host, "up2", "198.51.100.2/24", "2001:db8:b::2/64")
	router := u.second.Attach("router", "198.51.100.1/24", "198.51.100.3/24", "2001:db8:b::1/64", "2001:db8:b::3/64")
	third := nettest.NamedSegment(t, "third")
	third.Plug(router, "eth1", "203.0.113.1/24", "2001:db8:c::1/64")
	u.far = third.Attach("far", "203.0.113.9/24", "2001:db8:c::9/64")
	u.far.Run("ip", "route", "add", "default", "via", "203.0.113.1")
	u.far.Run("ip", "route", "add", "default", "via", "2001:db8:c::1")
	u.host.Run("ip", "route", "add", "default", "via", "192.0.2.1")
	u.host.Run("ip", "route", "add", "default", "via", "2001:db8:a::1")
	u.host.Run("ip", "route", "add", "default", "via", "198.51.100.1", "metric", "200")
	u.host.Run("ip", "route", "add", "default", "via", "2001:db8:b::1", "metric", "2000")
	u.host.Bridge("br0", "172.31.0.1/16", "2001:db8:d::1/64")
	for _, n := range []*nettest.Node{u.host, router} {
		n.Sysctl("ipv4.ip_forward", "1")
		n.Sysctl("ipv6.conf.all.forwarding", "1")
	}
	u.web = u.host.Container("web", "br0", "172.31.0.2/16", "172.31.0.1")
	u.web.Run("ip", "addr", "add", "2001:db8:d::2/64", "dev", "eth0", "nodad")
	u.web.AwaitIPv6("eth0")
	u.web.Run("ip", "route", "add", "default", "via", "2001:db8:d::1")
	u.web.Serve(80)
	u.far.Serve(80)
	u.host.Run("nft", `table ip t {
		chain in { type nat hook prerouting priority -110; ip daddr 198.51.100.56 dnat to 172.31.0.2; }
		chain out { type nat hook postrouting priority 90; ip saddr 172.31.0.2 snat to 198.51.100.56; }
	}
	table ip6 t {
		chain in { type nat hook prerouting priority -110; ip6 daddr 2001:db8:b::56 dnat to 2001:db8:d::2; }
		chain out { type nat hook postrouting priority 90; ip6 saddr 2001:db8:d::2 snat to 2001:db8:b::56; }
	}
	table inet marks {
		chain tag { type filter hook prerouting priority -150; }
	}`)
	for _, a := range []string{"198.51.100.56", "2001:db8:b::56"} {
		do(t, u.host, func() error { return u.h.EnsureAlias("up2", netip.MustParseAddr(a)) })
	}
	u.host.AwaitIPv6("up2")
	return u
}

// sync calls SyncUplinks twice: the second time, and another Host, find
// nothing to change.
func (u *uplinked) sync(parents ...string) (map[string]Uplink, []string) {
	u.Helper()
	var needs map[string]Uplink
	var changed []string
	u.host.MustDo(func() (err error) {
		needs, changed, err = u.h.SyncUplinks(parents)
		return err
	})
	u.host.MustDo(func() error {
		restarted, err := New("/proc/sys/net")
		if err != nil {
			return err
		}
		defer restarted.Close()
		again, more, err := restarted.SyncUplinks(parents)
		if diff := cmp.Diff(needs, again); diff != "" || len(more) > 0 {
			u.Errorf("again: changed %q, needs (-first +second)\n%s", more, diff)
		}
		return err
	})
	return needs, changed
}

// mark has the container's packets marked.
func (u *uplinked) mark(mark uint32) {
	u.host.Run("nft", "flush chain inet marks tag")
	if mark != 0 {
		u.host.Run("nft", fmt.Sprintf("add rule inet marks tag iifname br0 meta mark set %#x", mark))
	}
}

// reach asks in both directions and both families, and returns what works.
func (u *uplinked) reach() []string {
	u.Helper()
	var works []string
	for _, tt := range []struct {
		what       string
		from       *nettest.Node
		addr, want string
	}{
		{"in", u.far, "198.51.100.56:80", "web saw 203.0.113.9"},
		{"out", u.web, "203.0.113.9:80", "far saw 198.51.100.56"},
		{"in6", u.far, "[2001:db8:b::56]:80", "web saw 2001:db8:c::9"},
		{"out6", u.web, "[2001:db8:c::9]:80", "far saw 2001:db8:b::56"},
	} {
		if got := tt.from.Ask("tcp", tt.addr); got == tt.want {
			works = append(works, tt.what)
		} else if got != "" {
			u.Errorf("%s: got %q, want %q", tt.what, got, tt.want)
		}
	}
	return works
}

var bothWays = []string{"in", "out", "in6", "out6"}

func TestUplinks(t *testing.T) {
	u := newUplinked(t)
	before := u.host.Dump()
	u.host.Run("ip", "rule", "add", "pref", "12000", "fwmark", "0x77", "lookup", "main")
	u.host.Run("ip", "route", "add", "203.0.113.77", "via", "198.51.100.1", "table", "77")
	if got := u.reach(); len(got) > 0 {
		t.Fatalf("without a second table %q works: there is nothing to test", got)
	}
	needs, changed := u.sync("eth0", "up2", "eth9")
	index := uint32(device(u.host, "up2").Index)
	if diff := cmp.Diff(map[string]Uplink{"up2": {Mark: 0x78000000 + index}}, needs); diff != "" {
		t.Errorf("needs (-want +got):\n%s", diff)
	}
	mark := needs["up2"].Mark
	table := fmt.Sprint(mark)
	want := []string{
		fmt.Sprintf("added ip rule pref 12000 fwmark %#x lookup main suppress_prefixlength 0", mark),
		fmt.Sprintf("added ip rule pref 12001 fwmark %#x lookup %s", mark, table),
		"added ip route default via 198.51.100.1 dev up2 metric 200 table " + table,
		fmt.Sprintf("added ip -6 rule pref 12000 fwmark %#x lookup main suppress_prefixlength 0", mark),
		fmt.Sprintf("added ip -6 rule pref 12001 fwmark %#x lookup %s", mark, table),
		"added ip -6 route default via 2001:db8:b::1 dev up2 metric 2000 table " + table,
	}
	if diff := cmp.Diff(want, changed); diff != "" {
		t.Errorf("changed (-want +got):\n%s", diff)
	}
	u.mark(mark)
	if got := u.reach(); !slices.Equal(got, bothWays) {
		t.Errorf("only %q works", got)
	}

	// A strict rp_filter would drop what comes from far away.
	u.host.Sysctl("ipv4.conf.all.rp_filter", "1")
	if got := u.reach(); slices.Equal(got, bothWays) {
		t.Error("rp_filter drops nothing: there is nothing to heal")
	}
	if _, changed := u.sync("up2"); !slices.Equal(changed, []string{"net.ipv4.conf.up2.rp_filter=2"}) {
		t.Errorf("healing rp_filter changed %q", changed)
	}
	if got := u.reach(); !slices.Equal(got, bothWays) {
		t.Errorf("rp_filter healed: only %q works", got)
	}

	// Another gateway is followed.
	u.host.Run("ip", "route", "replace", "default", "via", "198.51.100.3", "metric", "200")
	u.host.Run("ip", "-6", "route", "del", "default", "via", "2001:db8:b::1")
	u.host.Run("ip", "route", "add", "default", "via", "2001:db8:b::3", "dev", "up2", "onlink", "metric", "3000")
	_, changed = u.sync("up2")
	want = []string{
		"added ip route default via 198.51.100.3 dev up2 metric 200 table " + table,
		"added ip -6 route default via 2001:db8:b::3 dev up2 metric 3000 table " + table,
		"removed ip -6 route default via 2001:db8:b::1 dev up2 metric 2000 table " + table,
	}
	if diff := cmp.Diff(want, changed); diff != "" {
		t.Errorf("other gateways: changed (-want +got):\n%s", diff)
	}
	if got := u.reach(); !slices.Equal(got, bothWays) {
		t.Errorf("other gateways: only %q works", got)
	}

	// With a single way out there is nothing to do.
	u.host.Run("ip", "route", "del", "default", "via", "192.0.2.1")
	u.host.Run("ip", "route", "del", "default", "via", "2001:db8:a::1")
	if needs, _ := u.sync("eth0", "up2"); needs["up2"].Mark != 0 || needs["eth0"] != (Uplink{Without: Families{V4: true, V6: true}}) {
		t.Errorf("a single way out: %+v", needs)
	}
	u.mark(0)
	if got := u.reach(); !slices.Equal(got, bothWays) {
		t.Errorf("a single way out: only %q works", got)
	}
	u.host.Run("ip", "route", "add", "default", "via", "192.0.2.1")
	u.host.Run("ip", "route", "add", "default", "via", "2001:db8:a::1")

	u.sync("up2")
	u.sync()
	u.host.Run("ip", "rule", "del", "pref", "12000") // the foreign one: it was left alone
	u.host.Run("ip", "route", "del", "203.0.113.77", "table", "77")
	u.host.Run("ip", "route", "replace", "default", "via", "198.51.100.1", "metric", "200")
	u.host.Run("ip", "-6", "route", "del", "default", "via", "2001:db8:b::3", "dev", "up2")
	u.host.Run("ip", "route", "add", "default", "via", "2001:db8:b::1", "metric", "2000")
	if after := u.host.Dump(); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
}

// device is an interface of a node.
func device(n *nettest.Node, name string) (dev *net.Interface) {
	n.MustDo(func() (err error) {
		dev, err = net.InterfaceByName(name)
		return err
	})
	return dev
}

// TestUplinkAnew: a parent that was made anew has another index, and other
// marks; what carried the old one goes.
func TestUplinkAnew(t *testing.T) {
	u := newUplinked(t)
	first, _ := u.sync("up2")
	u.host.Run("ip", "link", "del", "up2")
	if needs, changed := u.sync("up2"); len(needs) > 0 || len(changed) != 4 {
		t.Errorf("without the parent: %+v, changed %q", needs, changed)
	}
	u.second.Plug(u.host, "up2", "198.51.100.2/24", "198.51.100.56/32", "2001:db8:b::2/64", "2001:db8:b::56/128")
	if needs, _ := u.sync("up2"); needs["up2"] != (Uplink{Without: Families{V4: true, V6: true}}) {
		t.Errorf("without routes: %+v", needs)
	}
	u.host.Run("ip", "route", "add", "default", "via", "198.51.100.1", "metric", "200")
	u.host.Run("ip", "route", "add", "default", "via", "2001:db8:b::1", "metric", "2000")
	second, _ := u.sync("up2")
	if first["up2"].Mark == second["up2"].Mark {
		t.Errorf("mark %#x, as before", second["up2"].Mark)
	}
	u.mark(second["up2"].Mark)
	if got := u.reach(); !slices.Equal(got, bothWays) {
		t.Errorf("only %q works", got)
	}
}

// TestUplinkRoutes: which parents need a table, and what is in it.
func TestUplinkRoutes(t *testing.T) {
	lan, node, h := newHost(t, "192.0.2.2/24", "2001:db8:a::2/64")
	lan.Plug(node, "up2", "198.51.100.2/24", "2001:db8:b::2/64")
	for _, tt := range []struct {
		name         string
		routes, want []string
	}{
		{"none", nil, nil},
		{"one way out", []string{"-4 default via 192.0.2.1"}, []string{"up2 without -4"}},
		{"others than default routes", []string{"-4 default via 192.0.2.1", "-4 0.0.0.0/1 via 198.51.100.1", "-4 unreachable default metric 9", "-4 default via 198.51.100.1 tos 8"}, []string{"up2 without -4"}},
		{"several hops",
			[]string{"-4 default mtu 1400 nexthop via 192.0.2.1 nexthop via 198.51.100.1 nexthop via 198.51.100.3 weight 5"},
			[]string{
				"eth0 marked", "eth0 -4 default via 192.0.2.1 dev eth0 mtu 1400",
				"up2 marked", "up2 -4 default mtu 1400 nexthop via 198.51.100.1 dev up2 weight 1 nexthop via 198.51.100.3 dev up2 weight 5",
			}},
		{"families differ",
			[]string{"-4 default via 192.0.2.1", "-4 default via 198.51.100.1 metric 100", "-6 default via fe80::1 dev up2", "-6 default via fe80::2 dev eth0 metric 2000"},
			[]string{
				"eth0 marked", "eth0 -6 default via fe80::2 dev eth0 metric 2000 pref medium",
				"up2 marked", "up2 -4 default via 198.51.100.1 dev up2 metric 100",
			}},
		{"onlink, source, device",
			[]string{"-4 default via 192.0.2.1", "-4 default via 203.0.113.1 dev up2 onlink src 198.51.100.2 metric 7", "-4 default dev up2 scope link metric 8"},
			[]string{"up2 marked", "up2 -4 default via 203.0.113.1 dev up2 src 198.51.100.2 metric 7 onlink default dev up2 scope link metric 8"}},
		{"IPv6 next hop",
			[]string{"-4 default via 192.0.2.1", "-4 default via inet6 fe80::1 dev up2 metric 5"},
			[]string{"up2 marked", "up2 -4 default via inet6 fe80::1 dev up2 metric 5"}},
		{"equal routers",
			[]string{"-6 default via 2001:db8:a::1", "-6 default via 2001:db8:b::1", "-6 default via 2001:db8:b::3"},
			[]string{
				"eth0 marked", "eth0 -6 default via 2001:db8:a::1 dev eth0 metric 1024 pref medium",
				"up2 marked", "up2 -6 default metric 1024 pref medium nexthop via 2001:db8:b::1 dev up2 weight 1 nexthop via 2001:db8:b::3 dev up2 weight 1",
			}},
		{"from a router, for a while",
			[]string{"-6 default via 2001:db8:a::1 metric 10", "-6 default via fe80::5 dev up2 proto ra expires 1000 hoplimit 64"},
			[]string{"up2 marked", "up2 -6 default via fe80::5 dev up2 metric 1024 hoplimit 64 pref medium"}},
	} {
		node.Run("sh", "-c", "ip -4 route flush exact 0/0; ip -4 route flush exact 0/1; ip -4 route flush type unreachable; ip -6 route flush default; true")
		for _, r := range tt.routes {
			args := strings.Fields(r)
			node.Run(append([]string{"ip", args[0], "route", "append"}, args[1:]...)...)
		}
		for again := range 2 {
			var got []string
			do(t, node, func() error {
				needs, changed, err := h.SyncUplinks([]string{"eth0", "up2"})
				if again == 1 && len(changed) > 0 {
					t.Errorf("%s: again: changed %q", tt.name, changed)
				}
				for _, name := range []string{"eth0", "up2"} {
					if needs[name].Mark != 0 {
						got = append(got, name+" marked")
					}
					if needs[name].Without.V4 {
						got = append(got, name+" without -4")
					}
					for _, family := range []string{"-4", "-6"} {
						table := node.Run("sh", "-c", fmt.Sprintf("ip %s route show table %d proto %d 2>/dev/null; true", family, uplinkBase+device(node, name).Index, Protocol))
						if table != "" {
							got = append(got, strings.Join(strings.Fields(name+" "+family+" "+table), " "))
						}
					}
				}
				return err
			})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.name, diff)
			}
		}
	}
}
