package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/link"
)

// TestFloods: whoever opens connections to a container without end, or a
// container that does, takes the host's table of connections as far as its limit
// goes, and without one as far as it likes; nobody else's way is in it.
func TestFloods(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			lab := newLab(t, options{backend: backend})
			lab.dual("web", "172.31.0.0/16", "2001:db8:31::/64", "extip.pool=203.0.113.56-203.0.113.62,2001:db8::56-2001:db8::5f")
			f := &flood{lab: lab, t: t, next: 1}
			f.victim = lab.run("victim", "--network", `name=web,"driver-opt=extip.address=203.0.113.56,2001:db8::56"`)
			lab.run("beside", "--network", `name=web,"driver-opt=extip.address=203.0.113.57,2001:db8::57"`)
			var err error
			if f.mac, err = net.ParseMAC(strings.Fields(lab.host.Run("ip", "-br", "link", "show", lab.parent))[2]); err != nil {
				t.Fatal(err)
			}
			lab.host.MustDo(func() error {
				f.links, err = link.New("/proc/sys/net")
				return err
			})
			t.Cleanup(f.links.Close)

			const connections, rate, many = 60, 20, 500
			for _, a := range f.attacks() {
				if n, _ := a.held(many, many); n < many {
					t.Errorf("without a limit: %s takes only %d entries of %d", a.name, n, many)
				}
				f.forget()
			}
			bounded := func(when string) {
				t.Helper()
				for _, a := range f.attacks() {
					f.forget()
					time.Sleep(time.Second) // one that was full counts as that for half of it
					if n, _ := a.held(many, connections); n > connections || n < connections-1 {
						t.Errorf("%s, with a limit of %d: %s takes %d entries", when, connections, a.name, n)
					}
					f.besideAnswers()
				}
			}
			lab.extip("limit", "203.0.113.56", fmt.Sprintf("connections=%d", connections))
			bounded("while the plugin runs")
			f.syns(netip.MustParseAddr("203.0.113.56"), many)
			if out := lab.extip("doctor", "--json"); !strings.Contains(out, fmt.Sprintf("203.0.113.56 has %d connections, of %d that it may have", connections, connections)) {
				t.Errorf("doctor says %s", out)
			}
			lab.killPlugin()
			bounded("while the plugin is dead")
			lab.startPlugin()
			bounded("after it has started again")
			if out := lab.extip("check"); !strings.Contains(out, "as recorded") {
				t.Errorf("check says %q", out)
			}
			f.forget()

			lab.extip("limit", "victim", fmt.Sprintf("rate=%d/s", rate))
			for _, a := range f.attacks() {
				if n, took := a.held(many, 1); n == 0 || n > rate+int(rate*took.Seconds())+1 {
					t.Errorf("with a limit of %d a second: %s takes %d entries in %s", rate, a.name, n, took)
				}
				f.besideAnswers()
				f.forget()
			}
			lab.extip("limit", "victim", "none")
			f.besideAnswers()
			if got := lab.outside.Ask("tcp", "203.0.113.56:80"); got != "victim saw "+outsideAddr {
				t.Errorf("no longer limited: %q", got)
			}
			lab.docker("rm", "-f", "victim", "beside")
		})
	}
}

// A flood is a host with a container that is attacked, or attacks.
type flood struct {
	lab    *lab
	t      *testing.T
	victim *nettest.Node
	mac    net.HardwareAddr // of the host
	links  *link.Host
	next   int // number of the next connection
}

// A floodAttack opens connections. held is how many entries of the host's table
// an address has then, and how long that took; what is expected is waited for.
type floodAttack struct {
	name string
	held func(count, expected int) (entries int, took time.Duration)
}

func (f *flood) attacks() []floodAttack {
	inside := netip.MustParseAddr(f.lab.inspectIP("victim", "web"))
	var list []floodAttack
	add := func(name string, counted netip.Addr, open func(count int)) {
		list = append(list, floodAttack{name, func(count, expected int) (int, time.Duration) {
			began := time.Now()
			open(count)
			within(long, func() bool { return f.entries(counted) >= expected })
			time.Sleep(silence) // for more than that
			n := f.entries(counted)
			return n, time.Since(began)
		}})
	}
	for _, to := range []string{"203.0.113.56", "2001:db8::56"} {
		external := netip.MustParseAddr(to)
		add("a flood of TCP connections to "+to+" from nobody", external, func(count int) { f.syns(external, count) })
	}
	add("a flood of datagrams to 2001:db8::56", netip.MustParseAddr("2001:db8::56"), func(count int) { f.lab.outside.Flows("[2001:db8::56]:80", count, 0) })
	add("a container that asks outside", inside, func(count int) { f.victim.Flows(outsideAddr+":80", count, 0) })
	add("a container that asks the host", inside, func(count int) { f.victim.Flows(gateway.String()+":9", count, 0) })
	return list
}

// syns opens TCP connections as if from addresses that nobody has, which never
// answer. Each is another one.
func (f *flood) syns(to netip.Addr, count int) {
	etherType := uint16(0x800)
	from := netip.MustParseAddr("203.0.113.20")
	if to.Is6() {
		etherType, from = 0x86dd, netip.MustParseAddr("2001:db8::20")
	}
	var frames [][]byte
	for range count {
		syn := nettest.SYN(netip.AddrPortFrom(from, uint16(1024+f.next)), netip.AddrPortFrom(to, 80))
		frames = append(frames, nettest.Ethernet(f.mac, net.HardwareAddr{2, 0, 0, 0, 0, 0x20}, etherType, syn))
		f.next++
	}
	f.lab.outside.Send("eth0", frames...)
}

// entries is how many of the host's table are an address's.
func (f *flood) entries(a netip.Addr) (n int) {
	f.lab.host.MustDo(func() error {
		count, err := f.links.Count(link.Flows{External: []netip.Addr{a}, Internal: []netip.Addr{a}})
		n = count[a].All
		return err
	})
	return n
}

// forget empties the table, of what concerns the victim.
func (f *flood) forget() {
	f.lab.host.MustDo(func() error {
		inside := netip.MustParseAddr(f.lab.inspectIP("victim", "web"))
		return f.links.Forget(link.Flows{External: []netip.Addr{netip.MustParseAddr("203.0.113.56"), netip.MustParseAddr("2001:db8::56")}, Internal: []netip.Addr{inside}})
	})
}

func (f *flood) besideAnswers() {
	f.t.Helper()
	ask(f.t, []question{
		{f.lab.outside, "tcp", "203.0.113.57:80", "beside saw " + outsideAddr},
		{f.lab.outside, "udp", "[2001:db8::57]:80", "beside saw " + outsideAddr6},
	})
}
