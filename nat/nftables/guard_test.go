package nftables

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// openGuard makes a guard on a node.
func openGuard(t testing.TB, node *nettest.Node) *Guard {
	t.Helper()
	var g *Guard
	err := node.Do(func() (err error) {
		g, err = NewGuard()
		return err
	})
	nettest.Require(t, !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT), "nf_tables for bridges")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func port(link, mac string, addrs ...string) nat.Port {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		panic(err)
	}
	p := nat.Port{Link: link, MAC: hw}
	for _, a := range addrs {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	return p
}

func somePorts() nat.Guarded {
	trusted := port("xip3", "02:42:ac:1f:00:04", "172.31.0.4")
	trusted.Trusted = true
	return nat.Guarded{Networks: []string{"n"}, Ports: []nat.Port{
		port("xip1", "02:42:ac:1f:00:02", "172.31.0.2"),
		port("xip2abcdef0123", "02:42:ac:1f:00:03", "172.31.0.3", "2001:db8:31::3"),
		trusted,
	}}
}

// guardDump is the guard's table as nft lists it, without counters; "" if there
// is none.
func guardDump(node *nettest.Node) string {
	out, err := node.Command("nft", "-s", "list", "table", "bridge", tableName).Output()
	if err != nil {
		return ""
	}
	return string(out)
}

func TestGuardRules(t *testing.T) {
	node := newHost(t)
	g := openGuard(t, node)
	if got := node.Run("nft", "list", "ruleset"); got != "" {
		t.Errorf("finding out what the kernel can leaves\n%s", got)
	}
	if _, err := g.Sync(somePorts()); err != nil {
		t.Fatal(err)
	}
	const file = "testdata/guard.nft"
	got := guardDump(node)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// What is saved and loaded again is the same, to us too.
	node.Run("sh", "-c", "nft list ruleset > /run/saved && nft flush ruleset && nft -f /run/saved")
	if loaded := guardDump(node); loaded != got {
		t.Errorf("loaded\n%s\nwant\n%s", loaded, got)
	}
	if repaired, err := g.Repair(); err != nil || len(repaired) > 0 {
		t.Errorf("repaired %q, %v", repaired, err)
	}
}

func TestGuardRepairs(t *testing.T) {
	for _, tt := range []struct {
		name, command string
		want          []string
	}{
		{"nothing", "add table bridge other", nil},
		{"all gone", "flush ruleset", []string{"bridge: table was missing"}},
		{"the hook is gone", "delete chain bridge extip prerouting", []string{"bridge: chain prerouting was missing"}},
		{"a rule before ours", "insert rule bridge extip port accept", []string{"bridge: chain port was altered"}},
		{"a second MAC", "add element bridge extip macs { xip1 . 02:00:00:00:00:01 }", []string{"bridge: set macs: left over: xip1 . 02:00:00:00:00:01"}},
		{
			"addresses are gone", "flush set bridge extip addrs",
			[]string{"bridge: set addrs: missing: xip1 . 172.31.0.2 xip2abcdef0123 . 172.31.0.3"},
		},
		{
			"targets are gone", "flush set bridge extip targets",
			[]string{"bridge: set targets: missing: xip2abcdef0123 . 2001:db8:31::3 xip2abcdef0123 . fe80::42:acff:fe1f:3"},
		},
		{"one is trusted", "add element bridge extip trusted { xip1 }", []string{"bridge: set trusted: left over: xip1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			node := newHost(t)
			g := openGuard(t, node)
			if _, err := g.Sync(somePorts()); err != nil {
				t.Fatal(err)
			}
			want := guardDump(node)
			node.Run("nft", tt.command)
			broken := guardDump(node)
			found, err := g.Check()
			if err != nil || !slices.Equal(found, tt.want) || guardDump(node) != broken {
				t.Errorf("check: %q, %v\nwant  %q, and nothing changed", found, err, tt.want)
			}
			got, err := g.Repair()
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got  %q, %v\nwant %q", got, err, tt.want)
			}
			// nft lists a chain that was made anew at the end.
			lines := func(s string) []string {
				list := strings.Split(s, "\n")
				slices.Sort(list)
				return list
			}
			if after := guardDump(node); !slices.Equal(lines(after), lines(want)) {
				t.Errorf("after repair\n%s\nwant\n%s", after, want)
			}
		})
	}
}

// Whatever order things come and go in, what is left is what was added; with
// the last of it, the table goes.
func TestGuardLife(t *testing.T) {
	node := newHost(t)
	g := openGuard(t, node)
	network := nat.Guarded{Networks: []string{"n"}}
	one, two := nat.Guarded{Ports: somePorts().Ports[:1]}, nat.Guarded{Ports: somePorts().Ports[1:]}
	if _, err := g.Sync(nat.Guarded{}); err != nil {
		t.Fatal(err)
	}
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(g.Add(network), g.Add(network), g.Add(one))
	alone := guardDump(node)
	must(g.Add(two), g.Add(two))
	for _, word := range []string{"172.31.0.2", "172.31.0.3", "2001:db8:31::3", `"xip3"`} {
		if !strings.Contains(guardDump(node), word) {
			t.Errorf("no %s in\n%s", word, guardDump(node))
		}
	}
	must(g.Remove(two), g.Remove(two))
	if got := guardDump(node); got != alone {
		t.Errorf("got\n%s\nwant\n%s", got, alone)
	}
	moved := one.Ports[0]
	moved.Addresses = []netip.Addr{netip.MustParseAddr("172.31.0.99")}
	must(g.Add(nat.Guarded{Ports: []nat.Port{moved}}))
	if got := guardDump(node); strings.Contains(got, "172.31.0.2 ") || !strings.Contains(got, "172.31.0.99") {
		t.Errorf("moved to\n%s", got)
	}
	must(g.Remove(network), g.Remove(one))
	if got := node.Run("nft", "list", "ruleset"); got != "" {
		t.Errorf("left:\n%s", got)
	}
	// A later process takes over what an earlier one left.
	must(g.Add(one))
	if repaired, err := openGuard(t, node).Sync(one); err != nil || len(repaired) > 0 {
		t.Errorf("taken over: %q, %v", repaired, err)
	}
	if _, err := openGuard(t, node).Sync(nat.Guarded{}); err != nil || guardDump(node) != "" {
		t.Errorf("not cleared away: %v", err)
	}
}

// A write that fails leaves everything as it was, and the next one succeeds.
func TestGuardFailures(t *testing.T) {
	node := newHost(t)
	g := openGuard(t, node)
	all := somePorts()
	for _, step := range []func() error{
		func() error { return g.Add(nat.Guarded{Networks: all.Networks}) },
		func() error { return g.Add(nat.Guarded{Ports: all.Ports}) },
		func() error { return g.Remove(nat.Guarded{Ports: all.Ports[:1]}) },
		func() error { return g.Remove(all) },
	} {
		before := guardDump(node)
		for _, injected := range []error{errInjected, unix.ENOENT} {
			g.commit = func(*batch) error { return injected }
			if err := step(); !errors.Is(err, injected) {
				t.Errorf("error %v", err)
			}
			g.commit = g.kernel.commit
			if got := guardDump(node); got != before {
				t.Fatalf("after a failure\n%s\nwant\n%s", got, before)
			}
		}
		if err := step(); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []nat.Port{
		port("eth0", "02:42:ac:1f:00:02", "172.31.0.2"), port("xip*", "02:42:ac:1f:00:02"), {Link: "xip1"},
		{Link: "xip1", MAC: all.Ports[0].MAC, Addresses: []netip.Addr{{}}},
	} {
		if err := g.Add(nat.Guarded{Ports: []nat.Port{bad}}); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	if got := guardDump(node); got != "" {
		t.Errorf("left:\n%s", got)
	}
}
