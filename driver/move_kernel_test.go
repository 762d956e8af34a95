package driver_test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/extip/extip/driver"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/link"
)

// patience is how long an answer may take on a busy machine.
const patience = 30 * time.Second

var backends = []string{"nftables", "iptables"}

// twoContainers is a host with two containers, of which the first has .60.
func twoContainers(t testing.TB, backend string) (s *soak, first, second *container) {
	s = newSoak(t, time.Now().UnixNano())
	s.backend = backend
	s.start()
	s.createNetwork()
	network, _ := pick(s.random, s.networks)
	first = &container{network: network, address: s.freeAddress(network), external: "203.0.113.60"}
	s.containers["c1"] = first
	second = &container{network: network, address: s.freeAddress(network), external: "none"}
	s.containers["c2"] = second
	for _, c := range []*container{first, second} {
		if !s.startContainer(c) {
			t.FailNow()
		}
		host, _ := link.VethNames(c.endpoint)
		s.host.AwaitPort(host)
	}
	return s, first, second
}

// echo serves on a node: it says the node's name and whom it sees, then whatever
// it is told.
func echo(n *nettest.Node) {
	n.ServeTCP(80, func(c net.Conn) {
		fmt.Fprintf(c, "%s sees %s\n", n.Name, c.RemoteAddr().(*net.TCPAddr).IP)
		for in := bufio.NewReader(c); ; {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(c, line)
		}
	})
}

// A talk is a connection to an echo.
type talk struct {
	t testing.TB
	net.Conn
	in *bufio.Reader
}

// talkTo connects, and checks who answers and whom he sees.
func talkTo(t testing.TB, from *nettest.Node, a, want string) *talk {
	t.Helper()
	var c net.Conn
	err := from.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", a+":80", patience)
		return err
	})
	if err != nil {
		t.Fatalf("%s connects to %s: %v", from.Name, a, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	to := &talk{t, c, bufio.NewReader(c)}
	if got, err := to.hear(); got != want+"\n" {
		t.Errorf("%s connects to %s: %q, %v, want %q", from.Name, a, got, err, want)
	}
	return to
}

func (c *talk) hear() (string, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	return c.in.ReadString('\n')
}

// works tells whether the connection still does.
func (c *talk) works() bool {
	if _, err := fmt.Fprintln(c, "still there?"); err != nil {
		return false
	}
	got, err := c.hear()
	return err == nil && got == "still there?\n"
}

// TestMoveUnderTraffic: what is connected stays with the container that it began
// with if the address drains, in either direction, and breaks if not; what
// connects comes to the new one at once.
func TestMoveUnderTraffic(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			s, first, second := twoContainers(t, backend)
			c1, c2 := nettest.Adopt(t, "c1", "/run/netns/"+first.netns), nettest.Adopt(t, "c2", "/run/netns/"+second.netns)
			for _, n := range []*nettest.Node{c1, c2, s.peer} {
				echo(n)
			}
			first.operated = true
			a := netip.MustParseAddr("203.0.113.60")
			move := func(to *container, drain bool) {
				t.Helper()
				began := time.Now()
				s.call("Move", func() error {
					_, err := s.plugin.Move(t.Context(), a, to.endpoint, drain, false)
					return err
				})
				t.Logf("the move took %s", time.Since(began))
				s.reconcile()
			}
			in := talkTo(t, s.peer, "203.0.113.60", "c1 sees 203.0.113.200")
			out := talkTo(t, c1, "203.0.113.200", "peer sees 203.0.113.60")
			move(second, true)
			inNext := talkTo(t, s.peer, "203.0.113.60", "c2 sees 203.0.113.200")
			talkTo(t, c2, "203.0.113.200", "peer sees 203.0.113.60")
			talkTo(t, c1, "203.0.113.200", "peer sees 203.0.113.10")
			if !in.works() || !out.works() || !inNext.works() {
				t.Errorf("while it drains: in %v, out %v, to the new one %v", in.works(), out.works(), inNext.works())
			}
			draining := func(v driver.Address) bool {
				return v.State == driver.StateDraining && v.Endpoint == first.endpoint
			}
			if list := s.plugin.Addresses(); len(list) != 2 || !slices.ContainsFunc(list, draining) {
				t.Errorf("%+v", list)
			}
			move(first, false)
			talkTo(t, s.peer, "203.0.113.60", "c1 sees 203.0.113.200")
			if !in.works() || !out.works() || inNext.works() {
				t.Error("moved back: what the first container had is to stay, what the second had to break")
			}
			move(second, false)
			talkTo(t, s.peer, "203.0.113.60", "c2 sees 203.0.113.200")
			if in.works() || out.works() {
				t.Error("moved without draining: connections are to break")
			}
			s.check()
		})
	}
}

// BenchmarkMove is a whole Move between two containers of a network.
func BenchmarkMove(b *testing.B) {
	for _, backend := range backends {
		b.Run(backend, func(b *testing.B) {
			s, first, second := twoContainers(b, backend)
			a := netip.MustParseAddr("203.0.113.60")
			// With a flow, as there always is, the kernel's way to forget
			// flows is known after the first time.
			s.peer.Ping("203.0.113.60")
			s.peer.Ping("203.0.113.10")
			s.host.MustDo(func() error {
				for i := 0; b.Loop(); i++ {
					to := []*container{second, first}[i%2]
					if _, err := s.plugin.Move(b.Context(), a, to.endpoint, false, false); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
}
