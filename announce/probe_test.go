package announce

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

// thorough asks for long enough that two who are to meet do.
var thorough = Timing{probes: 20, min: 50 * time.Millisecond, max: 50 * time.Millisecond, after: 50 * time.Millisecond}

func hardware(l link) net.HardwareAddr { return l.mac[:] }

// TestProbeOwner: who has an address is named, however long one would wait.
func TestProbeOwner(t *testing.T) {
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24", "2001:db8::2/64")
	owner := lan.Attach("owner", "192.0.2.56/24", "2001:db8::56/64")
	a := newAnnouncer(t, host)
	mac := hardware(awaitUp(t, newAnnouncer(t, owner), "eth0"))
	for name, addrs := range map[string][]netip.Addr{
		"ipv4": {external},
		"ipv6": {external6},
		"both": {external, external6, external},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		start := time.Now()
		found, err := a.Probe(ctx, "eth0", addrs, Timing{probes: 1, after: time.Hour})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Logf("%s: answered after %v", name, time.Since(start))
		for _, addr := range addrs {
			if got := found[addr]; got.String() != mac.String() {
				t.Errorf("%s: %s is found at %v, want %v", name, addr, got, mac)
			}
		}
	}
	if a.names.bound || len(a.parents) != 0 {
		t.Errorf("left in use: %v", a.parents)
	}
}

// TestProbeFree: a free address takes all the time; a taken one beside it
// doesn't end the wait, and is the only one found.
func TestProbeFree(t *testing.T) {
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24")
	owner := lan.Attach("owner", "192.0.2.56/24", "2001:db8::56/64")
	a := newAnnouncer(t, host)
	c := listen(t, owner)
	free, free6 := external.Next(), external6.Next()
	start := time.Now()
	found, err := a.Probe(t.Context(), "eth0", []netip.Addr{external, free, external6, free6}, Fast)
	took := time.Since(start)
	if err != nil || len(found) != 2 || found[external] == nil || found[external6] == nil {
		t.Errorf("found %v, %v", found, err)
	}
	if took < 450*time.Millisecond {
		t.Errorf("answered after %v", took)
	}
	t.Logf("answered after %v", took)
	times := map[netip.Addr]int{}
	for range 4 * Fast.probes {
		h := await(t, "probe", c)
		if after, want := h.at.Sub(start), time.Duration(times[h.addr])*Fast.min; h.form != "probe" || after < want {
			t.Errorf("heard a %s for %s after %v", h.form, h.addr, after)
		}
		times[h.addr]++
	}
	if times[free] != Fast.probes || times[free6] != Fast.probes {
		t.Errorf("heard %v", times)
	}
	// Asking doesn't tell anybody that the host has an address.
	if neigh := owner.Run("ip", "neigh"); strings.Contains(neigh, free.String()) {
		t.Errorf("the neighbour has learnt %s", neigh)
	}
}

func TestTimingRFC(t *testing.T) {
	if most, least := RFC5227.delay+2*RFC5227.max+RFC5227.after, 2*RFC5227.min+RFC5227.after; most != 7*time.Second || least != 4*time.Second {
		t.Errorf("takes %v to %v", least, most)
	}
	for range 100 {
		if d := upTo(time.Millisecond); d < 0 || d > time.Millisecond {
			t.Fatalf("up to a millisecond: %v", d)
		}
	}
	if upTo(0) != 0 {
		t.Error("up to nothing is something")
	}
}

// TestSimultaneous: two hosts that ask at the same time both see the other.
func TestSimultaneous(t *testing.T) {
	lan := nettest.NewSegment(t)
	hosts := []*Announcer{
		newAnnouncer(t, lan.Attach("one", "192.0.2.2/24")),
		newAnnouncer(t, lan.Attach("two", "192.0.2.3/24")),
	}
	macs := []net.HardwareAddr{hardware(awaitUp(t, hosts[0], "eth0")), hardware(awaitUp(t, hosts[1], "eth0"))}
	var wg sync.WaitGroup
	for i, a := range hosts {
		wg.Go(func() {
			other := macs[1-i]
			// One that the other doesn't ask for keeps the wait going.
			own := netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)})
			found, err := a.Probe(t.Context(), "eth0", []netip.Addr{external, external6, own}, thorough)
			if err != nil {
				t.Error(err)
			}
			if len(found) != 2 || found[external].String() != other.String() || found[external6].String() != other.String() {
				t.Errorf("host %d found %v, want %v", i, found, other)
			}
		})
	}
	wg.Wait()
}

// TestAskedWhileHeld: who asks for an address at the same time as the host that has
// announced it sees that host, which doesn't see him.
func TestAskedWhileHeld(t *testing.T) {
	lan := nettest.NewSegment(t)
	holder, other := newAnnouncer(t, lan.Attach("holder", "192.0.2.2/24")), newAnnouncer(t, lan.Attach("other", "192.0.2.3/24"))
	own := hardware(awaitUp(t, holder, "eth0"))
	for _, addr := range families {
		if err := holder.Announce("eth0", addr); err != nil {
			t.Fatal(err)
		}
	}
	heard := make(chan map[netip.Addr]net.HardwareAddr)
	go func() {
		// One that nobody asks for keeps the wait going.
		found, err := other.Probe(t.Context(), "eth0", []netip.Addr{external, external6, netip.MustParseAddr("192.0.2.99")}, thorough)
		if err != nil {
			t.Error(err)
		}
		heard <- found
	}()
	for range 2 {
		found, err := holder.Probe(t.Context(), "eth0", []netip.Addr{external, external6}, thorough)
		if len(found) > 0 || err != nil {
			t.Errorf("the holder found %v, %v", found, err)
		}
	}
	if found := <-heard; len(found) != 2 || found[external].String() != own.String() || found[external6].String() != own.String() {
		t.Errorf("the other found %v, want %v", found, own)
	}
}

// TestKernelProbes: the other is a kernel with its own duplicate address
// detection. It is heard, and it hears.
func TestKernelProbes(t *testing.T) {
	lan := nettest.NewSegment(t)
	a := newAnnouncer(t, lan.Attach("host", "192.0.2.2/24"))
	other := lan.Attach("other", "2001:db8::9/64")
	mac := hardware(awaitUp(t, newAnnouncer(t, other), "eth0"))
	for _, key := range []string{"all", "eth0"} {
		other.Sysctl("ipv6.conf."+key+".accept_dad", "1")
	}
	other.Sysctl("ipv6.conf.eth0.dad_transmits", "30") // a second each
	conflicts := run(t, a)
	watched, probed := external6, external6.Next()
	if err := a.Watch("eth0", watched); err != nil {
		t.Fatal(err)
	}
	other.Run("ip", "addr", "add", watched.String()+"/64", "dev", "eth0")
	if got := await(t, "conflict", conflicts); got.Address != watched || got.MAC.String() != mac.String() {
		t.Errorf("got %v, want %v", got, mac)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = a.Probe(ctx, "eth0", []netip.Addr{probed, external}, Timing{probes: 1000, min: 20 * time.Millisecond, max: 20 * time.Millisecond})
	}()
	other.Run("ip", "addr", "add", probed.String()+"/64", "dev", "eth0")
	for state := ""; !strings.Contains(state, "dadfailed"); time.Sleep(20 * time.Millisecond) {
		if state = other.Run("ip", "addr", "show", "to", probed.String()); !strings.Contains(state, "tentative") {
			t.Fatalf("the other host takes the address: %s", state)
		}
	}
	cancel()
	<-done
}

// TestOwnAlias: an address that this host has is no conflict, not even if
// another interface on the same segment answers for it.
func TestOwnAlias(t *testing.T) {
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24", "192.0.2.56/32", "2001:db8::56/128")
	lan.Plug(host, "eth1", "192.0.2.3/24")
	a := newAnnouncer(t, host)
	eth0 := hardware(awaitUp(t, a, "eth0"))
	awaitUp(t, a, "eth1")
	addrs := []netip.Addr{external, external6}
	conflicts := run(t, a)
	probe := func(parent string) map[netip.Addr]net.HardwareAddr {
		found, err := a.Probe(t.Context(), parent, addrs, thorough)
		if err != nil {
			t.Error(err)
		}
		return found
	}
	// The answer of an interface that isn't in use is one, so the test could fail.
	if found := probe("eth1"); found[external].String() != eth0.String() {
		t.Errorf("on eth1: found %v, want %v", found, eth0)
	}
	for _, addr := range addrs {
		if err := a.Announce("eth0", addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Watch("eth1", external.Next()); err != nil {
		t.Fatal(err)
	}
	for _, parent := range []string{"eth0", "eth1"} {
		if found := probe(parent); len(found) != 0 {
			t.Errorf("on %s: found %v", parent, found)
		}
	}
	nothingFor(t, 0, conflicts)
}

func TestProbeEnds(t *testing.T) {
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24")
	lan.Attach("owner", "192.0.2.56/24")
	a := newAnnouncer(t, host)
	addrs := []netip.Addr{external, external.Next()}
	for patience, known := 100*time.Millisecond, false; !known; patience *= 10 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		found, err := a.Probe(ctx, "eth0", addrs, Timing{probes: 1, after: time.Hour})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("when ctx ends: %v", err)
		}
		if known = found[external] != nil; !known && patience > 30*time.Second {
			t.Fatal("what was found is forgotten")
		}
	}
	if found, err := a.Probe(t.Context(), "eth0", addrs, Timing{}); len(found) != 0 || err != nil {
		t.Errorf("without timing: %v, %v", found, err)
	}
	if found, err := a.Probe(t.Context(), "eth0", nil, RFC5227); len(found) != 0 || err != nil {
		t.Errorf("without addresses: %v, %v", found, err)
	}
	// Silence of a parent that goes down or is replaced meanwhile is no answer.
	probeDuring := func(change string, timing Timing) (err error, late bool) {
		host.Try("ip", "link", "set", "eth0", "up")
		if _, err := host.Try("ip", "link", "show", "eth0"); err != nil {
			lan.Plug(host, "eth0")
		}
		awaitUp(t, a, "eth0")
		errc := make(chan error, 1)
		go func() {
			_, err := a.Probe(t.Context(), "eth0", []netip.Addr{external.Next()}, timing)
			errc <- err
		}()
		for begun := false; !begun && len(errc) == 0; time.Sleep(time.Millisecond) {
			a.mu.Lock()
			begun = len(a.parents) > 0
			a.mu.Unlock()
		}
		host.Run("sh", "-c", change)
		late = len(errc) > 0
		return <-errc, late
	}
	for _, tt := range []struct {
		change string
		timing Timing
		want   []error
	}{
		{"ip link set eth0 down", thorough, []error{ErrParentDown}},
		{"ip link del eth0", thorough, []error{ErrNoParent}},
		{"ip link del eth0 && ip link add eth0 type veth peer name other && ip link set other up && ip link set eth0 up",
			Timing{probes: 1, after: time.Second}, []error{ErrNoParent, ErrParentDown}},
	} {
		err, late := probeDuring(tt.change, tt.timing)
		for ; err == nil && late && tt.timing.after < time.Minute; err, late = probeDuring(tt.change, tt.timing) {
			tt.timing.after *= 4 // the change took too long
		}
		if !slices.ContainsFunc(tt.want, func(want error) bool { return errors.Is(err, want) }) {
			t.Errorf("%s: %v", tt.change, err)
		}
	}
	if len(a.parents) != 0 {
		t.Errorf("left in use: %v", a.parents)
	}
}
