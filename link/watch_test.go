package link

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

// watch watches a host until the test ends, or stop is called.
func watch(t *testing.T, node *nettest.Node, h *Host) (changes <-chan string, stop func()) {
	var w *Watcher
	do(t, node, func() (err error) {
		w, err = h.Watch()
		return err
	})
	heard := make(chan string, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- w.Run(ctx, func(c Change) { heard <- fmt.Sprintf("%s %s %s", c.Kind, c.Link, c.Prefix) })
	}()
	return heard, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// hear returns what comes until wanted does, without it.
func hear(t *testing.T, changes <-chan string, wanted string) []string {
	t.Helper()
	var heard []string
	for deadline := time.After(time.Minute); ; {
		select {
		case c := <-changes:
			if c == wanted {
				return heard
			}
			heard = append(heard, c)
		case <-deadline:
			t.Errorf("heard %q, want %q", heard, wanted)
			return heard
		}
	}
}

func TestWatch(t *testing.T) {
	_, node, h := newHost(t, "192.0.2.2/24", "2001:db8::2/64")
	both := bridge
	both.Addresses = append(slices.Clone(both.Addresses), netip.MustParsePrefix("2001:db8:1::1/64"))
	do(t, node,
		func() error { return h.EnsureBridge(both) },
		func() error { return h.EnsureVeth(web) },
		func() error { return h.EnsureAlias("eth0", external) },
		func() error { return h.EnsureAlias("eth0", external6) },
	)
	node.Run("ip", "route", "add", "default", "via", "192.0.2.1")
	node.Run("ip", "rule", "add", "pref", "11900", "from", "192.0.2.56", "blackhole")
	changes, stop := watch(t, node, h)
	none := netip.Prefix{}.String()
	for _, tt := range []struct{ do, want string }{
		{"ip addr del 192.0.2.56/32 dev eth0", "address gone eth0 192.0.2.56/32"},
		{"ip addr del 2001:db8::56/128 dev eth0", "address gone eth0 2001:db8::56/128"},
		{"ip addr add 192.0.2.77/24 dev eth0", "address came eth0 192.0.2.77/24"},
		{"ip rule del pref 11900", "rule gone  " + none},
		{"ip route del 172.31.0.0/16 dev " + bridge.Name, "route gone  172.31.0.0/16"},
		{"ip route del 2001:db8:1::/64 dev " + bridge.Name, "route gone  2001:db8:1::/64"},
		{"ip route add default via 192.0.2.7 metric 7", "default route eth0 0.0.0.0/0"},
		{"ip route del default via 192.0.2.7 metric 7", "default route eth0 0.0.0.0/0"},
		{"ip route add default via 2001:db8::1", "default route eth0 ::/0"},
		{"ip link set eth0 down", "link down eth0 " + none},
		{"true", "default route eth0 " + none}, // of IPv4: the kernel says nothing of it
		{"true", "address gone eth0 2001:db8::2/64"},
		{"ip link set eth0 up", "link up eth0 " + none},
		{"ip link set xipe1 nomaster", "port left its bridge xipe1 " + none},
		{"ip link del xipe1", "link gone xipe1 " + none},
		{"ip link del " + bridge.Name, "link gone " + bridge.Name + " " + none},
	} {
		node.Run(strings.Fields(tt.do)...)
		hear(t, changes, tt.want)
	}
	stop()
	// What somebody took away is there again after an Ensure.
	do(t, node, func() error { return h.EnsureBridge(bridge) })
	before := node.Dump()
	node.Run("ip", "route", "del", "172.31.0.0/16", "dev", bridge.Name)
	node.Run("ip", "link", "set", bridge.Name, "down")
	node.Run("ip", "addr", "flush", "dev", bridge.Name)
	do(t, node, func() error { return h.EnsureBridge(bridge) })
	if after := node.Dump(); after != before {
		t.Errorf("repaired:\n%s\nwas:\n%s", after, before)
	}
	if ok, err := h.HasLink(bridge.Name); !ok || err != nil {
		t.Errorf("HasLink: %v, %v", ok, err)
	}
	if ok, err := h.HasLink("xipe1"); ok || err != nil {
		t.Errorf("HasLink of none: %v, %v", ok, err)
	}
}

// TestWatchOwnRoutes: what SyncUplinks does is no change of the default routes.
func TestWatchOwnRoutes(t *testing.T) {
	lan, node, h := newHost(t, "192.0.2.2/24", "2001:db8:a::2/64")
	lan.Plug(node, "up2", "198.51.100.2/24", "2001:db8:b::2/64")
	for _, gateway := range []string{"192.0.2.1", "2001:db8:a::1"} {
		node.Run("ip", "route", "add", "default", "via", gateway)
	}
	for _, gateway := range []string{"198.51.100.1", "2001:db8:b::1"} {
		node.Run("ip", "route", "add", "default", "via", gateway, "metric", "2000")
	}
	changes, stop := watch(t, node, h)
	for _, parents := range [][]string{{"up2"}, nil} {
		do(t, node, func() error {
			_, changed, err := h.SyncUplinks(parents)
			if len(changed) != 6 {
				t.Errorf("changed %q", changed)
			}
			return err
		})
	}
	node.Run("ip", "route", "del", "default", "via", "192.0.2.1")
	if heard := hear(t, changes, "default route eth0 0.0.0.0/0"); len(heard) > 0 {
		t.Errorf("heard %q", heard)
	}
	stop()
}
