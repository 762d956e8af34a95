package nftables

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// A guardLab is a bridge with two containers, of which one, xip1, does what it
// likes with raw frames.
type guardLab struct {
	host, evil, victim *nettest.Node
	guard              *Guard
	ports              []nat.Port
}

var (
	evilMAC, victimMAC, bridgeMAC = mac("02:42:ac:1f:00:02"), mac("02:42:ac:1f:00:03"), mac("02:42:ac:1f:00:01")
	evilIP, victimIP, bridgeIP    = addr("172.31.0.2"), addr("172.31.0.3"), addr("172.31.0.1")
	evilIP6, victimIP6, bridgeIP6 = addr("2001:db8:31::2"), addr("2001:db8:31::3"), addr("2001:db8:31::1")
	evilLocal, victimLocal        = addr("fe80::42:acff:fe1f:2"), addr("fe80::42:acff:fe1f:3")
	outsider, outsider6           = addr("198.51.100.1"), addr("2001:db8:ffff::1")
	none, none6                   = addr("0.0.0.0"), addr("::")
	everybody, everybody6         = addr("255.255.255.255"), addr("ff02::1")
)

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func newGuardLab(t *testing.T) *guardLab {
	t.Helper()
	l := &guardLab{host: newHost(t), evil: nettest.NewNode(t, "evil"), victim: nettest.NewNode(t, "victim")}
	l.guard = openGuard(t, l.host)
	l.host.Run("ip", "link", "add", "name", "xipbr", "address", bridgeMAC.String(), "type", "bridge", "group_fwd_mask", "0x4000")
	l.host.Run("ip", "addr", "add", bridgeIP.String()+"/16", "dev", "xipbr")
	l.host.Run("ip", "addr", "add", bridgeIP6.String()+"/64", "dev", "xipbr", "nodad")
	// br_netfilter, where it is loaded, has an eye of its own on packets.
	l.host.Run("sh", "-c", "for f in /proc/sys/net/bridge/bridge-nf-call-*tables; do test ! -e $f || echo 0 > $f; done")
	l.host.Run("ip", "link", "set", "xipbr", "up")
	for _, c := range []struct {
		node *nettest.Node
		port nat.Port
	}{
		{l.evil, nat.Port{Link: "xip1", MAC: evilMAC, Addresses: []netip.Addr{evilIP, evilIP6}}},
		{l.victim, nat.Port{Link: "xip2", MAC: victimMAC, Addresses: []netip.Addr{victimIP, victimIP6}}},
	} {
		l.host.Run("ip", "link", "add", c.port.Link, "type", "veth", "peer", "name", "eth0", "address", c.port.MAC.String(), "netns", c.node.NetNS)
		l.host.Run("ip", "link", "set", c.port.Link, "master", "xipbr", "up")
		c.node.Run("ip", "addr", "add", c.port.Addresses[0].String()+"/16", "dev", "eth0")
		c.node.Run("ip", "addr", "add", c.port.Addresses[1].String()+"/64", "dev", "eth0", "nodad")
		c.node.Run("ip", "link", "set", "eth0", "up")
		l.host.AwaitPort(c.port.Link)
		c.node.AwaitUp("eth0")
		l.ports = append(l.ports, c.port)
	}
	return l
}

// set lets the first container send everything, or only what is its own.
func (l *guardLab) set(t *testing.T, trusted bool) {
	t.Helper()
	l.ports[0].Trusted = trusted
	if _, err := l.guard.Sync(nat.Guarded{Ports: l.ports}); err != nil {
		t.Fatal(err)
	}
}

// home is what the victim says of itself.
func home() []byte {
	return nettest.Ethernet(nettest.Broadcast, victimMAC, 0x806, nettest.ARP(1, victimMAC, victimIP, make(net.HardwareAddr, 6), victimIP))
}

// A trick is a frame that xip1 sends.
type trick struct {
	name  string
	frame []byte
}

// honest is what a container has to be able to send.
func honest() []trick {
	fromMe := func(etherType uint16, next []byte) []byte {
		return nettest.Ethernet(nettest.Broadcast, evilMAC, etherType, next)
	}
	return []trick{
		{"ARP: who has the gateway", fromMe(0x806, nettest.ARP(1, evilMAC, evilIP, make(net.HardwareAddr, 6), bridgeIP))},
		{"ARP: a gratuitous answer", fromMe(0x806, nettest.ARP(2, evilMAC, evilIP, nettest.Broadcast, evilIP))},
		{"ARP: a gratuitous question", fromMe(0x806, nettest.ARP(1, evilMAC, evilIP, make(net.HardwareAddr, 6), evilIP))},
		{"ARP: a probe of the own address", fromMe(0x806, nettest.ARP(1, evilMAC, none, make(net.HardwareAddr, 6), evilIP))},
		{"IPv4, UDP", fromMe(0x800, nettest.IP(evilIP, victimIP, 17, nettest.UDP(5000, 53, nil)))},
		{"IPv4, ESP", fromMe(0x800, nettest.IP(evilIP, outsider, 50, make([]byte, 16)))},
		{"IPv4, a later fragment", fromMe(0x800, laterFragment(nettest.IP(evilIP, outsider, 17, make([]byte, 16))))},
		{"IPv4, an echo request", fromMe(0x800, nettest.IP(evilIP, outsider, 1, []byte{8, 0, 0, 0, 0, 0, 0, 0}))},
		{"IPv6, UDP", fromMe(0x86dd, nettest.IP(evilIP6, outsider6, 17, nettest.UDP(5000, 53, nil)))},
		{"IPv6, link-local", fromMe(0x86dd, nettest.IP(evilLocal, victimLocal, 17, nettest.UDP(5000, 53, nil)))},
		{"NDP: who has a sibling", fromMe(0x86dd, nettest.Solicitation(evilIP6, everybody6, victimIP6))},
		{"NDP: is the own address free", fromMe(0x86dd, nettest.Solicitation(none6, everybody6, evilIP6))},
		{"NDP: is the own link-local address free", fromMe(0x86dd, nettest.Solicitation(none6, everybody6, evilLocal))},
		{"NDP: the own address", fromMe(0x86dd, nettest.Advertisement(evilIP6, everybody6, evilIP6, evilMAC))},
		{"NDP: the own link-local address", fromMe(0x86dd, nettest.Advertisement(evilLocal, everybody6, evilLocal, evilMAC))},
		{"MLD: a report without an address yet", fromMe(0x86dd, nettest.ICMP6(none6, everybody6, 143, 0, make([]byte, 4)))},
		{"MLD: a report", fromMe(0x86dd, nettest.ICMP6(evilLocal, everybody6, 143, 0, make([]byte, 4)))},
		{"NDP: a router, please", fromMe(0x86dd, nettest.ICMP6(evilLocal, everybody6, 133, 0, make([]byte, 4)))},
		{"IPv4 to a reserved group of bridges", nettest.Ethernet(mac("01:80:c2:00:00:0e"), evilMAC, 0x800, nettest.IP(evilIP, victimIP, 17, nettest.UDP(5000, 53, nil)))},
	}
}

// laterFragment sets a fragment offset of 8 bytes.
func laterFragment(ip []byte) []byte { ip[7] = 1; return ip }

// tagged puts a frame into a VLAN.
func tagged(frame []byte, vid byte) []byte {
	return append(append(append([]byte{}, frame[:12]...), 0x81, 0, 0, vid), frame[12:]...)
}

// dishonest is what it must not, to whomever it is sent.
func dishonest() []trick {
	fromMe := func(etherType uint16, next []byte) []byte {
		return nettest.Ethernet(victimMAC, evilMAC, etherType, next)
	}
	noMAC := make(net.HardwareAddr, 6)
	poison := nettest.ARP(2, evilMAC, bridgeIP, victimMAC, victimIP)
	otherHardware := nettest.ARP(1, evilMAC, evilIP, noMAC, victimIP)
	otherHardware[1] = 6 // IEEE 802
	advert := nettest.ICMP6(evilLocal, everybody6, 134, 0, make([]byte, 12))
	hidden := nettest.IP(evilLocal, everybody6, 0, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, advert[40:]...)) // behind a hop-by-hop header
	return []trick{
		{"another MAC", nettest.Ethernet(victimMAC, mac("02:00:00:00:00:99"), 0x800, nettest.IP(evilIP, victimIP, 17, nettest.UDP(1, 2, nil)))},
		{"a sibling's MAC", nettest.Ethernet(nettest.Broadcast, victimMAC, 0x800, nettest.IP(evilIP, victimIP, 17, nettest.UDP(1, 2, nil)))},
		{"ARP from another MAC", nettest.Ethernet(victimMAC, mac("02:42:ac:1f:00:09"), 0x806, nettest.ARP(1, evilMAC, evilIP, noMAC, victimIP))},
		{"ARP: the gateway is here", fromMe(0x806, poison)},
		{"ARP: a sibling is here, to all", nettest.Ethernet(nettest.Broadcast, evilMAC, 0x806, nettest.ARP(1, evilMAC, victimIP, noMAC, victimIP))},
		{"ARP: I am at another MAC", fromMe(0x806, nettest.ARP(2, mac("02:00:00:00:00:99"), evilIP, victimMAC, victimIP))},
		{"ARP: a probe of a sibling's address", fromMe(0x806, nettest.ARP(1, evilMAC, none, noMAC, victimIP))},
		{"ARP: an answer from nobody", fromMe(0x806, nettest.ARP(2, evilMAC, none, victimMAC, evilIP))},
		{"ARP of other hardware", fromMe(0x806, otherHardware)},
		{"IPv4 from a sibling", fromMe(0x800, nettest.IP(victimIP, bridgeIP, 17, nettest.UDP(1, 2, nil)))},
		{"IPv4 from the gateway", fromMe(0x800, nettest.IP(bridgeIP, victimIP, 17, nettest.UDP(1, 2, nil)))},
		{"IPv4 from elsewhere", fromMe(0x800, nettest.IP(outsider, victimIP, 6, make([]byte, 20)))},
		{"IPv4 from loopback", fromMe(0x800, nettest.IP(addr("127.0.0.1"), victimIP, 6, make([]byte, 20)))},
		{"a later fragment from a sibling", fromMe(0x800, laterFragment(nettest.IP(bridgeIP, victimIP, 17, make([]byte, 16))))},
		{"DHCP: a question", nettest.Ethernet(nettest.Broadcast, evilMAC, 0x800, nettest.IP(none, everybody, 17, nettest.UDP(68, 67, nil)))},
		{"DHCP: an offer", nettest.Ethernet(nettest.Broadcast, evilMAC, 0x800, nettest.IP(evilIP, everybody, 17, nettest.UDP(67, 68, nil)))},
		{"ICMP: a redirect", fromMe(0x800, nettest.IP(evilIP, victimIP, 1, []byte{5, 1, 0, 0, 172, 31, 0, 2}))},
		{"IPv6 from a sibling", fromMe(0x86dd, nettest.IP(victimIP6, bridgeIP6, 17, nettest.UDP(1, 2, nil)))},
		{"IPv6 from a sibling's link-local address", fromMe(0x86dd, nettest.IP(victimLocal, victimIP6, 17, nettest.UDP(1, 2, nil)))},
		{"IPv6 from elsewhere", fromMe(0x86dd, nettest.IP(outsider6, victimIP6, 6, make([]byte, 20)))},
		{"IPv6 from nobody", fromMe(0x86dd, nettest.IP(none6, victimIP6, 17, nettest.UDP(1, 2, nil)))},
		{"NDP: the gateway is here", fromMe(0x86dd, nettest.Advertisement(evilIP6, victimIP6, bridgeIP6, evilMAC))},
		{"NDP: a sibling is here, to all", fromMe(0x86dd, nettest.Advertisement(evilLocal, everybody6, victimIP6, evilMAC))},
		{"NDP: a sibling's address is taken", fromMe(0x86dd, nettest.Solicitation(none6, everybody6, victimIP6))},
		{"NDP: a router advertisement", fromMe(0x86dd, advert)},
		{"NDP: a router advertisement behind an option", fromMe(0x86dd, hidden)},
		{"NDP: a redirect", fromMe(0x86dd, nettest.ICMP6(evilLocal, victimIP6, 137, 0, make([]byte, 36)))},
		{"DHCPv6: a reply", fromMe(0x86dd, nettest.IP(evilLocal, victimLocal, 17, nettest.UDP(547, 546, nil)))},
		{"ARP in VLAN 0: the gateway is here", tagged(fromMe(0x806, poison), 0)},
		{"ARP in VLAN 0 of VLAN 0: the gateway is here", tagged(tagged(fromMe(0x806, poison), 0), 0)},
		{"IPv4 of its own in VLAN 5", tagged(fromMe(0x800, nettest.IP(evilIP, victimIP, 17, nettest.UDP(1, 2, nil))), 5)},
		{"LLDP", nettest.Ethernet(mac("01:80:c2:00:00:0e"), evilMAC, 0x88cc, make([]byte, 46))},
		{"spanning tree", nettest.Ethernet(mac("01:80:c2:00:00:00"), evilMAC, 38, make([]byte, 46))},
		{"EAPOL to a sibling", fromMe(0x888e, make([]byte, 46))},
		{"MPLS", fromMe(0x8847, make([]byte, 46))},
	}
}

// marked appends to frames what tells them apart.
func marked(tricks []trick, run string) (frames, marks [][]byte) {
	for i, tr := range tricks {
		mark := fmt.Appendf(nil, "<%s %d>", run, i)
		frames, marks = append(frames, append(append([]byte{}, tr.frame...), mark...)), append(marks, mark)
	}
	return frames, marks
}

// awaitFrame returns when a frame with these bytes has arrived.
func awaitFrame(t *testing.T, tap *nettest.Tap, mark []byte) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !tap.Heard(mark); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not even %s arrived", mark)
		}
	}
}

// TestGuardedFrames: what is honest arrives, and of the rest nothing does;
// without the guard all of it does.
func TestGuardedFrames(t *testing.T) {
	l := newGuardLab(t)
	tap := l.victim.Tap("eth0")
	// play sends tricks and tells which of them arrived.
	play := func(tricks []trick, run string) []bool {
		frames, marks := marked(tricks, run)
		last := []byte("<last of " + run + ">")
		end := nettest.Ethernet(nettest.Broadcast, evilMAC, 0x806, append(nettest.ARP(1, evilMAC, evilIP, make(net.HardwareAddr, 6), evilIP), last...))
		for _, frame := range append(frames, end) {
			l.victim.Send("eth0", home()) // tricks may have made the bridge forget where it is
			l.evil.Send("eth0", frame)
		}
		awaitFrame(t, tap, last)
		arrived := make([]bool, len(tricks))
		for i, mark := range marks {
			arrived[i] = tap.Heard(mark)
		}
		return arrived
	}
	for _, tt := range []struct {
		name    string
		trusted bool
		tricks  []trick
		want    bool
	}{
		{"trusted, honest", true, honest(), true},
		{"trusted, dishonest", true, dishonest(), true},
		{"guarded, honest", false, honest(), true},
		{"guarded, dishonest", false, dishonest(), false},
	} {
		l.set(t, tt.trusted)
		for i, arrived := range play(tt.tricks, tt.name) {
			if arrived != tt.want {
				t.Errorf("%s: %s: arrived: %t, want %t", tt.name, tt.tricks[i].name, arrived, tt.want)
			}
		}
	}
}

// TestGuardedLearning: a bridge learns where a MAC is from what it forwards,
// and from some of what it keeps to itself. A frame with a sibling's MAC would
// have the sibling's packets come to who sends it.
func TestGuardedLearning(t *testing.T) {
	l := newGuardLab(t)
	tap := l.victim.Tap("eth0")
	where := func() string {
		for line := range strings.Lines(l.host.Run("bridge", "fdb", "show", "br", "xipbr")) {
			if f := strings.Fields(line); f[0] == victimMAC.String() && !strings.Contains(line, "permanent") {
				return f[2]
			}
		}
		return ""
	}
	for _, trusted := range []bool{true, false} {
		l.set(t, trusted)
		for last := range 16 {
			if last == 1 || trusted && last == 2 {
				continue // pause frames are nobody's; those of link aggregation are refused to all
			}
			for deadline := time.Now().Add(30 * time.Second); where() != "xip2"; {
				if l.victim.Send("eth0", home()); time.Now().After(deadline) {
					t.Fatalf("the bridge has the victim at %q", where())
				}
			}
			l.evil.Send("eth0", nettest.Ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, byte(last)}, victimMAC, 0x88cc, make([]byte, 46)))
			// What the same port sends next is dealt with after it.
			mark := fmt.Appendf(nil, "<%t %d>", trusted, last)
			l.evil.Send("eth0", nettest.Ethernet(nettest.Broadcast, evilMAC, 0x806, append(nettest.ARP(1, evilMAC, evilIP, make(net.HardwareAddr, 6), evilIP), mark...)))
			awaitFrame(t, tap, mark)
			moved := where() == "xip1"
			if !trusted && moved {
				t.Errorf("a frame to group %x moves a sibling's MAC", last)
			}
			if trusted && last == 0xe && !moved {
				t.Error("without the guard it doesn't move either: the test shows nothing")
			}
		}
	}
}
