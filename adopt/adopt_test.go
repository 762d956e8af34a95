package adopt

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/nat/iptables"
	"github.com/extip/extip/nat/nftables"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// What people type. The container is 172.30.1.2, the address 192.0.2.51.
func recipes() map[string]recipe {
	return map[string]recipe{
		"everything": {
			text: `ip addr add 192.0.2.51/24 dev eth0
				iptables -t nat -A PREROUTING -d 192.0.2.51 -j DNAT --to-destination 172.30.1.2
				iptables -t nat -A POSTROUTING -s 172.30.1.2 -j SNAT --to-source 192.0.2.51`,
			want: Plan{Egress: true}, found: 3, saw: "c1 saw 192.0.2.9",
		},
		"all ports, by way of the gateway": {
			text: `ip addr add 192.0.2.51/32 dev eth0
				iptables -t nat -A PREROUTING -p tcp -d 192.0.2.51 --dport 1:65535 -j DNAT --to-destination 172.30.1.2:1-65535
				iptables -t nat -A PREROUTING -p udp -d 192.0.2.51 --dport 1:65535 -j DNAT --to-destination 172.30.1.2:1-65535
				iptables -t nat -A POSTROUTING -p tcp -d 172.30.1.2 --dport 1:65535 -j SNAT --to-source 172.30.1.1
				iptables -t nat -A POSTROUTING -p udp -d 172.30.1.2 --dport 1:65535 -j SNAT --to-source 172.30.1.1`,
			want: Plan{Gateway: true, Ports: []string{"tcp", "udp"}}, found: 5, saw: "c1 saw 172.30.1.1",
		},
		"two ports in a chain, with a comment": {
			text: `ip addr add 192.0.2.51/32 dev eth0 label eth0:web
				iptables -t nat -N WEB
				iptables -t nat -A PREROUTING -j WEB
				iptables -t nat -A WEB -d 192.0.2.51 -p tcp -m multiport --dports 80,443 -m comment --comment "it's web" -j DNAT --to-destination 172.30.1.2
				iptables -t nat -A WEB -d 192.0.2.51 -p udp --dport 80 -j DNAT --to-destination 172.30.1.2`,
			want: Plan{Ports: []string{"tcp/80,443", "udp/80"}}, found: 3, saw: "c1 saw 192.0.2.9",
		},
	}
}

type recipe struct {
	text  string
	want  Plan
	found int
	saw   string
}

// TestAdopt types a recipe, has traffic go through it, and takes it over. No
// packet is lost, and nothing of the recipe is left.
func TestAdopt(t *testing.T) {
	for name, r := range recipes() {
		for _, backend := range []string{"nftables", "iptables"} {
			t.Run(backend+", "+name, func(t *testing.T) { adopt(t, r, backend) })
		}
	}
}

func adopt(t *testing.T, r recipe, backend string) {
	nettest.RequireTool(t, "iptables")
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24")
	client := lan.Attach("client", "192.0.2.9/24")
	client.Serve(80)
	host.Bridge("br1", "172.30.1.1/24")
	host.Sysctl("ipv4.ip_forward", "1")
	c1 := host.Container("c1", "br1", "172.30.1.2/24", "172.30.1.1")
	c1.Serve(80)
	before := host.Run("iptables-save", "-t", "nat")
	host.Run("sh", "-ec", r.text)

	endpoints := []Endpoint{{ID: "e1", Container: "c1", On: "eth0", Internal: []netip.Addr{netip.MustParseAddr("172.30.1.2")}}}
	var links *link.Host
	var rules nat.Backend
	host.MustDo(func() (err error) {
		if links, err = link.New("/proc/sys/net"); err != nil {
			return err
		}
		if backend == "iptables" {
			rules, err = iptables.New("")
		} else {
			rules, err = nftables.New(nftables.Config{})
		}
		return err
	})
	t.Cleanup(links.Close)
	find := func() (plans []Plan) {
		host.MustDo(func() error {
			theirs, err := iptables.Read("")
			if err != nil {
				return err
			}
			all, err := links.Links()
			plans = Find(theirs, all, endpoints)
			return err
		})
		return plans
	}
	plans := find()
	if len(plans) != 1 {
		t.Fatalf("found %+v", plans)
	}
	p := plans[0]
	if p.External.String() != "192.0.2.51" || p.Internal.String() != "172.30.1.2" || p.Endpoint != "e1" || p.Gateway != r.want.Gateway ||
		p.Egress != r.want.Egress || !slices.Equal(p.Ports, r.want.Ports) || len(p.Found) != r.found || len(p.Left) > 0 {
		t.Errorf("found %+v", p)
	}

	network := nat.Network{ID: "n1", Bridge: "br1", Uplinks: []string{"eth0"}, Subnets: []netip.Prefix{netip.MustParsePrefix("172.30.1.0/24")}}
	host.MustDo(func() error { return rules.AddNetwork(network) })
	if got := client.Ask("udp", "192.0.2.51:80"); got != r.saw {
		t.Fatalf("by hand: got %q, want %q", got, r.saw)
	}
	talk := startTalk(t, client)
	var done []string
	host.MustDo(func() (err error) {
		done, err = p.Do(links, func(p Plan) error {
			err := rules.Add(nat.Mapping{Endpoint: p.Endpoint, External: p.External, Internal: p.Internal, Gateway: p.Gateway, Egress: p.Egress})
			if err != nil {
				return err
			}
			return links.EnsureAlias("eth0", p.External)
		}, func(command string) error {
			host.Run("sh", "-c", command)
			return nil
		})
		return err
	})
	t.Logf("%s", strings.Join(done, "\n"))
	talk.goOn()
	talk.stop()
	t.Logf("%d questions", talk.asked.Load())
	if lost := talk.lost.Load(); lost > 0 {
		t.Errorf("of %d questions, %d had no answer", talk.asked.Load(), lost)
	}
	if got := client.Ask("tcp", "192.0.2.51:80"); got != r.saw {
		t.Errorf("adopted: got %q, want %q", got, r.saw)
	}
	left := host.Run("iptables-save", "-t", "nat") + host.Run("ip", "addr", "show", "dev", "eth0")
	for line := range strings.Lines(left) {
		if strings.Contains(line, "192.0.2.51") && !strings.Contains(line, "192.0.2.51/32 scope host eth0:xip") && !strings.Contains(line, "XIP-") ||
			strings.Contains(line, "172.30.1.2") && !strings.Contains(line, "XIP-") {
			t.Errorf("left: %s\nbefore:\n%s", line, before)
		}
	}
	if plans := find(); len(plans) > 0 {
		t.Errorf("found again: %+v", plans)
	}
}

// A talk asks on a connection that is there already and on new ones. It counts
// questions, and those that had no answer.
type talk struct {
	t           *testing.T
	asked, lost atomic.Int64
	ended       chan struct{}
	wg          sync.WaitGroup
}

// startTalk returns when it has begun.
func startTalk(t *testing.T, client *nettest.Node) *talk {
	k := &talk{t: t, ended: make(chan struct{})}
	for _, fresh := range []bool{false, true} {
		k.wg.Go(func() {
			err := client.Do(func() error {
				var c net.Conn
				for {
					select {
					case <-k.ended:
						return nil
					default:
					}
					if c == nil || fresh {
						if c != nil {
							_ = c.Close()
						}
						var err error
						if c, err = net.Dial("udp", "192.0.2.51:80"); err != nil {
							return err
						}
					}
					k.asked.Add(1)
					_ = c.SetDeadline(time.Now().Add(30 * time.Second))
					_, werr := c.Write([]byte("?"))
					_, rerr := c.Read(make([]byte, 512))
					if werr != nil || rerr != nil {
						t.Logf("fresh %t: %v %v", fresh, werr, rerr)
						k.lost.Add(1)
					}
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	k.goOn()
	return k
}

// goOn returns after 20 more questions.
func (k *talk) goOn() {
	k.t.Helper()
	began := k.asked.Load()
	for deadline := time.Now().Add(time.Minute); k.asked.Load() < began+20; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			k.t.Errorf("in a minute, only %d questions were asked", k.asked.Load()-began)
			return
		}
	}
}

func (k *talk) stop() {
	close(k.ended)
	k.wg.Wait()
}
