package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// A way is how a client outside reaches a server in a container.
type way struct {
	who string
	// to is the server's address as the client knows it; port is added to
	// its services' ports.
	to   netip.Addr
	port int
	// serial counts the flows that had a source port of their own.
	serial int
}

// traffic measures what packets pay. All ways are there at once, side by side
// on one segment, with the same server at the end and the same rules of
// Docker's on the way.
func (b *bench) traffic(t *testing.T) {
	b.say("  a lab")
	l := newLab(t, options{bare: true})
	l.startEngine()
	ways := append(b.dockersWays(l), routedWay(l))
	rules := l.must("iptables-save")
	counts := []int{1, 1000, 10000}
	for i, backend := range backends {
		for j, count := range counts {
			ways = append(ways, extipWay(t, l, rules, mappingsOf(backend, count), backend, count, 10*i+j, nil))
		}
		for j, count := range []int{1, 10000} {
			ways = append(ways, extipWay(t, l, rules, filteredOf(backend, count), backend, count, 10*i+5+j, benchFilter()))
		}
	}
	for _, w := range ways {
		// It also lets everybody learn their neighbours.
		l.outside.MustDo(func() error { _, err := w.connectOnce(); return err })
	}
	b.say("  %d ways in turn", len(ways))
	var subjects []func()
	for _, w := range ways {
		subjects = append(subjects, func() { b.useWay(l, w) })
	}
	inTurn(b.pick(5, 25), subjects...)
	for _, what := range []string{tcpRate, tcpTime, udpRate, bulkRate, turnRate} {
		for _, backend := range backends {
			for _, count := range counts {
				who := mappingsOf(backend, count)
				b.compare(what, who, publishedWay)
				b.compare(what, who, routed)
				if count > 1 {
					b.compare(what, who, mappingsOf(backend, 1))
				}
			}
		}
		for _, backend := range backends {
			for _, count := range []int{1, 10000} {
				who := filteredOf(backend, count)
				b.compare(what, who, mappingsOf(backend, count))
				b.compare(what, who, publishedWay)
			}
			b.compare(what, filteredOf(backend, 10000), filteredOf(backend, 1))
		}
		b.compare(what, publishedWay, routed)
		b.compare(what, proxyWay, publishedWay)
	}
}

// filteredOf names many mappings that each have a filter.
func filteredOf(backend string, count int) string { return mappingsOf(backend, count) + ", filtered" }

// benchFilter lets a client of the segment reach what is measured, and little else.
func benchFilter() *nat.Filter {
	return &nat.Filter{
		Ports: []nat.Ports{
			{Proto: unix.IPPROTO_TCP, First: accepts, Last: sinks}, {Proto: unix.IPPROTO_UDP, First: accepts, Last: sinks}, {Proto: unix.IPPROTO_ICMP},
		},
		Allow: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("198.51.100.0/24")},
	}
}

const (
	publishedWay = "bridge, published port"
	proxyWay     = "bridge, through the userland proxy"
	routed       = "routed, no NAT"

	tcpRate  = "new TCP connections, to the first byte"
	tcpTime  = "a new TCP connection, to the first byte"
	udpRate  = "new UDP flows, there and back"
	bulkRate = "bulk, one TCP stream"
	turnRate = "round trips on one TCP connection"
)

// dockersWays are a container of Docker's, by its published ports, and by the
// engine's proxy, which its rules keep it from using where there are rules.
func (b *bench) dockersWays(l *lab) []*way {
	l.docker("network", "create", "--subnet", "172.30.0.0/16", "plain")
	args := []string{"run", "-d", "--name", "web", "--network", "plain"}
	for _, port := range []int{accepts, echoes, sinks} {
		args = append(args, "-p", fmt.Sprintf("%d:%d", port, port), "-p", fmt.Sprintf("%d:%d/udp", port, port))
	}
	l.docker(append(args, probeImage, "/probe", "sleep")...)
	serveBench(l.t, l.container("web"))
	inside := l.inspectIP("web", "plain")
	const shift = 1000
	for _, port := range []int{accepts, echoes, sinks} {
		for _, protocol := range []string{"tcp", "udp"} {
			// The engine's own program, as the engine starts it.
			cmd := l.command("docker-proxy", "-proto", protocol, "-host-ip", hostAddr, "-host-port", fmt.Sprint(port+shift),
				"-container-ip", inside, "-container-port", fmt.Sprint(port))
			r, w, err := os.Pipe()
			if err != nil {
				l.t.Fatal(err)
			}
			cmd.ExtraFiles = []*os.File{w} // where it says that it listens
			if err := cmd.Start(); err != nil {
				l.t.Fatal(err)
			}
			_ = w.Close()
			if _, err := r.Read(make([]byte, 64)); err != nil {
				l.t.Fatalf("docker-proxy: %v", err)
			}
			_ = r.Close()
			go func() { _ = cmd.Wait() }() // it ends with the lab
		}
	}
	host := netip.MustParseAddr(hostAddr)
	return []*way{{who: publishedWay, to: host}, {who: proxyWay, to: host, port: shift}}
}

// routedWay is a container with an address that the client has a route to.
func routedWay(l *lab) *way {
	l.host.Bridge("plain0", "10.20.0.1/24")
	serveBench(l.t, l.host.Container("routed", "plain0", "10.20.0.2/24", "10.20.0.1"))
	l.must("iptables", "-I", "FORWARD", "-i", "plain0", "-j", "ACCEPT")
	l.must("iptables", "-I", "FORWARD", "-o", "plain0", "-j", "ACCEPT")
	l.outside.Run("ip", "route", "add", "10.20.0.0/24", "via", hostAddr)
	return &way{who: routed, to: netip.MustParseAddr("10.20.0.2")}
}

// extipWay is a host of its own with Docker's rules and extip's, and a container
// whose mapping is the last of many, each with that filter, if any.
func extipWay(t *testing.T, l *lab, rules, who, backend string, count, i int, filter *nat.Filter) *way {
	host := l.lan.Attach(fmt.Sprintf("h%d", i), fmt.Sprintf("203.0.113.%d/24", 20+i))
	host.Sysctl("ipv4.ip_forward", "1")
	restore := host.Command("iptables-nft-restore")
	restore.Stdin = strings.NewReader(rules)
	if out, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("iptables-restore: %v\n%s", err, out)
	}
	host.Bridge("xip-bench", "172.31.0.1/16")
	bench := host.Container(fmt.Sprintf("c%d", i), "xip-bench", "172.31.0.2/16", "172.31.0.1")
	serveBench(t, bench)
	external := fmt.Sprintf("203.0.113.%d", 120+i)
	host.Run("ip", "addr", "add", external+"/32", "dev", "eth0", "scope", "host")

	state := nat.State{Networks: []nat.Network{{
		ID: "bench", Bridge: "xip-bench", Uplinks: []string{"eth0"}, Subnets: []netip.Prefix{netip.MustParsePrefix("172.31.0.0/16")},
	}}}
	for n := range count {
		m := nat.Mapping{
			Endpoint: fmt.Sprintf("e%d", n), Egress: true, Filter: filter,
			External: netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}),
			Internal: netip.AddrFrom4([4]byte{172, 31, byte(100 + n>>8), byte(n)}),
		}
		if n == count-1 {
			m.External, m.Internal = netip.MustParseAddr(external), netip.MustParseAddr("172.31.0.2")
		}
		state.Mappings = append(state.Mappings, m)
	}
	host.MustDo(func() error {
		rules, err := openBackend(t, backend)
		if err == nil {
			_, err = rules.Sync(state)
		}
		return err
	})
	return &way{who: who, to: netip.MustParseAddr(external)}
}
