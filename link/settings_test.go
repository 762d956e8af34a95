package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"golang.org/x/sys/unix"
)

func TestForwarding(t *testing.T) {
	_, node, h := newHost(t)
	for i, want := range [][]string{{"net.ipv4.ip_forward=1"}, nil} {
		do(t, node, func() error {
			changed, err := h.EnableForwarding("eth0", Families{V4: true})
			if !slices.Equal(changed, want) {
				t.Errorf("call %d: changed %q, want %q", i+1, changed, want)
			}
			return err
		})
	}
	if got := node.Run("cat", "/proc/sys/net/ipv4/ip_forward"); strings.TrimSpace(got) != "1" {
		t.Errorf("ip_forward is %s", got)
	}
	if got := node.Run("cat", "/proc/sys/net/ipv6/conf/all/forwarding"); strings.TrimSpace(got) != "0" {
		t.Errorf("IPv6 forwarding is %s, and nobody asked for it", got)
	}
}

// advertise sends a router advertisement (RFC 4861 §4.2) from eth0 to all nodes:
// a default router for lifetime seconds.
func advertise(router *nettest.Node, lifetime uint16) error {
	return router.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, eth0.Index),
		)
		if err != nil {
			return err
		}
		const routerAdvertisement, hopLimit = 134, 64
		message := []byte{routerAdvertisement, 0, 0, 0, hopLimit, 0, byte(lifetime >> 8), byte(lifetime), 0, 0, 0, 0, 0, 0, 0, 0}
		return unix.Sendto(fd, message, 0, &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::1").As16(), ZoneId: uint32(eth0.Index)})
	})
}

// awaitRoute advertises until the host has, or has no longer, an IPv6 default
// route of that protocol.
func awaitRoute(t *testing.T, router, host *nettest.Node, lifetime uint16) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err := advertise(router, lifetime); err != nil {
			t.Logf("advertise: %v", err) // its link-local address may not be there yet
		}
		if has := strings.Contains(host.Run("ip", "-6", "route", "show", "default"), "proto ra"); has == (lifetime > 0) {
			return
		}
	}
	t.Fatalf("an advertisement for %d s has no effect", lifetime)
}

// TestForwardingKeepsListening: a host that learned its default route from a
// router keeps it when it becomes a router itself, and goes on listening.
func TestForwardingKeepsListening(t *testing.T) {
	lan, node, h := newHost(t)
	router := lan.Attach("router")
	node.Run("ip", "link", "add", "deaf", "type", "veth", "peer", "name", "parent")
	awaitRoute(t, router, node, 1800)
	for i, want := range [][]string{{"net.ipv6.conf.eth0.accept_ra=2", "net.ipv6.conf.parent.accept_ra=2", "net.ipv6.conf.all.forwarding=1"}, nil} {
		do(t, node, func() error {
			changed, err := h.EnableForwarding("parent", Families{V6: true})
			if slices.Sort(changed[:max(0, len(changed)-1)]); !slices.Equal(changed, want) {
				t.Errorf("call %d: changed %q, want %q", i+1, changed, want)
			}
			return err
		})
	}
	if got := node.Run("ip", "-6", "route", "show", "default"); !strings.Contains(got, "proto ra") {
		t.Errorf("the default route is lost: %q", got)
	}
	awaitRoute(t, router, node, 0)
	if got := node.Run("cat", "/proc/sys/net/ipv4/ip_forward"); strings.TrimSpace(got) != "0" {
		t.Errorf("ip_forward is %s, and nobody asked for it", got)
	}
}

// TestBridge6: a bridge with IPv6 works at once, also where IPv6 is off for new
// interfaces, and takes no routes from containers.
func TestBridge6(t *testing.T) {
	for name, gateways := range map[string][]netip.Prefix{
		"dual":     {netip.MustParsePrefix("172.31.0.1/16"), netip.MustParsePrefix("2001:db8:1::1/64")},
		"IPv6only": {netip.MustParsePrefix("2001:db8:1::1/64")},
	} {
		t.Run(name, func(t *testing.T) {
			_, node, h := newHost(t)
			node.Sysctl("ipv6.conf.default.disable_ipv6", "1")
			// The kernel would look for duplicates of an address.
			node.Sysctl("ipv6.conf.all.accept_dad", "1")
			node.Sysctl("ipv6.conf.default.accept_dad", "1")
			b := bridge
			b.Addresses, b.MTU = gateways, 1500 // that of the container below
			before := node.Dump()
			do(t, node, func() error { return h.EnsureBridge(b) })
			if got := node.Run("ip", "-6", "addr", "show", "dev", b.Name, "scope", "global"); !strings.Contains(got, "2001:db8:1::1/64") || strings.Contains(got, "tentative") {
				t.Errorf("addresses: %s", got)
			}
			if got := node.Run("cat", "/proc/sys/net/ipv6/conf/"+b.Name+"/accept_ra"); strings.TrimSpace(got) != "0" {
				t.Errorf("accept_ra is %s", got)
			}
			// Without a carrier the kernel is in no hurry with IPv6.
			web := node.Container("web", b.Name, "2001:db8:1::2/64", "2001:db8:1::1")
			node.AwaitUp(b.Name)
			once := node.Dump()
			do(t, node, func() error { return h.EnsureBridge(b) })
			if again := node.Dump(); again != once {
				t.Errorf("ensured twice:\n%s\nonce:\n%s", again, once)
			}
			node.Run("ip", "link", "set", b.Name, "down")
			do(t, node, func() error { return h.EnsureBridge(b) })
			node.Run("ip", "-6", "route", "del", "2001:db8:1::/64", "dev", b.Name)
			do(t, node, func() error { return h.EnsureBridge(b) })
			node.AwaitUp(b.Name)
			if again := node.Dump(); again != once {
				t.Errorf("repaired:\n%s\nonce:\n%s", again, once)
			}
			found, err := h.Survey()
			if got := found.Links[b.Name].Addresses; err != nil || len(got) != len(gateways) || !slices.Contains(got, gateways[len(gateways)-1]) {
				t.Errorf("survey: %v, %v", got, err)
			}
			node.Serve(80)
			if got := web.Ask("tcp", "[2001:db8:1::1]:80"); got != "host saw 2001:db8:1::2" {
				t.Errorf("container hears %q", got)
			}
			node.Run("ip", "link", "del", "vweb")
			do(t, node, func() error { return h.RemoveBridge(b) })
			if after := node.Dump(); after != before {
				t.Errorf("removed:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
	_, _, h := newHost(t)
	small := bridge
	small.MTU, small.Addresses = 1200, []netip.Prefix{netip.MustParsePrefix("2001:db8:1::1/64")}
	if err := h.EnsureBridge(small); err == nil || !strings.Contains(err.Error(), "MTU 1200 is less than IPv6 needs") {
		t.Errorf("small MTU: %v", err)
	}
}

func TestMAC(t *testing.T) {
	for _, tt := range []struct{ addrs, want string }{
		{"172.31.0.2/16", "02:42:ac:1f:00:02"},
		{"2001:db8::2/64 172.31.0.2/16", "02:42:ac:1f:00:02"},
		{"2001:db8::42:ac1f:2/64", "06:42:ac:1f:00:02"},
		{"2001:db8:1::a:2/64 2001:db8:1::3/64", "06:00:00:0a:00:02"},
		{"", ""},
	} {
		var addrs []netip.Prefix
		for text := range strings.FieldsSeq(tt.addrs) {
			addrs = append(addrs, netip.MustParsePrefix(text))
		}
		if got := MAC(addrs).String(); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.addrs, got, tt.want)
		}
	}
}

func TestSettingNames(t *testing.T) {
	if got, want := fmt.Sprint(conf("ipv6", "eth0.100", "accept_ra")), "net.ipv6.conf.eth0/100.accept_ra"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
