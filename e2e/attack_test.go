package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

// silence is how long nothing must be heard of an attack. Where one must work, it
// has more time.
const silence = 300 * time.Millisecond

// An attack is something that nobody may be able to do. try tells whether it
// worked within a time.
type attack struct {
	name string
	try  func(patience time.Duration) bool
}

// TestAttacks has everybody try what they must not: a neighbour on the LAN that
// knows the way to the inside, a container that may do whatever it likes with
// its own network, a container of another network, a user of the host. Nothing
// works, while the plugin runs and while it doesn't; and all of it works once
// extip's rules are taken away, or the test would show nothing.
func TestAttacks(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			lab := newLab(t, options{backend: backend, plugin: []string{"--state", "/run/extip-state/extip.db"}})
			s := newAttackScene(t, lab)
			none := func(when string) {
				t.Helper()
				for _, a := range s.attacks() {
					if a.try(silence) {
						t.Errorf("%s: %s", when, a.name)
					}
				}
				s.restore()
				ask(t, []question{
					{lab.outside, "tcp", "203.0.113.56:80", "victim saw " + outsideAddr},
					{lab.outside, "tcp", "[2001:db8::56]:80", "victim saw " + outsideAddr6},
					{s.evil, "tcp", outsideAddr + ":80", "outside saw 203.0.113.57"},
					{s.evil, "tcp", "[" + outsideAddr6 + "]:80", "outside saw 2001:db8::57"},
					{s.evil, "tcp", s.victimIP.String() + ":80", "victim saw " + s.evilIP.String()},
				})
			}
			none("while the plugin runs")
			lab.killPlugin()
			none("while the plugin is dead")
			s.weaken(backend)
			for _, a := range s.attacks() {
				if !a.try(long) {
					t.Errorf("without extip's rules this doesn't work either: %s", a.name)
				}
				s.restore()
			}
			lab.host.Run("iptables", "-P", "FORWARD", "DROP")
			lab.host.Run("ip6tables", "-P", "FORWARD", "DROP")
			lab.must("chmod", "0700", "/run/docker/plugins", "/run/extip-state")
			lab.must("chmod", "0600", "/run/extip-state/extip.db")
			lab.startPlugin()
			eventually(t, "the rules are back", func() bool {
				return lab.outside.Ask("tcp", "203.0.113.56:80") != "" && lab.outside.Ask("tcp", "[2001:db8::56]:80") != ""
			})
			none("after the plugin has started again")
		})
	}
}

// An attackScene is a host with two networks: on one a victim and a hostile
// container, on the other another tenant's.
type attackScene struct {
	lab                    *lab
	t                      *testing.T
	evil, victim, tenant   *nettest.Node
	evilPort, bridge       string
	evilMAC, victimMAC     net.HardwareAddr
	evilIP, evilIP6        netip.Addr
	victimIP, victimIP6    netip.Addr
	evilLocal, victimLocal netip.Addr
	outsideTap, victimTap  *nettest.Tap
	marks                  int
}

var (
	gateway, gateway6 = netip.MustParseAddr("172.31.0.1"), netip.MustParseAddr("2001:db8:31::1")
	everybody6        = netip.MustParseAddr("ff02::1")
)

func newAttackScene(t *testing.T, lab *lab) *attackScene {
	t.Helper()
	install(t, probeBinary(t), lab.path("/run/probe"))
	lab.host.Serve(22) // as an sshd does that listens on all addresses
	lab.dual("web", "172.31.0.0/16", "2001:db8:31::/64", "extip.pool=203.0.113.56-203.0.113.62,2001:db8::56-2001:db8::5f", "com.docker.network.bridge.name=br-web")
	lab.dual("other", "172.30.0.0/16", "2001:db8:30::/64", "extip.pool=203.0.113.64-203.0.113.66,2001:db8::64-2001:db8::66")
	s := &attackScene{lab: lab, t: t, bridge: "br-web"}
	s.victim = lab.run("victim", "--network", "name=web,\"driver-opt=extip.address=203.0.113.56,2001:db8::56\"")
	s.evil = lab.run("evil", "--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW", "--network", "name=web,\"driver-opt=extip.address=203.0.113.57,2001:db8::57\"")
	s.tenant = lab.run("tenant", "--network", "name=other,\"driver-opt=extip.address=203.0.113.64,2001:db8::64\"")
	inspect := func(container, what string) string {
		return lab.docker("inspect", "-f", "{{.NetworkSettings.Networks.web."+what+"}}", container)
	}
	for _, c := range []struct {
		name           string
		mac            *net.HardwareAddr
		ip, ip6, local *netip.Addr
	}{{"evil", &s.evilMAC, &s.evilIP, &s.evilIP6, &s.evilLocal}, {"victim", &s.victimMAC, &s.victimIP, &s.victimIP6, &s.victimLocal}} {
		mac, err := net.ParseMAC(inspect(c.name, "MacAddress"))
		if err != nil {
			t.Fatal(err)
		}
		*c.mac = mac
		*c.ip, *c.ip6 = netip.MustParseAddr(inspect(c.name, "IPAddress")), netip.MustParseAddr(inspect(c.name, "GlobalIPv6Address"))
		*c.local = netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	}
	s.evilPort = "xip" + inspect("evil", "EndpointID")[:11]
	lab.outside.Run("ip", "route", "add", "172.31.0.0/16", "via", hostAddr)
	lab.outside.Run("ip", "route", "add", "2001:db8:31::/64", "via", hostAddr6)
	s.outsideTap, s.victimTap = lab.outside.Tap("eth0"), s.victim.Tap("eth0")
	return s
}

// weaken takes away what extip has in the way, and the engine's policy.
func (s *attackScene) weaken(backend string) {
	if backend == "nftables" {
		s.lab.host.Run("nft", "delete", "table", "ip", "extip")
		s.lab.host.Run("nft", "delete", "table", "ip6", "extip")
	} else {
		for _, tool := range []string{"iptables", "ip6tables"} {
			s.lab.must(tool, "-t", "mangle", "-F")
			s.lab.must(tool, "-t", "nat", "-F")
		}
	}
	s.lab.host.Run("nft", "delete", "table", "bridge", "extip")
	s.lab.dropBarrier()
	for _, tool := range []string{"iptables", "ip6tables"} {
		s.lab.must(tool, "-P", "FORWARD", "ACCEPT")
	}
	s.lab.must("chmod", "0666", pluginSocket, "/run/extip-state/extip.db")
	s.lab.must("chmod", "0755", "/run/docker", "/run/docker/plugins", "/run/extip-state")
}

// dropBarrier takes away what keeps the host from answering without rules.
func (l *lab) dropBarrier() {
	l.t.Helper()
	l.must("sh", "-c", "for f in -4 -6; do while ip $f rule del pref 11900; do :; done; done")
}

// restore undoes what a hostile container has set on itself, and what others
// have learnt.
func (s *attackScene) restore() {
	for _, family := range []string{"-4", "-6"} {
		_, _ = s.lab.host.Try("ip", family, "neigh", "flush", "dev", s.bridge)
		_, _ = s.victim.Try("ip", family, "neigh", "flush", "dev", "eth0")
	}
	for _, a := range []string{s.victimIP.String() + "/16", s.victimIP6.String() + "/64"} {
		_, _ = s.evil.Try("ip", "addr", "del", a, "dev", "eth0")
	}
	s.victim.Ask("udp", gateway.String()+":22") // the bridge learns where it is
	s.victim.Ask("udp", "["+gateway6.String()+"]:22")
}

// arrives sends a frame that holds a mark and tells whether it is heard in time.
func (s *attackScene) arrives(patience time.Duration, tap *nettest.Tap, frame func(mark []byte) []byte) bool {
	s.marks++
	mark := fmt.Appendf(nil, "<mark %d>", s.marks)
	s.evil.Send("eth0", frame(mark))
	return within(patience, func() bool { return tap.Heard(mark) })
}

// knows tells whether a machine takes a MAC for that of an address.
func (s *attackScene) knows(n *nettest.Node, dev string, a netip.Addr, mac net.HardwareAddr) bool {
	out, err := n.Try("ip", "neigh", "show", a.String(), "dev", dev)
	return err == nil && strings.Contains(out, mac.String())
}

func (s *attackScene) attacks() []attack {
	lab := s.lab
	bridgeMAC, err := net.ParseMAC(strings.Fields(lab.host.Run("ip", "-br", "link", "show", s.bridge))[2])
	if err != nil {
		s.t.Fatal(err)
	}
	outside, outside6 := netip.MustParseAddr(outsideAddr), netip.MustParseAddr(outsideAddr6)
	elsewhere, elsewhere6 := netip.MustParseAddr("198.51.100.66"), netip.MustParseAddr("2001:db8:ffff::66")
	noMAC := make(net.HardwareAddr, 6)
	reaches := func(from *nettest.Node, addr, who string) func(time.Duration) bool {
		return func(patience time.Duration) bool {
			return within(patience, func() bool {
				return strings.HasPrefix(from.Ask("tcp", addr), who+" ") || strings.HasPrefix(from.Ask("udp", addr), who+" ")
			})
		}
	}
	// takes sends a frame, again and again, and tells whether somebody is
	// taken in by it.
	takes := func(patience time.Duration, frame []byte, in func() bool) bool {
		return within(patience, func() bool {
			s.evil.Send("eth0", frame)
			return in()
		})
	}
	spoofed := func(from, to netip.Addr) func(time.Duration) bool {
		return func(patience time.Duration) bool {
			return s.arrives(patience, s.outsideTap, func(mark []byte) []byte {
				etherType := uint16(0x800)
				datagram := nettest.UDP(4000, 4000, mark)
				if from.Is6() {
					etherType = 0x86dd
					datagram = nettest.ICMP6(from, to, 128, 0, append(make([]byte, 4), mark...))
				} else {
					datagram = nettest.IP(from, to, 17, datagram)
				}
				return nettest.Ethernet(bridgeMAC, s.evilMAC, etherType, datagram)
			})
		}
	}
	toVictim := func(frame func(mark []byte) []byte) func(time.Duration) bool {
		return func(patience time.Duration) bool { return s.arrives(patience, s.victimTap, frame) }
	}
	user := func(args ...string) (string, error) {
		return lab.try(append([]string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}, args...)...)
	}
	return []attack{
		// From outside, and from a neighbour that knows the way inside.
		{"the host answers on an external address", reaches(lab.outside, "203.0.113.56:22", "host")},
		{"the host answers on an external IPv6 address", reaches(lab.outside, "[2001:db8::56]:22", "host")},
		{"a neighbour reaches an internal address", reaches(lab.outside, s.victimIP.String()+":80", "victim")},
		{"a neighbour reaches an internal IPv6 address", reaches(lab.outside, "["+s.victimIP6.String()+"]:80", "victim")},
		// From a container of another network.
		{"another tenant reaches an internal address", reaches(s.tenant, s.victimIP.String()+":80", "victim")},
		{"another tenant reaches an internal IPv6 address", reaches(s.tenant, "["+s.victimIP6.String()+"]:80", "victim")},
		{"another tenant reaches the host by an external address", reaches(s.tenant, "203.0.113.56:22", "host")},
		// From a sibling with NET_RAW.
		{"a sibling says by ARP that it is the gateway", func(patience time.Duration) bool {
			s.victim.Ask("udp", gateway.String()+":22")
			frame := nettest.Ethernet(s.victimMAC, s.evilMAC, 0x806, nettest.ARP(1, s.evilMAC, gateway, noMAC, s.victimIP))
			return takes(patience, frame, func() bool { return s.knows(s.victim, "eth0", gateway, s.evilMAC) })
		}},
		{"a sibling says by ARP to the host that it is the victim", func(patience time.Duration) bool {
			lab.host.Ask("udp", s.victimIP.String()+":80")
			frame := nettest.Ethernet(bridgeMAC, s.evilMAC, 0x806, nettest.ARP(1, s.evilMAC, s.victimIP, noMAC, gateway))
			return takes(patience, frame, func() bool { return s.knows(lab.host, s.bridge, s.victimIP, s.evilMAC) })
		}},
		{"a sibling says by NDP that it is the gateway", func(patience time.Duration) bool {
			s.victim.Ask("udp", "["+gateway6.String()+"]:22")
			frame := nettest.Ethernet(s.victimMAC, s.evilMAC, 0x86dd, nettest.Advertisement(s.evilIP6, s.victimIP6, gateway6, s.evilMAC))
			return takes(patience, frame, func() bool { return s.knows(s.victim, "eth0", gateway6, s.evilMAC) })
		}},
		{"a sibling says by NDP to the host that it is the victim", func(patience time.Duration) bool {
			lab.host.Ask("udp", "["+s.victimIP6.String()+"]:80")
			frame := nettest.Ethernet(bridgeMAC, s.evilMAC, 0x86dd, nettest.Advertisement(s.evilIP6, gateway6, s.victimIP6, s.evilMAC))
			return takes(patience, frame, func() bool { return s.knows(lab.host, s.bridge, s.victimIP6, s.evilMAC) })
		}},
		{"a sibling draws the victim's frames by its MAC", func(patience time.Duration) bool {
			s.victim.Ask("udp", gateway.String()+":22")
			return within(patience, func() bool {
				s.evil.Send("eth0", nettest.Ethernet(nettest.Broadcast, s.victimMAC, 0x88cc, make([]byte, 46)))
				s.evil.Send("eth0", nettest.Ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}, s.victimMAC, 0x88cc, make([]byte, 46)))
				for line := range strings.Lines(lab.host.Run("bridge", "fdb", "show", "br", s.bridge)) {
					if strings.HasPrefix(line, s.victimMAC.String()+" dev "+s.evilPort) {
						return true
					}
				}
				return false
			})
		}},
		{"a sibling goes out as the victim", spoofed(s.victimIP, outside)},
		{"a sibling goes out as the victim, IPv6", spoofed(s.victimIP6, outside6)},
		{"a container goes out as whomever it likes", spoofed(elsewhere, outside)},
		{"a container goes out as whomever it likes, IPv6", spoofed(elsewhere6, outside6)},
		{"a sibling is a DHCP server", toVictim(func(mark []byte) []byte {
			return nettest.Ethernet(nettest.Broadcast, s.evilMAC, 0x800, nettest.IP(s.evilIP, netip.MustParseAddr("255.255.255.255"), 17, nettest.UDP(67, 68, mark)))
		})},
		{"a sibling is a DHCPv6 server", toVictim(func(mark []byte) []byte {
			datagram := nettest.UDP(547, 546, mark)
			datagram[6] = 1 // br_netfilter looks at no checksum, but that there is one
			return nettest.Ethernet(s.victimMAC, s.evilMAC, 0x86dd, nettest.IP(s.evilLocal, s.victimLocal, 17, datagram))
		})},
		{"a sibling is a router", toVictim(func(mark []byte) []byte {
			body := append([]byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}, mark...)
			return nettest.Ethernet(nettest.Broadcast, s.evilMAC, 0x86dd, nettest.ICMP6(s.evilLocal, everybody6, 134, 0, body))
		})},
		// From a sibling with NET_ADMIN.
		{"a sibling takes over the victim's address", func(patience time.Duration) bool {
			s.evil.Run("ip", "addr", "add", s.victimIP.String()+"/16", "dev", "eth0")
			frame := nettest.Ethernet(nettest.Broadcast, s.evilMAC, 0x806, nettest.ARP(1, s.evilMAC, s.victimIP, noMAC, s.victimIP))
			return takes(patience, frame, func() bool { return strings.HasPrefix(lab.host.Ask("tcp", s.victimIP.String()+":80"), "evil ") })
		}},
		{"a sibling takes over the victim's IPv6 address", func(patience time.Duration) bool {
			s.evil.Run("ip", "addr", "add", s.victimIP6.String()+"/64", "dev", "eth0", "nodad")
			frame := nettest.Ethernet(bridgeMAC, s.evilMAC, 0x86dd, nettest.Advertisement(s.evilIP6, gateway6, s.victimIP6, s.evilMAC))
			return takes(patience, frame, func() bool { return strings.HasPrefix(lab.host.Ask("tcp", "["+s.victimIP6.String()+"]:80"), "evil ") })
		}},
		// From a user of the host.
		{"a user talks to the plugin", func(time.Duration) bool {
			out, _ := user("/run/probe", "ask", "unix", pluginSocket)
			return !strings.Contains(out, "connect: permission denied")
		}},
		{"a user reads the records", func(time.Duration) bool {
			_, err := user("cat", "/run/extip-state/extip.db")
			return err == nil
		}},
	}
}

// TestNeverTheHost: whatever happens to a container, to the plugin and to the
// rules, the host's own services don't answer on an external address. Where
// others take the rules away, there is the barrier; what it can't hold, datagrams
// to which a service answers by the interface that they came in by, is measured
// until the rules are back.
func TestNeverTheHost(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			lab := newLab(t, options{backend: backend, plugin: byHint})
			lab.host.Serve(22)
			lab.dual("web", "172.31.0.0/16", "2001:db8:31::/64", "extip.pool=203.0.113.56-203.0.113.62,2001:db8::56-2001:db8::5f")
			lab.run("web", "--network", "name=web,\"driver-opt=extip.address=203.0.113.56,2001:db8::56\"")
			sh := func(script string) func() { return func() { lab.must("sh", "-c", script) } }
			wipe := map[string]string{
				"nftables": "nft flush ruleset",
				"iptables": "for t in mangle nat; do iptables -t $t -F; ip6tables -t $t -F; done",
			}[backend]
			for _, tt := range []struct {
				name string
				do   func()
				open bool // the rules are away for a moment
			}{
				{"restart", func() { lab.docker("restart", "-t", "0", "web") }, false},
				{"stop and start", func() { lab.docker("stop", "-t", "0", "web"); lab.docker("start", "web") }, false},
				{"kill", func() { lab.docker("kill", "web"); lab.docker("start", "web") }, false},
				{"pause", func() { lab.docker("pause", "web"); time.Sleep(200 * time.Millisecond); lab.docker("unpause", "web") }, false},
				{"remove and run", func() {
					lab.docker("rm", "-f", "web")
					lab.run("web", "--network", "name=web,\"driver-opt=extip.address=203.0.113.56,2001:db8::56\"")
				}, false},
				{"plugin killed", func() { lab.killPlugin(); time.Sleep(200 * time.Millisecond); lab.startPlugin() }, false},
				{"container killed without a plugin", func() {
					lab.killPlugin()
					lab.must("sh", "-c", "kill -9 "+lab.docker("inspect", "-f", "{{.State.Pid}}", "web"))
					time.Sleep(500 * time.Millisecond)
					lab.startPlugin()
					eventually(t, "it starts again", func() bool { _, err := lab.tryDocker("start", "web"); return err == nil })
				}, false},
				{"iptables -F", sh("iptables -F"), false},
				{wipe, sh(wipe), true},
				{wipe + ", again and again", sh("for i in 1 2 3 4 5; do " + wipe + "; sleep 0.3; done"), true},
			} {
				eventually(t, "web answers", func() bool { return lab.outside.Ask("tcp", "203.0.113.56:80") == "web saw "+outsideAddr })
				watches := map[string]*portWatch{}
				for _, network := range []string{"tcp", "udp"} {
					watches[network] = watchPort(t, lab.outside, network, "203.0.113.56:22")
				}
				tt.do()
				eventually(t, "web answers", func() bool { return lab.outside.Ask("tcp", "203.0.113.56:80") == "web saw "+outsideAddr })
				for network, w := range watches {
					asked, answers, longest := w.stop()
					t.Logf("%-8s %-45s %s: %5d questions, %3d answers of the host, at most for %v", backend, tt.name, network, asked, answers, longest.Round(time.Millisecond))
					switch {
					case asked == 0:
						t.Errorf("%s: nothing was asked", tt.name)
					case answers > 0 && (!tt.open || network == "tcp"):
						t.Errorf("%s: the host answers %d times on an external address, over %s", tt.name, answers, network)
					}
				}
			}

			lab.killPlugin()
			lab.must("sh", "-c", wipe)
			host := func(answers string) {
				t.Helper()
				ask(t, []question{
					{lab.outside, "tcp", "203.0.113.56:22", strings.ReplaceAll(answers, "CLIENT", outsideAddr)},
					{lab.outside, "tcp", "[2001:db8::56]:22", strings.ReplaceAll(answers, "CLIENT", outsideAddr6)},
					{lab.outside, "udp", "[2001:db8::56]:22", strings.ReplaceAll(answers, "CLIENT", outsideAddr6)},
				})
			}
			host("") // for as long as the plugin doesn't run
			lab.dropBarrier()
			host("host saw CLIENT") // or the test would show nothing
			lab.startPlugin()
			eventually(t, "web answers", func() bool { return lab.outside.Ask("tcp", "203.0.113.56:80") == "web saw "+outsideAddr })
			host("")
			lab.must("sh", "-c", "ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default")
			eventually(t, "the barrier is back", func() bool { return strings.Count(lab.must("ip", "rule"), "11900:") > 1 })
		})
	}
}

// A portWatch asks a port again and again.
type portWatch struct {
	stopping        chan struct{}
	done            sync.WaitGroup
	mu              sync.Mutex
	asked, answered int
	first, last     time.Time
	longest         time.Duration
}

// watchPort asks every two milliseconds, by a connection or datagram flow of its
// own each time, whether a port answers; less often where the machine can't keep
// up.
func watchPort(t *testing.T, from *nettest.Node, network, addr string) *portWatch {
	t.Helper()
	w := &portWatch{stopping: make(chan struct{})}
	const patience = 100 * time.Millisecond
	underway := make(chan struct{}, patience/pace)
	w.done.Go(func() {
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for {
			select {
			case <-w.stopping:
				return
			case <-tick.C:
			}
			underway <- struct{}{}
			began := time.Now()
			w.done.Go(func() {
				defer func() { <-underway }()
				got := exchange(from, network, 0, addr, patience)
				w.mu.Lock()
				defer w.mu.Unlock()
				w.asked++
				if got == "" {
					return
				}
				if w.answered++; began.Sub(w.last) > 200*time.Millisecond {
					w.first = began
				}
				w.last = began
				w.longest = max(w.longest, w.last.Sub(w.first))
			})
		}
	})
	return w
}

// stop tells how often it was asked, how often something answered, and for how
// long at a time.
func (w *portWatch) stop() (asked, answered int, longest time.Duration) {
	close(w.stopping)
	w.done.Wait()
	return w.asked, w.answered, w.longest
}
