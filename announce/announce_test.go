package announce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

// TestNeighbourSwitches: an address moves from one host to another; a client
// that has just spoken to the first must find the second at once, by any
// form, also if the others were lost.
func TestNeighbourSwitches(t *testing.T) {
	for name, tt := range map[string]struct {
		addr netip.Addr
		tell func(*Announcer, link) error
	}{
		"ipv4":         {external, nil},
		"ipv4 request": {external, func(a *Announcer, l link) error { return a.claim(l, external) }},
		"ipv4 reply": {external, func(a *Announcer, l link) error {
			return a.arp.send(l.index, broadcast, gratuitousReply(l.mac, external).marshal())
		}},
		"ipv6": {external6, nil},
	} {
		t.Run(name, func(t *testing.T) {
			prefix := netip.PrefixFrom(tt.addr, tt.addr.BitLen()).String()
			lan := nettest.NewSegment(t)
			old := lan.Attach("old", "192.0.2.2/24", "2001:db8::2/64", prefix)
			taker := lan.Attach("new", "192.0.2.3/24", "2001:db8::3/64")
			client := lan.Attach("client", "192.0.2.9/24", "2001:db8::9/64")
			a := newAnnouncer(t, taker)
			server := netip.AddrPortFrom(tt.addr, 80).String()
			old.Serve(80)
			if got := client.Ask("tcp", server); !strings.HasPrefix(got, "old saw ") {
				t.Fatalf("before: %q", got)
			}
			old.Run("ip", "addr", "del", prefix, "dev", "eth0")
			add := []string{"ip", "addr", "add", prefix, "dev", "eth0"}
			if tt.addr.Is6() {
				add = append(add, "nodad")
			}
			taker.Run(add...)
			taker.Serve(80)
			if got := client.Ask("udp", server); strings.HasPrefix(got, "new") {
				t.Fatalf("the client needs no announcement: %q", got) // the test could not fail
			}
			t.Log(client.Run("ip", "neigh", "show", "to", tt.addr.String()))
			err := error(nil)
			if tt.tell == nil {
				err = a.Announce("eth0", tt.addr)
			} else {
				err = tt.tell(a, awaitUp(t, a, "eth0"))
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := client.Ask("udp", server); !strings.HasPrefix(got, "new saw ") {
				t.Errorf("after the announcement: %q; %s", got, client.Run("ip", "neigh"))
			}
		})
	}
}

// TestTimes: what is heard, how often and how far apart.
func TestTimes(t *testing.T) {
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24")
	peer := lan.Attach("peer", "192.0.2.9/24")
	a := newAnnouncer(t, host)
	a.spacing = 50 * time.Millisecond
	own := awaitUp(t, a, "eth0").mac
	c := listen(t, peer)
	run(t, a)
	for addr, forms := range map[netip.Addr][]string{external: {"request", "reply"}, external6: {"advertisement"}} {
		sent := time.Now()
		if err := a.Announce("eth0", addr); err != nil {
			t.Fatal(err)
		}
		for i := range Times {
			for _, form := range forms {
				h := await(t, form, c)
				if h.form != form || h.addr != addr || h.mac != own {
					t.Fatalf("heard a %s for %s by %x, want a %s for %s by %x", h.form, h.addr, h.mac, form, addr, own)
				}
				if after := h.at.Sub(sent); after < time.Duration(i)*a.spacing {
					t.Errorf("%s %d comes after %v already", form, i+1, after)
				}
			}
		}
		nothingFor(t, 5*a.spacing, c)
	}
}

// TestAgain: an address that is announced again before its repeats are over
// begins anew. They wait for Run, however long that takes.
func TestAgain(t *testing.T) {
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24")
	peer := lan.Attach("peer", "192.0.2.9/24")
	a := newAnnouncer(t, host)
	a.spacing = 200 * time.Millisecond
	c := listen(t, peer)
	var last time.Time
	for range 3 {
		<-time.After(a.spacing / 4)
		last = time.Now()
		if err := a.Announce("eth0", external6); err != nil {
			t.Fatal(err)
		}
		await(t, "announcement", c)
	}
	run(t, a)
	for i := range Times - 1 {
		if h := await(t, "repeat", c); h.at.Sub(last) < time.Duration(i+1)*a.spacing {
			t.Errorf("repeat %d comes after %v", i+1, h.at.Sub(last))
		}
	}
	nothingFor(t, 2*a.spacing, c)
}

// TestMany: the repeats of many are paced, and none is left out.
func TestMany(t *testing.T) {
	const count = 300
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24")
	peer := lan.Attach("peer", "192.0.2.9/24")
	a := newAnnouncer(t, host)
	a.spacing = 10 * time.Millisecond
	c := listen(t, peer)
	run(t, a)
	start := time.Now()
	for addr, i := external6, 0; i < count; addr, i = addr.Next(), i+1 {
		if err := a.Announce("eth0", addr); err != nil {
			t.Fatal(err)
		}
	}
	times := map[netip.Addr]int{}
	for range count * Times {
		times[await(t, "announcement", c).addr]++
	}
	for addr, n := range times {
		if n != Times {
			t.Errorf("%s: announced %d times, want %d", addr, n, Times)
		}
	}
	if got, want := time.Since(start), count*(Times-1)/batch*pace; got < want {
		t.Errorf("all is said after %v, want at least %v", got, want)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.repeats) != 0 {
		t.Errorf("%d are still to come", len(a.repeats))
	}
}

func TestRefresh(t *testing.T) {
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24")
	peer := lan.Attach("peer", "192.0.2.9/24")
	a := newAnnouncer(t, host)
	a.spacing = 0
	a.SetRefresh(300 * time.Millisecond)
	c := listen(t, peer)
	run(t, a)
	addrs := []netip.Addr{external6}
	for range 9 {
		addrs = append(addrs, addrs[len(addrs)-1].Next())
	}
	other := addrs[len(addrs)-1].Next()
	for _, addr := range addrs {
		if err := a.Announce("eth0", addr); err != nil {
			t.Fatal(err)
		}
	}
	const rounds = 3
	times := map[netip.Addr]int{}
	for range len(addrs)*(Times+rounds) + len(addrs)/2 { // to end within a round
		times[await(t, "refresh", c).addr]++
	}
	for _, addr := range addrs {
		if times[addr] < Times+rounds-1 {
			t.Errorf("%s was announced %d times: %v", addr, times[addr], times)
		}
		a.Unwatch("eth0", addr)
	}
	if err := a.Announce("eth0", other); err != nil { // is heard when all before is
		t.Fatal(err)
	}
	for await(t, "announcement", c).addr != other {
	}
	for deadline := time.Now().Add(2 * a.refresh); time.Now().Before(deadline); {
		if h := await(t, "refresh", c); h.addr != other {
			t.Errorf("%s is refreshed after Unwatch", h.addr)
		}
	}
}

func TestParents(t *testing.T) {
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24")
	a := newAnnouncer(t, host)
	host.Run("ip", "link", "add", "unplugged", "type", "veth", "peer", "name", "off")
	host.Run("ip", "link", "set", "unplugged", "up")
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, _, err := a.locate("unplugged"); err != nil {
			break // the kernel has noticed
		}
	}
	host.Run("ip", "link", "add", "noarp", "type", "bridge")
	host.Run("ip", "link", "set", "noarp", "up", "arp", "off")
	for _, tt := range []struct {
		parent string
		want   error
	}{
		{"eth0", nil},
		{"lo", nil},
		{"noarp", nil},
		{"off", ErrParentDown},
		{"unplugged", ErrParentDown},
		{"eth9", ErrNoParent},
		{"", ErrNoParent},
		{"a-name-that-is-too-long", ErrNoParent},
	} {
		for _, addr := range families {
			_, err := a.Probe(t.Context(), tt.parent, []netip.Addr{addr}, Timing{probes: 1})
			for call, err := range map[string]error{
				"announce": a.Announce(tt.parent, addr),
				"watch":    a.Watch(tt.parent, addr),
				"probe":    err,
			} {
				if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), "on "+tt.parent+":") {
					t.Errorf("%s %s on %q: %v, want %v", call, addr, tt.parent, err, tt.want)
				}
			}
			a.Unwatch(tt.parent, addr)
		}
	}
	if len(a.parents) != 0 || len(a.byIndex) != 0 {
		t.Errorf("left in use: %v", a.parents)
	}
	// Nobody to ask is no reason to wait.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, parent := range []string{"lo", "noarp"} {
		if found, err := a.Probe(ctx, parent, []netip.Addr{external, external6}, Timing{probes: 1, after: time.Hour}); len(found) != 0 || err != nil {
			t.Errorf("on %s: %v, %v", parent, found, err)
		}
	}
	for _, addr := range []netip.Addr{{}, netip.IPv4Unspecified(), allNodes, netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("::ffff:192.0.2.1")} {
		_, err := a.Probe(t.Context(), "eth0", []netip.Addr{addr}, Fast)
		for call, err := range map[string]error{"announce": a.Announce("eth0", addr), "watch": a.Watch("eth0", addr), "probe": err} {
			if err == nil {
				t.Errorf("%s accepts %q", call, fmt.Sprint(addr))
			}
		}
	}
}
