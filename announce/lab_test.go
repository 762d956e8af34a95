package announce

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { nettest.Main(m) }

var (
	external  = netip.MustParseAddr("192.0.2.56")
	external6 = netip.MustParseAddr("2001:db8::56")
	families  = map[string]netip.Addr{"ipv4": external, "ipv6": external6}
)

// patience is for what happens within a millisecond on an idle machine.
const patience = 30 * time.Second

// newAnnouncer returns one that is ready to use all interfaces of a node.
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
	awaitUp(t, a, "eth0")
	return a
}

// awaitUp returns when the kernel has noticed an interface's carrier.
func awaitUp(t *testing.T, a *Announcer, dev string) link {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if l, _, err := a.locate(dev); !errors.Is(err, ErrParentDown) {
			return l
		}
	}
	t.Fatalf("%s doesn't come up", dev)
	return link{}
}

// run runs an Announcer until the test ends and delivers its conflicts.
func run(t *testing.T, a *Announcer) <-chan Conflict {
	t.Helper()
	conflicts := make(chan Conflict, 64)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- a.Run(ctx, func(c Conflict) { conflicts <- c }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return conflicts
}

func await[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// heard is a packet that somebody heard.
type heard struct {
	at   time.Time
	form string
	addr netip.Addr
	mac  mac
}

// listen delivers what a node hears of addresses.
func listen(t *testing.T, node *nettest.Node) <-chan heard {
	t.Helper()
	out := make(chan heard, 8192)
	for _, protocol := range []uint16{unix.ETH_P_ARP, unix.ETH_P_IPV6} {
		var s *socket
		node.MustDo(func() (err error) {
			s, err = openSocket(protocol, nil)
			return err
		})
		if err := s.bind(); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		t.Cleanup(func() {
			_ = s.file.Close()
			<-done
		})
		go func() {
			defer close(done)
			buf := make([]byte, 2048)
			for {
				packet, _, sender, err := s.receive(buf)
				if err != nil {
					return
				}
				if h := recognise(packet, sender); h.form != "" {
					out <- h
				}
			}
		}()
	}
	return out
}

// recognise leaves form empty if a packet has none of the forms that are sent.
func recognise(packet []byte, sender mac) heard {
	h := heard{at: time.Now()}
	if p, ok := parseARP(packet); ok {
		h.addr, h.mac = p.target, p.senderMAC
		switch p {
		case arpProbe(p.senderMAC, p.target):
			h.form = "probe"
		case gratuitousARP(p.senderMAC, p.target):
			h.form = "request"
		case gratuitousReply(p.senderMAC, p.target):
			h.form = "reply"
		}
	} else if p, ok := parseNDP(packet); ok {
		h.addr, h.mac = p.target, p.mac
		switch p {
		case unsolicited(p.mac, p.target):
			h.form = "advertisement"
		case ndpProbe(p.target):
			h.form, h.mac = "probe", sender
		}
	}
	return h
}

// nothingFor fails if something comes within a time.
func nothingFor[T any](t *testing.T, d time.Duration, c <-chan T) {
	t.Helper()
	select {
	case v := <-c:
		t.Errorf("unexpected: %v", v)
	case <-time.After(d):
	}
}
