package announce

import (
	"context"
	"encoding/hex"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { nettest.Main(m) }

var external = netip.MustParseAddr("192.0.2.56")

func newAnnouncer(t *testing.T, node *nettest.Node) *Announcer {
	t.Helper()
	var a *Announcer
	node.MustDo(func() (err error) {
		a, err = New()
		return err
	})
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func TestPacket(t *testing.T) {
	got := hex.EncodeToString(gratuitousARP([6]byte{2, 0, 0, 0, 0, 1}, external))
	// hardware, protocol, lengths, request | sender MAC, sender IP | target MAC, target IP
	const want = "0001080006040001" + "020000000001" + "c0000238" + "000000000000" + "c0000238"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestNeighbourSwitches: an address moves from one host to another; a client
// that has just spoken to the first must find the second at once.
func TestNeighbourSwitches(t *testing.T) {
	lan := nettest.NewSegment(t)
	old := lan.Attach("old", "192.0.2.2/24", "192.0.2.56/32")
	taker := lan.Attach("new", "192.0.2.3/24")
	client := lan.Attach("client", "192.0.2.9/24")
	a := newAnnouncer(t, taker)
	old.Serve(80)
	taker.Serve(80)
	if got := client.Ask("tcp", "192.0.2.56:80"); got != "old saw 192.0.2.9" {
		t.Fatalf("before: %q", got)
	}
	old.Run("ip", "addr", "del", "192.0.2.56/32", "dev", "eth0")
	taker.Run("ip", "addr", "add", "192.0.2.56/32", "dev", "eth0")
	if got := client.Ask("udp", "192.0.2.56:80"); strings.HasPrefix(got, "new") {
		t.Fatalf("the client needs no announcement: %q", got) // the test could not fail
	}
	if err := a.Announce("eth0", external); err != nil {
		t.Fatal(err)
	}
	if got := client.Ask("udp", "192.0.2.56:80"); got != "new saw 192.0.2.9" {
		t.Errorf("after the announcement: %q; %s", got, client.Run("ip", "neigh"))
	}
}

func TestRepeats(t *testing.T) {
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24")
	peer := lan.Attach("peer", "192.0.2.9/24")
	a := newAnnouncer(t, host)
	a.spacing = 20 * time.Millisecond
	heard := listen(t, peer)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	if err := a.Announce("eth0", external); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(2 * time.Second)
	for i := range Times {
		select {
		case <-heard:
		case <-deadline:
			t.Fatalf("heard %d announcements, want %d", i, Times)
		}
	}
	select {
	case <-heard:
		t.Errorf("heard more than %d announcements", Times)
	case <-time.After(5 * a.spacing):
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// listen delivers each announcement of the external address that a node hears.
func listen(t *testing.T, node *nettest.Node) <-chan struct{} {
	t.Helper()
	heard := make(chan struct{}, 16)
	node.MustDo(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(networkOrder(unix.ETH_P_ARP)))
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "arp")
		t.Cleanup(func() { _ = f.Close() })
		go func() {
			buf := make([]byte, 128)
			for {
				n, err := f.Read(buf)
				if err != nil {
					return
				}
				if n >= 28 && [4]byte(buf[14:18]) == external.As4() && [4]byte(buf[24:28]) == external.As4() {
					heard <- struct{}{}
				}
			}
		}()
		return nil
	})
	return heard
}

func TestNoNeighbours(t *testing.T) {
	host := nettest.NewNode(t, "host")
	a := newAnnouncer(t, host)
	if err := a.Announce("lo", external); err != nil {
		t.Errorf("on lo: %v", err)
	}
	for _, parent := range []string{"eth9", "a-name-that-is-too-long"} {
		if err := a.Announce(parent, external); err == nil || !strings.Contains(err.Error(), parent) {
			t.Errorf("on %s: %v", parent, err)
		}
	}
	if err := a.Announce("lo", netip.MustParseAddr("2001:db8::56")); err == nil {
		t.Error("IPv6 is accepted")
	}
}
