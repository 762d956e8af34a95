package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/extip/extip/announce"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/nat/iptables"
	"github.com/extip/extip/nat/nftables"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// A lab is a host as the plugin makes it, without the plugin: nothing repairs
// itself.
//
//	client 192.0.2.9 ─── eth0 host eth1 ─── router 203.0.113.9
//	                          host ┬ xip-n1 172.30.1.1   c1 192.0.2.51, 2001:db8::51
//	                               └ xip-n2 172.30.2.1   c2 203.0.113.52
//
// Both neighbours are default routers, client the better one. The FORWARD
// policy is DROP, as Docker leaves it.
type lab struct {
	t              *testing.T
	lan            *nettest.Segment
	host           *nettest.Node
	client, router *nettest.Node
	c1, c2         *nettest.Node
	links          *link.Host
	backend        nat.Backend
	subject        Subject
	doctor         *Doctor
	// bin is first on PATH where remedies are run.
	bin string
	// sysctls is where the doctor and the remedies find the settings.
	sysctls string
	program string // of iptables
	others  int    // hosts that have an address of ours
}

type variant struct{ backend, flavour string }

func newLab(t *testing.T, v variant) *lab {
	l := &lab{t: t, bin: t.TempDir(), program: "iptables-" + v.flavour}
	for _, tool := range []string{"sysctl", "bridge", "nft", l.program} {
		nettest.RequireTool(t, tool)
	}
	l.lan = nettest.NamedSegment(t, "lan")
	wan := nettest.NamedSegment(t, "wan")
	l.host = l.lan.Attach("host", "192.0.2.2/24", "2001:db8::2/64")
	wan.Plug(l.host, "eth1", "203.0.113.2/24")
	l.client = l.lan.Attach("client", "192.0.2.9/24", "2001:db8::9/64")
	l.router = wan.Attach("router", "203.0.113.9/24")
	l.router.Run("ip", "addr", "add", "198.51.100.9/32", "dev", "lo")
	l.router.Run("ip", "route", "add", "203.0.113.52/32", "dev", "eth0", "src", "198.51.100.9")
	l.host.Run("ip", "route", "add", "default", "via", "192.0.2.9")
	l.host.Run("ip", "route", "add", "default", "via", "203.0.113.9", "metric", "200")
	l.host.Run("ip", "route", "add", "default", "via", "2001:db8::9")
	l.settings()
	l.open(v)
	l.c1 = l.container("c1", "xip-n1", "172.30.1.2/24", "2001:db8:31::2/64")
	l.c2 = l.container("c2", "xip-n2", "172.30.2.2/24")
	for _, n := range []*nettest.Node{l.host, l.client, l.router, l.c1, l.c2} {
		n.Serve(80)
	}
	l.host.Run(l.program, "-P", "FORWARD", "DROP")
	l.host.Run("ip6"+strings.TrimPrefix(l.program, "ip"), "-P", "FORWARD", "DROP")
	l.reconcile()
	return l
}

// settings are the host's, but for the two that are the whole machine's.
func (l *lab) settings() {
	l.sysctls = l.t.TempDir()
	for _, part := range []string{"ipv4", "ipv6", "bridge"} {
		if err := os.Symlink("/proc/sys/net/"+part, filepath.Join(l.sysctls, part)); err != nil {
			l.t.Fatal(err)
		}
	}
	l.write("netfilter/nf_conntrack_count", "10")
	l.write("netfilter/nf_conntrack_max", "1000")
	// What remedies change of them they change here.
	l.script("sysctl", `case $2 in
net.netfilter.*) echo "${2#*=}" > `+l.sysctls+`/netfilter/nf_conntrack_max;;
*) exec /sbin/sysctl "$@";;
esac`)
	// The plugin, as far as remedies go.
	l.script("extip", `echo "$@" > `+l.bin+`/asked`)
}

func (l *lab) write(path, value string) {
	l.t.Helper()
	path = filepath.Join(l.sysctls, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) script(name, text string) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.bin, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		l.t.Fatal(err)
	}
}

// open makes what the plugin consists of, and what it has on record.
func (l *lab) open(v variant) {
	var announcer *announce.Announcer
	l.host.MustDo(func() (err error) {
		if l.links, err = link.New(l.sysctls); err != nil {
			return err
		}
		if announcer, err = announce.New(); err != nil {
			return err
		}
		l.backend, err = backendOf(v)
		return err
	})
	l.t.Cleanup(func() { l.links.Close(); _ = announcer.Close() })
	network := func(id, parent, subnet string, more ...string) Network {
		n := Network{Parent: parent, On: parent}
		n.ID, n.Bridge, n.Uplinks = id, "xip-"+id, []string{"eth0", "eth1"}
		for _, s := range append(more, subnet) {
			p := netip.MustParsePrefix(s)
			n.Gateways, n.Subnets = append(n.Gateways, p), append(n.Subnets, p.Masked())
		}
		return n
	}
	address := func(network, endpoint, external, internal string) Address {
		return Address{
			Mapping: nat.Mapping{Endpoint: endpoint, External: netip.MustParseAddr(external), Internal: netip.MustParseAddr(internal), Egress: true},
			Network: network, Port: "xip" + endpoint, Container: endpoint,
		}
	}
	l.subject = Subject{
		Networks: []Network{network("n1", "eth0", "172.30.1.1/24", "2001:db8:31::1/64"), network("n2", "eth1", "172.30.2.1/24")},
		Addresses: []Address{
			address("n1", "c1", "192.0.2.51", "172.30.1.2"), address("n1", "c1", "2001:db8::51", "2001:db8:31::2"),
			address("n2", "c2", "203.0.113.52", "172.30.2.2"),
		},
	}
	l.doctor = &Doctor{
		Host: l.links, Backend: v.backend, IPTables: l.program,
		Probe: func(ctx context.Context, parent string, addrs []netip.Addr) (map[netip.Addr]net.HardwareAddr, error) {
			return announcer.Probe(ctx, parent, addrs, announce.Fast)
		},
		Nftables: func() error { return nil },
	}
}

func backendOf(v variant) (nat.Backend, error) {
	if v.backend == "iptables" {
		return iptables.New("iptables-" + v.flavour)
	}
	rules, err := nftables.New(nftables.Config{})
	if err != nil {
		return nil, err
	}
	admission, err := iptables.NewAdmission("iptables-" + v.flavour)
	return &nat.Admitted{Backend: rules, Admission: admission}, err
}

// container makes a machine on a network's bridge, which is made, too.
func (l *lab) container(name, bridge string, addrs ...string) *nettest.Node {
	c := nettest.NewNode(l.t, name)
	l.reconcileLinks()
	l.host.Run("ip", "link", "set", "xic"+name, "netns", c.NetNS)
	c.Run("ip", "link", "set", "xic"+name, "name", "eth0", "up")
	for _, n := range l.subject.Networks {
		if n.Bridge != bridge {
			continue
		}
		for i, a := range addrs {
			args := []string{"ip", "addr", "add", a, "dev", "eth0"}
			if i > 0 {
				args = append(args, "nodad")
			}
			c.Run(args...)
		}
		for _, g := range n.Gateways {
			c.Run("ip", "route", "add", "default", "via", g.Addr().String())
		}
	}
	l.host.AwaitPort("xip" + name)
	return c
}

// reconcile is what the plugin does.
func (l *lab) reconcile() {
	l.t.Helper()
	l.reconcileLinks()
	l.host.MustDo(func() error {
		needs, _, err := l.links.SyncUplinks([]string{"eth0", "eth1"})
		if err != nil {
			return err
		}
		var s nat.State
		for i := range l.subject.Networks {
			n := &l.subject.Networks[i]
			n.Mark = needs[n.Parent].Mark
			s.Networks = append(s.Networks, n.Network)
			if _, err := l.links.EnableForwarding(n.Uplinks, link.FamiliesOf(n.Subnets)); err != nil {
				return err
			}
		}
		for _, a := range l.subject.Addresses {
			s.Mappings = append(s.Mappings, a.Mapping)
		}
		if _, err := l.backend.Sync(s); err != nil {
			return err
		}
		for _, a := range l.subject.Addresses {
			if err := l.links.EnsureAlias(l.network(a).On, a.External); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *lab) network(a Address) Network {
	for _, n := range l.subject.Networks {
		if n.ID == a.Network {
			return n
		}
	}
	return Network{}
}

func (l *lab) reconcileLinks() {
	l.t.Helper()
	l.host.MustDo(func() error {
		for _, n := range l.subject.Networks {
			if err := l.links.EnsureBridge(link.Bridge{Name: n.Bridge, Owner: n.ID, Addresses: n.Gateways, MTU: 1500}); err != nil {
				return err
			}
		}
		for _, a := range l.subject.Addresses {
			veth := link.Veth{Host: a.Port, Peer: "xic" + a.Endpoint, Owner: a.Endpoint, Bridge: l.network(a).Bridge, MTU: 1500}
			if err := l.links.EnsureVeth(veth); err != nil {
				return err
			}
		}
		return nil
	})
}

// patient is the doctor; it asks the neighbours, which takes half a second a
// parent, only while another host has an address of ours.
func (l *lab) patient() *Doctor {
	d := *l.doctor
	if l.others == 0 {
		d.Probe = nil
	}
	return &d
}

// examine is the doctor's report, without what is well.
func (l *lab) examine(d *Doctor) (bad []Finding) {
	l.t.Helper()
	l.host.MustDo(func() error {
		all, err := d.Examine(context.Background(), l.subject)
		for _, f := range all {
			if f.Level != OK {
				bad = append(bad, f)
			}
		}
		return err
	})
	return bad
}

func (l *lab) trace(q Question) (steps []Step) {
	l.t.Helper()
	l.host.MustDo(func() (err error) {
		steps, err = l.patient().Trace(context.Background(), l.subject, q)
		return err
	})
	return steps
}

// remedy runs a command as it is printed.
func (l *lab) remedy(command string) {
	l.t.Helper()
	asked := filepath.Join(l.bin, "asked")
	_ = os.Remove(asked)
	l.host.Run("sh", "-c", "PATH="+l.bin+":/usr/sbin:/sbin:$PATH; "+command)
	words, err := os.ReadFile(asked)
	if err != nil {
		return
	}
	switch got := strings.Fields(string(words)); {
	case len(got) == 1 && got[0] == "reconcile":
		l.reconcile()
	case len(got) == 3 && got[0] == "limit":
		var limit nat.Limit
		if _, err := fmt.Sscanf(got[2], "connections=%d", &limit.Connections); err != nil {
			l.t.Fatalf("%q: %v", words, err)
		}
		l.limit(netip.MustParseAddr(got[1]), limit)
	case len(got) == 2 && got[0] == "detach":
		l.detach(netip.MustParseAddr(got[1]))
	default:
		l.t.Errorf("extip was asked for %q", words)
	}
}

// limit gives an address a limit.
func (l *lab) limit(a netip.Addr, limit nat.Limit) {
	l.t.Helper()
	for i := range l.subject.Addresses {
		if l.subject.Addresses[i].External == a {
			l.subject.Addresses[i].Limit = limit
		}
	}
	l.reconcile()
}

// detach gives an address up.
func (l *lab) detach(a netip.Addr) {
	l.t.Helper()
	l.subject.Addresses = slices.DeleteFunc(slices.Clone(l.subject.Addresses), func(have Address) bool {
		if have.External == a {
			l.host.MustDo(func() error { return l.links.RemoveAlias(l.network(have).On, a) })
		}
		return have.External == a
	})
	l.reconcile()
}

// A question is who should answer whom.
type question struct {
	from *nettest.Node
	addr string
	want string
}

func (q question) ok() bool { return q.from.Ask("tcp", q.addr) == q.want }

func (q question) String() string { return fmt.Sprintf("%s asks %s", q.from.Name, q.addr) }

// questions are the traffic that must work, by name.
func (l *lab) questions() map[string]question {
	return map[string]question{
		"in":     {l.client, "192.0.2.51:80", "c1 saw 192.0.2.9"},
		"in6":    {l.client, "[2001:db8::51]:80", "c1 saw 2001:db8::9"},
		"out":    {l.c1, "192.0.2.9:80", "client saw 192.0.2.51"},
		"self":   {l.c1, "192.0.2.51:80", "c1 saw 192.0.2.51"},
		"wan":    {l.router, "203.0.113.52:80", "c2 saw 198.51.100.9"},
		"wanout": {l.c2, "198.51.100.9:80", "router saw 203.0.113.52"},
	}
}
