package link

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParent(t *testing.T) {
	_, node, h := newHost(t)
	node.Run("ip", "link", "set", "eth0", "mtu", "1400")
	node.Bridge("br-ex")
	node.Run("ip", "link", "add", "port", "type", "veth", "peer", "name", "far")
	node.Run("ip", "link", "set", "port", "master", "br-ex")
	node.Run("ip", "link", "add", "silent", "type", "veth", "peer", "name", "other")
	node.Run("ip", "link", "set", "silent", "arp", "off")
	for name, want := range map[string]ParentInfo{
		"eth0":   {MTU: 1400, Up: true, Neighbours: true},
		"port":   {MTU: 1500, Master: "br-ex", Neighbours: true},
		"silent": {MTU: 1500},
		"lo":     {MTU: 65536, Up: true},
	} {
		got, err := h.Parent(name)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got)\n%s", name, err, diff)
		}
	}
	if _, err := h.Parent("eth9"); !errors.Is(err, ErrNoLink) {
		t.Errorf("an interface that doesn't exist: %v", err)
	}
}

// TestDefaultParent: the best IPv4 route, or else the best IPv6 route, leads to
// it; half a world is none.
func TestDefaultParent(t *testing.T) {
	lan, node, h := newHost(t, "192.0.2.2/24", "2001:db8::2/64")
	lan.Plug(node, "up2", "198.51.100.2/24", "2001:db8:2::2/64")
	expect := func(want string) {
		t.Helper()
		got, err := h.DefaultParent()
		if got != want || err == nil != (want != "") {
			t.Errorf("default parent %q, %v; want %q", got, err, want)
		}
	}
	expect("")
	node.Run("ip", "route", "add", "0.0.0.0/1", "via", "192.0.2.1")
	node.Run("ip", "route", "add", "unreachable", "default", "metric", "10")
	expect("")
	node.Run("ip", "route", "add", "default", "via", "2001:db8::1", "metric", "300")
	expect("eth0")
	node.Run("ip", "route", "add", "default", "via", "fe80::1", "dev", "up2", "metric", "200")
	expect("up2")
	node.Run("ip", "route", "add", "default", "nexthop", "via", "192.0.2.1", "nexthop", "via", "198.51.100.1")
	expect("eth0")
	node.Run("ip", "route", "add", "192.0.2.128/26", "via", "inet6", "2001:db8::7", "dev", "eth0")
	node.Run("ip", "route", "add", "203.0.113.0/24", "via", "192.0.2.5", "table", "77")
	gateways, err := h.Gateways()
	var got []string
	for _, g := range gateways {
		got = append(got, g.String())
	}
	slices.Sort(got)
	want := []string{"192.0.2.1", "192.0.2.1", "198.51.100.1", "2001:db8::1", "2001:db8::7"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("gateways: %v (-want +got)\n%s", err, diff)
	}
}
