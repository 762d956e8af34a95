package nettest

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A Segment is an Ethernet segment: a switch with no address of its own.
type Segment struct {
	sw    *Node
	ports int
	// last is the switch's port of a machine's interface, by both their names.
	last map[string]string
}

// NewSegment makes a switch. It goes with the test.
func NewSegment(t testing.TB) *Segment {
	t.Helper()
	return NamedSegment(t, "lan")
}

// NamedSegment is NewSegment for a test with several.
func NamedSegment(t testing.TB, name string) *Segment {
	t.Helper()
	sw := NewNode(t, name)
	// The switch's own netfilter must not look at what it switches.
	sw.Sysctl("ipv6.conf.all.disable_ipv6", "1")
	sw.Run("ip", "link", "add", "switch", "type", "bridge")
	sw.Run("ip", "link", "set", "switch", "up")
	return &Segment{sw: sw, last: map[string]string{}}
}

// Switch is the node that does the switching, to look at what passes.
func (s *Segment) Switch() *Node { return s.sw }

// Attach makes a machine with the interface eth0 on the segment.
func (s *Segment) Attach(name string, addrs ...string) *Node {
	n := NewNode(s.sw.t, name)
	s.Plug(n, "eth0", addrs...)
	return n
}

// Plug gives a machine an interface on the segment.
func (s *Segment) Plug(n *Node, dev string, addrs ...string) {
	s.ports++
	port := fmt.Sprintf("port%d", s.ports)
	s.last[n.NetNS+" "+dev] = port
	s.sw.Run("ip", "link", "add", port, "type", "veth", "peer", "name", dev, "netns", n.NetNS)
	s.sw.Run("ip", "link", "set", port, "master", "switch", "up")
	n.Run("ip", "link", "set", dev, "up")
	n.addAddrs(dev, addrs)
	s.sw.AwaitPort(port)
	n.AwaitUp(dev)
	n.AwaitAsked(dev, addrs...)
}

// Cut has the switch pass nothing from and to a machine's interface, which doesn't
// see that: its carrier stays.
func (s *Segment) Cut(n *Node, dev string) {
	s.sw.Run("bridge", "link", "set", "dev", s.last[n.NetNS+" "+dev], "state", "0") // disabled
}

// Heal undoes Cut.
func (s *Segment) Heal(n *Node, dev string) {
	s.sw.Run("bridge", "link", "set", "dev", s.last[n.NetNS+" "+dev], "state", "3") // forwarding
}

// AwaitPort returns when a bridge's port forwards: the kernel tells the bridge
// a while after the link is up, longer on a busy machine.
func (n *Node) AwaitPort(port string) {
	n.t.Helper()
	n.await(port, "state forwarding", "bridge", "link", "show", "dev", port)
}

// AwaitUp returns when an interface sends: until the kernel has dealt with its
// carrier, it drops what it is given, and a question about a neighbour that is
// dropped is asked again a second later only.
func (n *Node) AwaitUp(dev string) {
	n.t.Helper()
	n.await(dev, "state UP", "ip", "link", "show", "dev", dev)
}

// AwaitAsked returns when an interface answers questions about its IPv6 addresses,
// and the kernel sends from them: it joins their solicited-node groups (RFC 4291
// §2.7.1) and makes their routes some time after the interface is up, or they are
// added. IPv4 ones are not waited for; lo belongs to no groups.
func (n *Node) AwaitAsked(dev string, addrs ...string) {
	n.t.Helper()
	for _, text := range addrs {
		a := netip.MustParsePrefix(text).Addr()
		if a.Is6() {
			group := netip.MustParseAddr("ff02::1:ff00:0").As16()
			copy(group[13:], a.AsSlice()[13:])
			if dev != "lo" {
				n.await(dev, netip.AddrFrom16(group).String(), "ip", "-6", "maddr", "show", "dev", dev)
			}
			n.await(dev, "local "+a.String(), "ip", "-6", "route", "show", "table", "local", "dev", dev)
		}
	}
}

// AwaitIPv6 is AwaitAsked for all that an interface has, but link-local ones.
func (n *Node) AwaitIPv6(dev string) {
	n.t.Helper()
	for line := range strings.Lines(n.quiet("ip", "-6", "-o", "addr", "show", "dev", dev, "scope", "global")) {
		n.AwaitAsked(dev, strings.Fields(line)[3]) // 2: eth0    inet6 2001:db8::1/64 scope …
	}
}

func (n *Node) await(dev, state string, look ...string) {
	n.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if strings.Contains(n.quiet(look...), state) {
			return
		}
	}
	n.t.Fatalf("%s: %s doesn't come up", n.Name, dev)
}

func (n *Node) addAddrs(dev string, addrs []string) {
	for _, a := range addrs {
		args := []string{"ip", "addr", "add", a, "dev", dev}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		n.Run(args...)
	}
}

// Bridge makes a bridge on the node, as a container engine does.
func (n *Node) Bridge(name string, addrs ...string) {
	n.Run("ip", "link", "add", name, "type", "bridge")
	n.Run("ip", "link", "set", name, "up")
	n.addAddrs(name, addrs)
}

// Container makes a machine whose eth0 is a port of a bridge of n, with
// gateway as its default route.
func (n *Node) Container(name, bridge, addr, gateway string) *Node {
	c := NewNode(n.t, name)
	port := "v" + name
	n.Run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", c.NetNS)
	n.Run("ip", "link", "set", port, "master", bridge, "up")
	n.Run("bridge", "link", "set", "dev", port, "hairpin", "on")
	c.Run("ip", "link", "set", "eth0", "up")
	c.addAddrs("eth0", []string{addr})
	c.Run("ip", "route", "add", "default", "via", gateway)
	n.AwaitPort(port)
	c.AwaitUp("eth0")
	c.AwaitAsked("eth0", addr)
	// Without a carrier the kernel is in no hurry with the bridge's addresses.
	n.AwaitUp(bridge)
	n.AwaitIPv6(bridge)
	return c
}
