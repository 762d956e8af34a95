package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"golang.org/x/sys/unix"
)

// TestForwarding: what comes in by the interfaces that were named is routed, and
// nothing else: the host as a whole stays as it was.
func TestForwarding(t *testing.T) {
	for _, tt := range []struct {
		of     Families
		server string
		key    string
		whole  string
	}{
		{Families{V4: true}, "198.51.100.9", "net.ipv4.conf.%s.forwarding=1", "ipv4/ip_forward"},
		{Families{V6: true}, "2001:db8:2::9", "net.ipv6.conf.%s.force_forwarding=1", "ipv6/conf/all/forwarding"},
	} {
		t.Run(tt.whole, func(t *testing.T) {
			lan, node, h := newHost(t, "192.0.2.2/24", "2001:db8:1::2/64")
			if _, err := os.Stat("/proc/sys/net/ipv6/conf/all/force_forwarding"); err != nil && tt.of.V6 {
				t.Skip("this kernel routes IPv6 as a whole only: Linux 6.17")
			}
			far := nettest.NamedSegment(t, "far")
			far.Plug(node, "eth1", "198.51.100.2/24", "2001:db8:2::2/64")
			client, server := lan.Attach("client", "192.0.2.9/24", "2001:db8:1::9/64"), far.Attach("server", "198.51.100.9/24", "2001:db8:2::9/64")
			for _, route := range [][]string{{"198.51.100.0/24", "via", "192.0.2.2"}, {"2001:db8:2::/64", "via", "2001:db8:1::2"}} {
				client.Run(append([]string{"ip", "route", "add"}, route...)...)
			}
			for _, route := range [][]string{{"192.0.2.0/24", "via", "198.51.100.2"}, {"2001:db8:1::/64", "via", "2001:db8:2::2"}} {
				server.Run(append([]string{"ip", "route", "add"}, route...)...)
			}
			server.Serve(80)
			for _, step := range []struct {
				names   []string
				changed string
				passes  bool
			}{
				{[]string{"eth0", "eth9"}, fmt.Sprintf(tt.key, "eth0"), false}, // not the answers
				{[]string{"eth0", "eth1"}, fmt.Sprintf(tt.key, "eth1"), true},
				{[]string{"eth0", "eth1"}, "", true},
			} {
				do(t, node, func() error {
					changed, err := h.EnableForwarding(step.names, tt.of)
					if got := strings.Join(changed, " "); got != step.changed {
						t.Errorf("%v: changed %q, want %q", step.names, got, step.changed)
					}
					return err
				})
				if got := client.Ask("tcp", net.JoinHostPort(tt.server, "80")); (got != "") != step.passes {
					t.Errorf("%v: the client hears %q", step.names, got)
				}
			}
			if got := node.Run("cat", "/proc/sys/net/"+tt.whole); strings.TrimSpace(got) != "0" {
				t.Errorf("the host as a whole: %s", got)
			}
		})
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
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
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
			changed, err := h.routeIPv6([]string{"parent"})
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
			web := node.Container("web", b.Name, "2001:db8:1::2/64", "2001:db8:1::1")
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
			node.AwaitAsked(b.Name, "2001:db8:1::1/64")
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
