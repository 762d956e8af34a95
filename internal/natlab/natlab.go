// Package natlab puts a nat.Backend into a host with containers, beside what
// two generations of Docker write into iptables, and asks everybody for
// everybody: the same traffic must pass, with the same identities, whatever
// the backend.
package natlab

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// A Lab is a host with two extip networks, an internal one, and Docker's own
// networks, beside a client on its LAN. Everybody serves the same ports, the
// host too, so that a packet that ends up in the wrong place is answered by
// name.
//
//	cli 192.0.2.9 ─── host 192.0.2.2 ┬ br0 172.30.0.1      c1 c2 c3 c6
//	                                 ├ br1 172.31.0.1      c4 c5
//	                                 ├ br2 172.29.0.1      i1 i2   internal
//	                                 ├ docker0 172.17.0.1  d1      publishes 8080
//	                                 └ docker1 172.18.0.1  e1      made after our rules
type Lab struct {
	Host  *nettest.Node
	nodes map[string]*nettest.Node
	t     testing.TB
}

// A Variant is a lab's firewall and settings.
type Variant struct {
	// Flavour of iptables that Docker uses: nft or legacy.
	Flavour string
	docker  docker
	// bridgeNF has frames within a bridge pass iptables too, as Docker
	// asks for with icc=false or userland-proxy=false.
	bridgeNF string
	rpFilter string
}

// State is the lab's networks and mappings.
func State() nat.State { return nat.State{Networks: networks(), Mappings: mappings()} }

func networks() []nat.Network {
	return []nat.Network{
		{ID: "n0", Bridge: "br0", Uplinks: []string{"eth0"}, Subnets: prefixes("172.30.0.0/24", "2001:db8:30::/64")},
		{ID: "n1", Bridge: "br1", Uplinks: []string{"eth0"}, Subnets: prefixes("172.31.0.0/24", "2001:db8:31::/64"), Mark: 7},
		{ID: "n2", Bridge: "br2", Internal: true, Subnets: prefixes("172.29.0.0/24")},
	}
}

func mappings() []nat.Mapping {
	m := mapping
	gateway, noEgress := m("c5", "192.0.2.55", "172.31.0.5"), m("c6", "192.0.2.56", "172.30.0.6")
	gateway.Gateway = true
	noEgress.Egress = false
	return []nat.Mapping{
		m("c1", "192.0.2.51", "172.30.0.2"), m("c1", "2001:db8::51", "2001:db8:30::2"),
		m("c2", "192.0.2.52", "172.30.0.3"), m("c2", "2001:db8::52", "2001:db8:30::3"),
		m("c4", "192.0.2.54", "172.31.0.2"), m("c4", "2001:db8::54", "2001:db8:31::2"),
		gateway, noEgress,
	}
}

func mapping(endpoint, external, internal string) nat.Mapping {
	return nat.Mapping{Endpoint: endpoint, External: netip.MustParseAddr(external), Internal: netip.MustParseAddr(internal), Egress: true}
}

func prefixes(ss ...string) (ps []netip.Prefix) {
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// New builds the picture, without rules of ours.
func New(t *testing.T, v Variant) *Lab {
	lan := nettest.NewSegment(t)
	l := &Lab{nodes: map[string]*nettest.Node{}, t: t}
	l.Host = lan.Attach("host", "192.0.2.2/24", "2001:db8::2/64")
	l.nodes["host"] = l.Host
	cli := lan.Attach("cli", "192.0.2.9/24", "2001:db8::9/64")
	l.nodes["cli"] = cli
	// The client knows the way to internal addresses; it must not get there.
	cli.Run("ip", "route", "add", "172.16.0.0/12", "via", "192.0.2.2")
	cli.Run("ip", "route", "add", "2001:db8:30::/60", "via", "2001:db8::2")

	l.Host.Sysctl("ipv4.ip_forward", "1")
	l.Host.Sysctl("ipv6.conf.all.forwarding", "1")
	l.Host.Sysctl("ipv4.conf.all.rp_filter", v.rpFilter)
	// Where the module isn't there, frames don't pass iptables either.
	if _, err := os.Stat("/proc/sys/net/bridge"); err == nil || v.bridgeNF == "1" {
		nettest.Require(t, err == nil, "the kernel module br_netfilter")
		l.Host.Sysctl("bridge.bridge-nf-call-iptables", v.bridgeNF)
		l.Host.Sysctl("bridge.bridge-nf-call-ip6tables", v.bridgeNF)
	}
	l.bridge("br0", "172.30.0.", "2001:db8:30::", map[string]string{"c1": "2", "c2": "3", "c3": "4", "c6": "6"})
	l.bridge("br1", "172.31.0.", "2001:db8:31::", map[string]string{"c4": "2", "c5": "5"})
	l.bridge("br2", "172.29.0.", "", map[string]string{"i1": "2", "i2": "3"})
	l.bridge("docker0", "172.17.0.", "2001:db8:17::", map[string]string{"d1": "2"})
	l.bridge("docker1", "172.18.0.", "", map[string]string{"e1": "2"})
	for _, m := range filtered() {
		if m.External.Is4() {
			l.Host.Run("ip", "addr", "add", m.External.String()+"/32", "dev", "eth0", "scope", "host")
		} else {
			l.Host.Run("ip", "addr", "add", m.External.String()+"/128", "dev", "eth0", "nodad", "preferred_lft", "0")
			l.Host.AwaitAsked("eth0", m.External.String()+"/128")
		}
	}
	for _, n := range l.nodes {
		for _, port := range []int{80, 8080, 9999} {
			n.Serve(port)
		}
	}
	l.Load(v.Flavour, v.docker.rules)
	l.Load6(v.Flavour, v.docker.rules6)
	return l
}

func (l *Lab) bridge(name, net4, net6 string, containers map[string]string) {
	l.Host.Bridge(name, net4+"1/24")
	if net6 != "" {
		l.Host.Run("ip", "addr", "add", net6+"1/64", "dev", name, "nodad")
	}
	for c, last := range containers {
		n := l.Host.Container(c, name, net4+last+"/24", net4+"1")
		if net6 != "" {
			n.Run("ip", "addr", "add", net6+last+"/64", "dev", "eth0", "nodad")
			n.AwaitAsked("eth0", net6+last+"/64")
			n.Run("ip", "route", "add", "default", "via", net6+"1")
		}
		l.nodes[c] = n
	}
}

// Load feeds rules to the host's iptables-restore.
func (l *Lab) Load(flavour, rules string) {
	l.t.Helper()
	l.restore("iptables-"+flavour+"-restore", rules)
}

// Load6 is Load for IPv6.
func (l *Lab) Load6(flavour, rules string) {
	l.t.Helper()
	l.restore("ip6tables-"+flavour+"-restore", rules)
}

func (l *Lab) restore(program, rules string) {
	l.t.Helper()
	if rules == "" {
		return
	}
	cmd := l.Host.Command(program, "--noflush")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("%s: %v: %s", program, err, out)
	}
}

// Variants are the labs to be tried with a flavour of iptables.
func Variants(flavour string) (vs []Variant) {
	for _, d := range []docker{docker20(), docker28()} {
		for _, bridgeNF := range []string{"0", "1"} {
			// Once loose, once strict, with either bridgeNF.
			rpFilter := "0"
			if (d.name == docker28().name) == (bridgeNF == "1") {
				rpFilter = "1"
			}
			vs = append(vs, Variant{flavour, d, bridgeNF, rpFilter})
		}
	}
	return vs
}

func (v Variant) String() string {
	return strings.Join([]string{v.docker.name, "bridgenf" + v.bridgeNF, "rpfilter" + v.rpFilter}, "-")
}

// Bare is a lab without Docker's rules.
func Bare() Variant { return Variant{Flavour: "nft", bridgeNF: "0", rpFilter: "0"} }
