package announce

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"golang.org/x/sys/unix"
)

// rival is a host that sends whatever a test wants.
type rival struct {
	*Announcer
	link
}

func newRival(t *testing.T, node *nettest.Node) rival {
	a := newAnnouncer(t, node)
	return rival{a, awaitUp(t, a, "eth0")}
}

// owns sends what an owner sends, once.
func (r rival) owns(t *testing.T, addr netip.Addr) {
	t.Helper()
	if err := r.claim(r.link, addr); err != nil {
		t.Fatal(err)
	}
}

func (r rival) asks(t *testing.T, addr netip.Addr) {
	t.Helper()
	if err := r.ask(r.link, addr); err != nil {
		t.Fatal(err)
	}
}

// markers are watched so that a test knows when what was
// sent before has been dealt with.
var markers = map[bool]netip.Addr{
	false: netip.MustParseAddr("192.0.2.99"),
	true:  netip.MustParseAddr("2001:db8::99"),
}

// noConflict fails if there was another conflict than the marker's.
func (r rival) noConflict(t *testing.T, family netip.Addr, c <-chan Conflict) {
	t.Helper()
	marker := markers[family.Is6()]
	for {
		r.owns(t, marker)
		select {
		case got := <-c:
			if got.Address == marker {
				return
			}
			t.Errorf("unexpected: %v", got)
		case <-time.After(patience):
			t.Fatal("no marker")
		}
	}
}

// watched returns a running Announcer that watches the markers, and its rival.
func watched(t *testing.T) (a *Announcer, conflicts <-chan Conflict, r rival) {
	lan := nettest.NewSegment(t)
	a = newAnnouncer(t, lan.Attach("host", "192.0.2.2/24", "2001:db8::2/64"))
	r = newRival(t, lan.Attach("rival", "192.0.2.3/24"))
	a.reportInterval = 0
	for _, marker := range markers {
		if err := a.Watch("eth0", marker); err != nil {
			t.Fatal(err)
		}
	}
	return a, run(t, a), r
}

func TestWatch(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			a, conflicts, r := watched(t)
			r.owns(t, addr) // not yet watched
			r.noConflict(t, addr, conflicts)
			if err := a.Watch("eth0", addr); err != nil {
				t.Fatal(err)
			}
			want := Conflict{Parent: "eth0", Address: addr, MAC: hardware(r.link)}
			for what, send := range map[string]func(*testing.T, netip.Addr){"owner": r.owns, "claimant": r.asks} {
				send(t, addr)
				if got := await(t, what, conflicts); got.Parent != want.Parent || got.Address != want.Address ||
					got.MAC.String() != want.MAC.String() || got.Defended {
					t.Errorf("%s: got %v, want %v", what, got, want)
				}
			}
			a.Unwatch("eth0", addr)
			r.owns(t, addr)
			r.asks(t, addr)
			r.noConflict(t, addr, conflicts)
		})
	}
}

func TestDefend(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) { defend(t, addr, true) })
		t.Run(name+", announced by a program before", func(t *testing.T) { defend(t, addr, false) })
	}
}

func defend(t *testing.T, addr netip.Addr, announces bool) {
	lan := nettest.NewSegment(t)
	a := newAnnouncer(t, lan.Attach("host", "192.0.2.2/24"))
	r := newRival(t, lan.Attach("rival", "192.0.2.3/24"))
	c := listen(t, lan.Attach("peer", "192.0.2.9/24"))
	a.reportInterval, a.defendInterval = 0, 30*time.Minute
	a.spacing = 0
	conflicts := run(t, a)
	how, times := a.Defend, 0
	if announces {
		how, times = a.Announce, Times
	}
	if err := how("eth0", addr); err != nil {
		t.Fatal(err)
	}
	if addr.Is4() {
		times *= 2
	}
	for range times {
		await(t, "announcement", c)
	}
	const attempts = 5
	for i := range attempts {
		r.owns(t, addr)
		if got := await(t, "conflict", conflicts); got.Defended != (i == 0) {
			t.Errorf("conflict %d: %v", i, got)
		}
	}
	marker := markers[addr.Is6()]
	r.owns(t, marker) // is heard last
	defences := 0
	for h := await(t, "defence", c); h.addr != marker; h = await(t, "defence", c) {
		if h.mac == r.mac {
			continue
		}
		if defences++; h.form != "request" && h.form != "advertisement" {
			t.Errorf("defends by a %s", h.form)
		}
	}
	if defences != 1 {
		t.Errorf("%d defences, want 1", defences)
	}
	// The interval is over.
	a.mu.Lock()
	a.defendInterval = 0
	a.mu.Unlock()
	r.owns(t, addr)
	if got := await(t, "conflict", conflicts); !got.Defended {
		t.Errorf("after the interval: %v", got)
	}
}

// TestClaimant: a host that asks for an announced address is answered by the
// kernel, and only then a conflict if it doesn't heed that.
func TestClaimant(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			a, conflicts, r := watched(t)
			if err := a.Announce("eth0", addr); err != nil {
				t.Fatal(err)
			}
			r.asks(t, addr)
			r.noConflict(t, addr, conflicts)
			r.owns(t, addr)
			if got := await(t, "conflict", conflicts); got.Address != addr || !got.Defended {
				t.Errorf("got %v", got)
			}
			// Of Announce and Watch, the last counts.
			if err := a.Watch("eth0", addr); err != nil {
				t.Fatal(err)
			}
			r.asks(t, addr)
			if got := await(t, "conflict", conflicts); got.Address != addr || got.Defended {
				t.Errorf("watched: got %v", got)
			}
		})
	}
}

func TestReportInterval(t *testing.T) {
	a, conflicts, r := watched(t)
	if err := a.Watch("eth0", external); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	a.reportInterval = 30 * time.Minute
	a.mu.Unlock()
	for range 10 {
		r.owns(t, external)
	}
	if got := await(t, "conflict", conflicts); got.Address != external {
		t.Errorf("got %v", got)
	}
	// Each address has its own interval; this comes last.
	if err := a.Watch("eth0", external.Next()); err != nil {
		t.Fatal(err)
	}
	r.owns(t, external.Next())
	if got := await(t, "conflict", conflicts); got.Address != external.Next() {
		t.Errorf("got %v", got)
	}
}

// TestUnwatch: there are no repeats, no defence and no membership left.
func TestUnwatch(t *testing.T) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			lan := nettest.NewSegment(t)
			host := lan.Attach("host", "192.0.2.2/24")
			a := newAnnouncer(t, host)
			r := newRival(t, lan.Attach("rival", "192.0.2.3/24"))
			c := listen(t, lan.Attach("peer", "192.0.2.9/24"))
			groups := host.Run("ip", "maddr", "show", "dev", "eth0")
			a.spacing = 20 * time.Millisecond
			if err := a.Watch("eth0", addr); err != nil {
				t.Fatal(err)
			}
			if now := host.Run("ip", "maddr", "show", "dev", "eth0"); addr.Is6() && now == groups {
				t.Errorf("the group isn't joined: %s", now)
			}
			if err := a.Announce("eth0", addr); err != nil {
				t.Fatal(err)
			}
			a.Unwatch("eth0", addr)
			conflicts := run(t, a) // which repeats have waited for
			for await(t, "announcement", c).form == "request" {
			}
			r.owns(t, addr)
			if got := await(t, "rival", c); got.mac != r.mac {
				t.Errorf("somebody else is heard: %v", got)
			}
			nothingFor(t, 5*a.spacing, c)
			nothingFor(t, 0, conflicts)
			if now := host.Run("ip", "maddr", "show", "dev", "eth0"); now != groups {
				t.Errorf("groups:\n%s\nbefore:\n%s", now, groups)
			}
			a.Unwatch("eth0", addr)
			a.Unwatch("eth9", addr)
		})
	}
}

// TestMadeAgain: a parent is deleted and made again under its name.
func TestMadeAgain(t *testing.T) {
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24")
	a := newAnnouncer(t, host)
	r := newRival(t, lan.Attach("rival", "192.0.2.3/24"))
	conflicts := run(t, a)
	first := awaitUp(t, a, "eth0")
	for _, addr := range families {
		if err := a.Watch("eth0", addr); err != nil {
			t.Fatal(err)
		}
	}
	host.Run("ip", "link", "del", "eth0")
	lan.Plug(host, "eth0", "192.0.2.2/24")
	if second := awaitUp(t, a, "eth0"); second.index == first.index {
		t.Fatalf("the index is still %d", first.index) // the test could not fail
	}
	if err := a.Announce("eth0", external.Next()); err != nil {
		t.Fatal(err)
	}
	const group = "33:33:ff:00:00:56"
	if groups := host.Run("ip", "maddr", "show", "dev", "eth0"); !strings.Contains(groups, group) {
		t.Errorf("the group isn't joined: %s", groups)
	}
	for _, addr := range families {
		r.asks(t, addr)
		if got := await(t, "conflict", conflicts); got.Address != addr {
			t.Errorf("%s: got %v", addr, got)
		}
	}
	for _, addr := range families {
		a.Unwatch("eth0", addr)
	}
	if groups := host.Run("ip", "maddr", "show", "dev", "eth0"); strings.Contains(groups, group) {
		t.Errorf("the group isn't left: %s", groups)
	}
}

// TestTwoParents: what is heard on one says nothing of the other.
func TestTwoParents(t *testing.T) {
	one, two := nettest.NamedSegment(t, "lan1"), nettest.NamedSegment(t, "lan2")
	host := one.Attach("host")
	two.Plug(host, "eth1")
	a := newAnnouncer(t, host)
	awaitUp(t, a, "eth1")
	rivals := []rival{newRival(t, one.Attach("rival1")), newRival(t, two.Attach("rival2", "192.0.2.77/32"))}
	conflicts := run(t, a)
	for _, parent := range []string{"eth0", "eth1"} {
		if err := a.Watch(parent, external); err != nil {
			t.Fatal(err)
		}
	}
	for i, r := range rivals {
		r.owns(t, external)
		if got, want := await(t, "conflict", conflicts), []string{"eth0", "eth1"}[i]; got.Parent != want || got.MAC.String() != hardware(r.link).String() {
			t.Errorf("got %v, want one on %s by %v", got, want, hardware(r.link))
		}
	}
	owned := netip.MustParseAddr("192.0.2.77")
	for parent, want := range map[string]int{"eth0": 0, "eth1": 1} {
		if found, err := a.Probe(t.Context(), parent, []netip.Addr{owned}, Fast); len(found) != want || err != nil {
			t.Errorf("on %s: found %v, %v", parent, found, err)
		}
	}
}

// TestFilter: the kernel passes nothing on that doesn't concern a parent in use.
func TestFilter(t *testing.T) {
	one, two := nettest.NamedSegment(t, "lan1"), nettest.NamedSegment(t, "lan2")
	host := one.Attach("host")
	two.Plug(host, "eth1")
	a := newAnnouncer(t, host)
	awaitUp(t, a, "eth1")
	used, unused := newRival(t, one.Attach("rival1")), newRival(t, two.Attach("rival2"))
	conflicts := run(t, a)
	passed := func() (n int) {
		for _, s := range []*socket{a.arp, a.ndp} {
			if err := s.control(func(fd int) error {
				// Reading them begins anew.
				stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
				if err == nil {
					n += int(stats.Packets)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	noise := func() {
		for _, addr := range families {
			unused.owns(t, addr)
			unused.asks(t, addr)
		}
	}
	noise()
	for _, addr := range families {
		used.owns(t, addr)
		if err := a.Watch("eth0", addr); err != nil {
			t.Fatal(err)
		}
	}
	if n := passed(); n != 0 {
		t.Errorf("%d packets are passed on before there is anything to watch", n)
	}
	noise()
	for _, addr := range families {
		used.owns(t, addr)
		await(t, "conflict", conflicts)
	}
	if n := passed(); n != 2 {
		t.Errorf("%d packets are passed on, want 2", n)
	}
	for _, addr := range families {
		a.Unwatch("eth0", addr)
	}
	for _, addr := range families {
		used.owns(t, addr)
	}
	noise()
	if n := passed(); n != 0 {
		t.Errorf("%d packets are passed on when nothing is watched any more", n)
	}
	// More than can be listed are all passed.
	if err := a.arp.restrict(make([]int, maxListed+1)); err != nil {
		t.Fatal(err)
	}
	unused.owns(t, external)
	for deadline := time.Now().Add(patience); passed() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is passed on")
		}
	}
}

// TestVLAN: the owner of an address in another VLAN is no conflict, though its
// frames come by the same interface.
func TestVLAN(t *testing.T) {
	a, conflicts, r := watched(t)
	if err := a.Watch("eth0", external); err != nil {
		t.Fatal(err)
	}
	body := append([]byte{0, 10, 0x08, 0x06}, gratuitousARP(r.mac, external).marshal()...) // VLAN 10, ARP
	// What follows the Ethernet addresses is a tag if the type says so.
	tagged := socket{conn: r.arp.conn, protocol: unix.ETH_P_8021Q}
	if err := tagged.send(r.index, broadcast, body); err != nil {
		t.Fatal(err)
	}
	r.noConflict(t, external, conflicts)
	r.owns(t, external)
	for await(t, "conflict", conflicts).Address != external {
	}
}
