package driver

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	api "github.com/docker/go-plugins-helpers/network"

	"github.com/extip/extip/link"
)

// bar adds an address to the barrier behind the driver's back.
func bar(l *lab, a netip.Addr) error {
	_, err := l.host.Bar([]netip.Prefix{netip.PrefixFrom(a, a.BitLen())})
	return err
}

// barred is what the machine says of its barrier.
func barred(l *lab) string {
	for line := range strings.Lines(l.host.String()) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), barrierLine); ok {
			return rest
		}
	}
	return ""
}

// TestBarrier: from pools, and from what is published beside them, the host sends
// nothing itself, from before an address is put anywhere until it is gone; also
// after somebody took that away. (That an alias never comes before its barrier,
// the machine sees to in all tests.)
func TestBarrier(t *testing.T) {
	l := newLab(t)
	has := func(want string) {
		t.Helper()
		if got := barred(l); got != want {
			t.Errorf("barred are %s, want %s", got, want)
		}
	}
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.59")
	has("[203.0.113.56/30]")
	if err := l.run(epID, "172.31.0.2/16", "extip.address", "203.0.113.56,203.0.113.60"); err != nil {
		t.Fatal(err)
	}
	has("[203.0.113.56/30 203.0.113.60/32]")
	writes := l.host.Writes()
	if err := errors.Join(l.run("e2", "172.31.0.3/16"), l.rm("e2")); err != nil {
		t.Error(err)
	}
	quiet := l.host.Writes() - writes
	if lines, err := l.Check(); len(lines) > 0 || err != nil {
		t.Errorf("check: %q, %v", lines, err)
	}
	if _, err := l.host.Bar(nil); err != nil {
		t.Fatal(err)
	}
	for _, look := range []func() ([]string, error){l.Check, func() ([]string, error) { return l.Reconcile("test") }} {
		if lines, err := look(); len(lines) != 2 || err != nil {
			t.Errorf("after it was taken away: %q, %v", lines, err)
		}
	}
	has("[203.0.113.56/30 203.0.113.60/32]")
	if !l.isDamage(link.Change{Kind: link.RuleGone}) || !l.isDamage(link.Change{Kind: link.AddressCame, Prefix: netip.MustParsePrefix("203.0.113.57/24")}) ||
		l.isDamage(link.Change{Kind: link.AddressCame, Prefix: netip.MustParsePrefix("203.0.113.9/24")}) {
		t.Error("what is damage to the barrier isn't, or what isn't is")
	}
	l.restart()
	has("[203.0.113.56/30 203.0.113.60/32]")
	if err := l.rm(epID); err != nil {
		t.Error(err)
	}
	has("[203.0.113.56/30]")
	if err := l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID}); err != nil {
		t.Error(err)
	}
	l.clean()
	t.Logf("a container with an address of the pool: %d writes", quiet)
}

// TestBarrierIsBounded: what is spread over too many ranges works, without.
func TestBarrierIsBounded(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex", "extip.pool", "198.51.100.128/25,203.0.113.56")
	for i := range maxBarred + 8 {
		l.markPublished(nil, []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(4 * i)})}, "br-ex")
	}
	prefixes, rest := l.barrier(nil)
	if len(prefixes) != maxBarred || rest != 10 || !slices.Contains(prefixes, netip.MustParsePrefix("198.51.100.128/25")) {
		t.Errorf("%d of them, %d left out: %v", len(prefixes), rest, prefixes)
	}
}

// TestNoBarrier: a kernel that can't is told of, and no reason not to work.
func TestNoBarrier(t *testing.T) {
	l := newLab(t)
	l.host.NoBarrier = true
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56")
	if err := l.run(epID, "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	l.check(running)
	if lines, err := l.Reconcile("test"); len(lines) > 0 || err != nil {
		t.Errorf("%q, %v", lines, err)
	}
	if lines, err := l.Check(); len(lines) > 0 || err != nil {
		t.Errorf("check: %q, %v", lines, err)
	}
}
