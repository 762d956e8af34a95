package announce

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

// TestPermit: what isn't permitted is neither defended nor refreshed, until it is
// permitted again; what a call announces is announced all the same.
func TestPermit(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			lan := nettest.NewSegment(t)
			a := newAnnouncer(t, lan.Attach("host", "192.0.2.2/24"))
			r := newRival(t, lan.Attach("rival", "192.0.2.3/24"))
			c := listen(t, lan.Attach("peer", "192.0.2.9/24"))
			var permitted atomic.Bool
			a.SetPermit(func(netip.Addr) bool { return permitted.Load() })
			a.SetRefresh(20 * time.Millisecond)
			a.spacing, a.reportInterval = time.Millisecond, 0
			conflicts := run(t, a)
			if err := a.Announce("eth0", addr); err != nil {
				t.Fatal(err)
			}
			times := Times
			if addr.Is4() {
				times *= 2
			}
			for range times {
				if h := await(t, "announcement", c); h.addr != addr || h.form == "probe" {
					t.Errorf("unexpected: %v", h)
				}
			}
			r.owns(t, addr)
			if got := await(t, "conflict", conflicts); got.Address != addr || got.Defended {
				t.Errorf("not permitted: %v", got)
			}
			if h := await(t, "rival", c); h.mac != r.mac {
				t.Errorf("defended: %v", h)
			}
			nothingFor(t, 10*a.refresh, c)
			permitted.Store(true)
			if h := await(t, "refresh", c); h.addr != addr || h.mac == r.mac {
				t.Errorf("unexpected: %v", h)
			}
		})
	}
}

// TestChallenge: whoever uses an address hears once that another host has it,
// which doesn't go on saying so.
func TestChallenge(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			lan := nettest.NewSegment(t)
			a := newAnnouncer(t, lan.Attach("host", "192.0.2.2/24"))
			holder := newAnnouncer(t, lan.Attach("holder", "192.0.2.3/24"))
			c := listen(t, lan.Attach("peer", "192.0.2.9/24"))
			holder.SetPermit(func(netip.Addr) bool { return false })
			a.spacing = time.Millisecond
			run(t, a)
			conflicts := run(t, holder)
			if err := holder.Defend("eth0", addr); err != nil {
				t.Fatal(err)
			}
			if err := a.Challenge("eth0", addr); err != nil {
				t.Fatal(err)
			}
			own := awaitUp(t, a, "eth0")
			if got := await(t, "conflict", conflicts); got.Address != addr || got.MAC.String() != hardware(own).String() || got.Defended {
				t.Errorf("got %v", got)
			}
			frames := 1
			if addr.Is4() {
				frames = 2
			}
			for range frames {
				if h := await(t, "challenge", c); h.addr != addr || h.mac != own.mac {
					t.Errorf("unexpected: %v", h)
				}
			}
			nothingFor(t, 20*a.spacing, c)
			if err := a.Challenge("eth9", addr); err == nil {
				t.Error("an interface that isn't there is no error")
			}
		})
	}
}

// TestPeers: of hosts that agree by other means none takes another's question for
// a claim, while it asks itself or listens; an answer is one.
func TestPeers(t *testing.T) {
	lan := nettest.NewSegment(t)
	one := newAnnouncer(t, lan.Attach("one", "192.0.2.2/24"))
	owner := lan.Attach("two", "192.0.2.3/24")
	two := newAnnouncer(t, owner)
	peer := hardware(awaitUp(t, two, "eth0"))
	one.SetPeer(func(m net.HardwareAddr) bool { return m.String() == peer.String() })
	two.SetPeer(func(net.HardwareAddr) bool { return true })
	conflicts := run(t, one)
	both := []netip.Addr{external, external6}
	watched := []netip.Addr{external.Next(), external6.Next()}
	for _, addr := range watched {
		if err := one.Watch("eth0", addr); err != nil {
			t.Fatal(err)
		}
	}
	ask := func() map[netip.Addr]net.HardwareAddr {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			if found, err := two.Probe(t.Context(), "eth0", append(both, watched...), thorough); err != nil || len(found) != 0 {
				t.Errorf("found %v, %v", found, err)
			}
		})
		found, err := one.Probe(t.Context(), "eth0", both, thorough)
		if err != nil {
			t.Error(err)
		}
		return found
	}
	if found := ask(); len(found) != 0 {
		t.Errorf("found %v", found)
	}
	nothingFor(t, 10*time.Millisecond, conflicts)
	owner.Run("ip", "addr", "add", external.String()+"/32", "dev", "eth0")
	if found := ask(); len(found) != 1 || found[external].String() != peer.String() {
		t.Errorf("found %v, want %v", found, peer)
	}
}
