package link

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nettest"
)

var external6 = netip.MustParseAddr("2001:db8::56")

// source is the address that the host chooses for what it sends far away.
func source(node *nettest.Node, to string) string {
	_, after, _ := strings.Cut(node.Run("ip", "route", "get", to), " src ")
	address, _, _ := strings.Cut(after, " ")
	return strings.TrimSpace(address)
}

// TestAlias6: neighbours find an external IPv6 address, and the host doesn't
// use it, also when its own address comes later.
func TestAlias6(t *testing.T) {
	lan, node, h := newHost(t, "2001:db8::2/64")
	peer := lan.Attach("peer", "2001:db8::9/64")
	node.Run("ip", "route", "add", "default", "via", "2001:db8::1")
	node.Serve(53)
	before := node.Dump()
	ensure := func() error { return h.EnsureAlias("eth0", external6) }
	do(t, node, ensure, ensure)
	node.AwaitAsked("eth0", "2001:db8::56/128")
	if got := node.Run("ip", "-6", "addr", "show", "dev", "eth0"); !strings.Contains(got, "2001:db8::56/128 scope global nodad deprecated noprefixroute") {
		t.Errorf("addresses: %s", got)
	}
	if got := peer.Ask("udp", "[2001:db8::56]:53"); got != "host saw 2001:db8::9" {
		t.Errorf("peer hears %q", got)
	}
	if found, err := h.Survey(); err != nil || len(found.Aliases) != 1 || !slices.Equal(found.Aliases[external6], []string{"eth0"}) {
		t.Errorf("survey: %v, %v", found.Aliases, err)
	}
	if why, err := h.Unusable("eth0", external6); why != "" || err != nil {
		t.Errorf("an alias that was left over %s, %v", why, err)
	}
	const far = "2001:db8:ffff::1"
	if got := source(node, far); got != "2001:db8::2" {
		t.Errorf("the host's source is %s", got)
	}
	// IPv6 addresses don't survive this. The alias may be back first, while
	// the link is still down.
	node.Run("ip", "link", "set", "eth0", "down")
	if found, err := h.Survey(); err != nil || len(found.Aliases) != 0 {
		t.Errorf("survey of a link that is down: %v, %v", found.Aliases, err)
	}
	do(t, node, ensure)
	node.Run("ip", "link", "set", "eth0", "up")
	node.Run("ip", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
	node.AwaitUp("eth0")
	node.AwaitAsked("eth0", "2001:db8::56/128", "2001:db8::2/64")
	node.Run("ip", "route", "add", "default", "via", "2001:db8::1")
	if got := source(node, far); got != "2001:db8::2" {
		t.Errorf("the host's source after a flap is %s", got)
	}
	if got := peer.Ask("udp", "[2001:db8::56]:53"); got != "host saw 2001:db8::9" {
		t.Errorf("after a flap, peer hears %q", got)
	}
	for range 2 {
		do(t, node, func() error { return h.RemoveAlias("eth0", external6) })
		if after := node.Dump(); after != before {
			t.Errorf("removed:\n%s\nbefore:\n%s", after, before)
		}
	}
}

// TestForeignAddress6: what somebody else put there is left alone, on a kernel
// that keeps Protocol and on one that doesn't.
func TestForeignAddress6(t *testing.T) {
	_, node, h := newHost(t, "2001:db8::2/64")
	for _, tt := range []struct {
		signs bool
		text  string
		ours  bool
	}{
		{true, "2001:db8::56/128 preferred_lft 0 nodad noprefixroute", false}, // which only lacks Protocol
		{false, "2001:db8::56/128 preferred_lft 0 nodad noprefixroute", true},
		{false, "2001:db8::56/128 nodad noprefixroute", false},
		{false, "2001:db8::56/128 preferred_lft 0 valid_lft 600 nodad noprefixroute", false},
		{false, "2001:db8::56/128 preferred_lft 0 nodad", false},
		{false, "2001:db8::56/64 preferred_lft 0 nodad noprefixroute", false},
	} {
		h.signs = tt.signs
		node.Run(append([]string{"ip", "addr", "add", "dev", "eth0"}, strings.Fields(tt.text)...)...)
		node.AwaitAsked("eth0", "2001:db8::56/128")
		if err := h.EnsureAlias("eth0", external6); errors.Is(err, ErrNotOurs) == tt.ours {
			t.Errorf("signs %v, %s: ensured: %v", tt.signs, tt.text, err)
		}
		if found, err := h.Survey(); err != nil || len(found.Aliases) > 0 != tt.ours {
			t.Errorf("signs %v, %s: survey: %v, %v", tt.signs, tt.text, found.Aliases, err)
		}
		if why, err := h.Unusable("eth0", external6); err != nil || (why == "is this host's own, on eth0") == tt.ours {
			t.Errorf("signs %v, %s: unusable: %q, %v", tt.signs, tt.text, why, err)
		}
		do(t, node, func() error { return h.RemoveAlias("eth0", external6) })
		if there := strings.Contains(node.Run("ip", "addr"), "2001:db8::56"); there == tt.ours {
			t.Errorf("signs %v, %s: still there after its removal: %v", tt.signs, tt.text, there)
		}
		if !tt.ours {
			node.Run("ip", "addr", "del", "dev", "eth0", strings.Fields(tt.text)[0])
		}
	}
}

// TestAliasOnLo: an external address may be on lo, in both families.
func TestAliasOnLo(t *testing.T) {
	lan, node, h := newHost(t, "192.0.2.2/24", "2001:db8::2/64")
	peer := lan.Attach("peer", "192.0.2.9/24", "2001:db8::9/64")
	peer.Run("ip", "route", "add", "2001:db8::56", "via", "2001:db8::2") // nobody asks for it by NDP
	node.Serve(53)
	before := node.Dump()
	for _, a := range []netip.Addr{external, external6} {
		do(t, node, func() error { return h.EnsureAlias("lo", a) }, func() error { return h.EnsureAlias("lo", a) })
		node.AwaitAsked("lo", netip.PrefixFrom(a, a.BitLen()).String())
		if why, err := h.Unusable("eth0", a); why != "" || err != nil {
			t.Errorf("%s %s, %v", a, why, err)
		}
		if got, want := peer.Ask("udp", netip.AddrPortFrom(a, 53).String()), "host saw "; !strings.HasPrefix(got, want) {
			t.Errorf("%s answers %q", a, got)
		}
	}
	if found, err := h.Survey(); err != nil || len(found.Aliases) != 2 || !slices.Equal(found.Aliases[external], []string{"lo"}) || !slices.Equal(found.Aliases[external6], []string{"lo"}) {
		t.Errorf("survey: %v, %v", found.Aliases, err)
	}
	if got := source(node, "2001:db8::9"); got != "2001:db8::2" {
		t.Errorf("the host's source is %s", got)
	}
	// While one is moved, it is on both.
	do(t, node, func() error { return h.EnsureAlias("eth0", external6) })
	if found, err := h.Survey(); err != nil || !slices.Equal(found.Aliases[external6], []string{"lo", "eth0"}) {
		t.Errorf("survey: %v, %v", found.Aliases, err)
	}
	for _, a := range []netip.Addr{external, external6} {
		do(t, node, func() error { return h.RemoveAlias("lo", a) }, func() error { return h.RemoveAlias("eth0", a) })
	}
	if after := node.Dump(); after != before {
		t.Errorf("removed:\n%s\nbefore:\n%s", after, before)
	}
}

// TestAliasRefusals: errors say what is in the way.
func TestAliasRefusals(t *testing.T) {
	_, node, h := newHost(t, "192.0.2.2/24")
	for _, a := range []netip.Addr{external, external6} {
		if err := h.EnsureAlias("eth9", a); !errors.Is(err, ErrNoLink) || !strings.Contains(err.Error(), "no interface eth9") {
			t.Errorf("on a missing parent: %v", err)
		}
		if err := h.RemoveAlias("eth9", a); err != nil {
			t.Errorf("removed from a missing parent: %v", err)
		}
	}
	node.Run("ip", "link", "add", "eth0.100", "type", "veth", "peer", "name", "other")
	node.Sysctl("ipv6.conf.all.disable_ipv6", "1")
	if err := h.EnsureAlias("eth0.100", external6); err == nil || !strings.Contains(err.Error(), "IPv6 is switched off there: net.ipv6.conf.eth0/100.disable_ipv6=1") {
		t.Errorf("without IPv6: %v", err)
	}
	node.Sysctl("ipv6.conf.all.disable_ipv6", "0")
	node.Run("ip", "link", "set", "eth0", "mtu", "1200")
	if err := h.EnsureAlias("eth0", external6); err == nil || !strings.Contains(err.Error(), "its MTU 1200 is less than IPv6 needs, 1280") {
		t.Errorf("with a small MTU: %v", err)
	}
	do(t, node, func() error { return h.RemoveAlias("eth0", external6) })
}
