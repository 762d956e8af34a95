package nftables

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// What a limit costs a packet that opens a connection, and one of a connection
// that there is: as multiples of what it takes to send one from a client through
// a host to a container without. Both are measured in turns. Run it with
// -benchtime=40x: a host tracks no more than some 200,000 connections.
func BenchmarkLimits(b *testing.B) {
	others := manyState(10000).Mappings
	for i := range others {
		others[i].Limit = nat.Limit{Connections: 20000, Rate: 500}
	}
	one := nattest.Map4(1, 1)
	for _, v := range []struct {
		name  string
		with  []nat.Mapping
		open  int // connections at first
		newer bool
	}{
		{name: "same", with: []nat.Mapping{one}, newer: true},
		{name: "beside10000", with: append(slices.Clone(others), one), newer: true},
		{name: "rate", with: []nat.Mapping{nattest.Limited(one, 0, nat.MaxRate)}, newer: true},
		{name: "connections", with: []nat.Mapping{nattest.Limited(one, nat.MaxConnections, 0)}, newer: true},
		{name: "connections+20000", with: []nat.Mapping{nattest.Limited(one, nat.MaxConnections, 0)}, open: 20000, newer: true},
		{name: "full", with: []nat.Mapping{nattest.Limited(one, 20000, 0)}, open: 20000, newer: true},
		{name: "old/beside10000", with: append(slices.Clone(others), one), open: 1000},
		{name: "old/connections", with: []nat.Mapping{nattest.Limited(one, 20000, 0)}, open: 1000},
	} {
		b.Run(v.name, func(b *testing.B) {
			const chunk = 1000
			plain, limited := newPath(b, "plain", one), newPath(b, "limited", v.with...)
			plain.send(b, 0, v.open)
			limited.send(b, 0, v.open)
			var without, with []float64
			next := v.open
			for b.Loop() {
				if !v.newer {
					next = 0
				}
				without = append(without, plain.send(b, next, chunk).Seconds())
				with = append(with, limited.send(b, next, chunk).Seconds())
				next += chunk
			}
			// The fastest of each: what else the machine does only adds.
			fast, slow := slices.Min(without)/chunk*1e9, slices.Min(with)/chunk*1e9
			b.ReportMetric(fast, "ns/plain")
			b.ReportMetric(slow, "ns/packet")
			b.ReportMetric(slow/fast, "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// A path is a client, a host with a backend, and a container, which listens and
// says nothing.
type path struct {
	client *nettest.Node
	mac    net.HardwareAddr // of the host
}

func newPath(b *testing.B, name string, mappings ...nat.Mapping) *path {
	b.Helper()
	nettest.RequireTool(b, "nft")
	lan := nettest.NamedSegment(b, name)
	host, p := lan.Attach(name+"-host", "203.0.113.250/24"), &path{client: lan.Attach(name+"-client", "203.0.113.251/24")}
	host.Sysctl("ipv4.ip_forward", "1")
	host.Bridge("br1", "172.30.1.1/24")
	c := host.Container(name+"-c", "br1", "172.30.1.2/24", "172.30.1.1")
	c.MustDo(func() error {
		l, err := net.ListenPacket("udp4", ":9")
		if err == nil {
			b.Cleanup(func() { _ = l.Close() })
		}
		return err
	})
	host.Run("ip", "addr", "add", "203.0.113.1/32", "dev", "eth0")
	if _, err := open(b, host, Config{}).Sync(nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: mappings}); err != nil {
		b.Fatal(err)
	}
	var err error
	if p.mac, err = net.ParseMAC(strings.Fields(host.Run("ip", "-br", "link", "show", "eth0"))[2]); err != nil {
		b.Fatal(err)
	}
	return p
}

// send sends a datagram of each of count connections, from a number on, and
// returns how long that took.
func (p *path) send(b *testing.B, first, count int) time.Duration {
	b.Helper()
	frames := make([][]byte, 0, count)
	for i := first; i < first+count; i++ {
		from := netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + i/50000)})
		ip := nettest.IP(from, netip.AddrFrom4([4]byte{203, 0, 113, 1}), 17, nettest.UDP(uint16(1024+i%50000), 9, []byte("!")))
		frames = append(frames, nettest.Ethernet(p.mac, net.HardwareAddr{2, 0, 0, 0, 0, 9}, 0x800, ip))
	}
	began := time.Now()
	p.client.Send("eth0", frames...)
	return time.Since(began)
}
