package iptables

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// A lab is a host with two extip networks, an internal one, and Docker's own
// networks, beside a client on its LAN. Everybody serves the same ports, the
// host too, so that a packet that ends up in the wrong place is answered by
// name.
//
//	cli 192.0.2.9 ─── host 192.0.2.2 ┬ br0 172.30.0.1      c1 c2 c3 c6
//	                                 ├ br1 172.31.0.1      c4 c5
//	                                 ├ br2 172.29.0.1      i1 i2   internal
//	                                 ├ docker0 172.17.0.1  d1      publishes 8080
//	                                 └ docker1 172.18.0.1  e1      made after our rules
type lab struct {
	host  *nettest.Node
	nodes map[string]*nettest.Node
}

type variant struct {
	flavour string
	docker  docker
	// bridgeNF has frames within a bridge pass iptables too, as Docker
	// asks for with icc=false or userland-proxy=false.
	bridgeNF string
	rpFilter string
}

func labNetworks() []nat.Network {
	return []nat.Network{
		{ID: "n0", Bridge: "br0", Parent: "eth0", Subnets: prefixes("172.30.0.0/24", "2001:db8:30::/64")},
		{ID: "n1", Bridge: "br1", Parent: "eth0", Subnets: prefixes("172.31.0.0/24", "2001:db8:31::/64")},
		{ID: "n2", Bridge: "br2", Internal: true, Subnets: prefixes("172.29.0.0/24")},
	}
}

func labMappings() []nat.Mapping {
	m := func(endpoint, external, internal string) nat.Mapping {
		return nat.Mapping{Endpoint: endpoint, External: netip.MustParseAddr(external), Internal: netip.MustParseAddr(internal), Egress: true}
	}
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

func prefixes(ss ...string) (ps []netip.Prefix) {
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// newLab builds the picture, without rules of ours.
func newLab(t *testing.T, v variant) *lab {
	lan := nettest.NewSegment(t)
	l := &lab{nodes: map[string]*nettest.Node{}}
	l.host = lan.Attach("host", "192.0.2.2/24", "2001:db8::2/64")
	l.nodes["host"] = l.host
	cli := lan.Attach("cli", "192.0.2.9/24", "2001:db8::9/64")
	l.nodes["cli"] = cli
	// The client knows the way to internal addresses; it must not get there.
	cli.Run("ip", "route", "add", "172.16.0.0/12", "via", "192.0.2.2")
	cli.Run("ip", "route", "add", "2001:db8:30::/60", "via", "2001:db8::2")

	l.host.Sysctl("ipv4.ip_forward", "1")
	l.host.Sysctl("ipv6.conf.all.forwarding", "1")
	l.host.Sysctl("ipv4.conf.all.rp_filter", v.rpFilter)
	// Where the module isn't there, frames don't pass iptables either.
	if _, err := os.Stat("/proc/sys/net/bridge"); err == nil || v.bridgeNF == "1" {
		nettest.Require(t, err == nil, "the kernel module br_netfilter")
		l.host.Sysctl("bridge.bridge-nf-call-iptables", v.bridgeNF)
		l.host.Sysctl("bridge.bridge-nf-call-ip6tables", v.bridgeNF)
	}
	l.bridge("br0", "172.30.0.", "2001:db8:30::", map[string]string{"c1": "2", "c2": "3", "c3": "4", "c6": "6"})
	l.bridge("br1", "172.31.0.", "2001:db8:31::", map[string]string{"c4": "2", "c5": "5"})
	l.bridge("br2", "172.29.0.", "", map[string]string{"i1": "2", "i2": "3"})
	l.bridge("docker0", "172.17.0.", "", map[string]string{"d1": "2"})
	l.bridge("docker1", "172.18.0.", "", map[string]string{"e1": "2"})
	for _, m := range labMappings() {
		if m.External.Is4() {
			l.host.Run("ip", "addr", "add", m.External.String()+"/32", "dev", "eth0", "scope", "host")
		} else {
			l.host.Run("ip", "addr", "add", m.External.String()+"/128", "dev", "eth0", "nodad", "preferred_lft", "0")
		}
	}
	for _, n := range l.nodes {
		for _, port := range []int{80, 8080, 9999} {
			n.Serve(port)
		}
	}
	l.load(v.flavour, v.docker.rules)
	return l
}

func (l *lab) bridge(name, net4, net6 string, containers map[string]string) {
	l.host.Bridge(name, net4+"1/24")
	if net6 != "" {
		l.host.Run("ip", "addr", "add", net6+"1/64", "dev", name, "nodad")
	}
	for c, last := range containers {
		n := l.host.Container(c, name, net4+last+"/24", net4+"1")
		if net6 != "" {
			n.Run("ip", "addr", "add", net6+last+"/64", "dev", "eth0", "nodad")
			n.Run("ip", "route", "add", "default", "via", net6+"1")
		}
		l.nodes[c] = n
	}
}

// load feeds rules to the host's iptables-restore.
func (l *lab) load(flavour, rules string) {
	l.host.MustDo(func() error {
		_, err := run(rules, "iptables-"+flavour+"-restore", "--noflush")
		return err
	})
}

// A docker is the rules that an engine of some version writes. later is what
// it does when a network is made after ours.
type docker struct{ name, rules, later string }

// Both versions publish with the same rules in nat, and masquerade.
const dockerNat = `*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-I POSTROUTING -s 172.17.0.0/24 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 8080 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:8080
COMMIT
`

// dockerNatLater gives a second network its place before ours.
const dockerNatLater = `*nat
-I POSTROUTING -s 172.18.0.0/24 ! -o docker1 -j MASQUERADE
-I DOCKER -i docker1 -j RETURN
COMMIT
`

func docker20() docker {
	return docker{
		name: "docker20.10",
		rules: dockerNat + `*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 8080 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
`,
		later: dockerNatLater + `*filter
-I FORWARD -i docker1 -o docker1 -j ACCEPT
-I FORWARD -i docker1 ! -o docker1 -j ACCEPT
-I FORWARD -o docker1 -j DOCKER
-I FORWARD -o docker1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-D FORWARD -j DOCKER-ISOLATION-STAGE-1
-I FORWARD -j DOCKER-ISOLATION-STAGE-1
-D FORWARD -j DOCKER-USER
-I FORWARD -j DOCKER-USER
-I DOCKER-ISOLATION-STAGE-1 -i docker1 ! -o docker1 -j DOCKER-ISOLATION-STAGE-2
-I DOCKER-ISOLATION-STAGE-2 -o docker1 -j DROP
COMMIT
`,
	}
}

func docker28() docker {
	return docker{
		name: "docker28",
		rules: dockerNat + `*raw
-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-INTERNAL - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 8080 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-INTERNAL
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
COMMIT
`,
		later: dockerNatLater + `*filter
-A DOCKER ! -i docker1 -o docker1 -j DROP
-A DOCKER-BRIDGE -o docker1 -j DOCKER
-A DOCKER-CT -o docker1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -i docker1 -j ACCEPT
-D FORWARD -j DOCKER-FORWARD
-I FORWARD -j DOCKER-FORWARD
-D FORWARD -j DOCKER-USER
-I FORWARD -j DOCKER-USER
COMMIT
`,
	}
}

func variants(flavour string) (vs []variant) {
	for _, d := range []docker{docker20(), docker28()} {
		for _, bridgeNF := range []string{"0", "1"} {
			// Once loose, once strict, with either bridgeNF.
			rpFilter := "0"
			if (d.name == docker28().name) == (bridgeNF == "1") {
				rpFilter = "1"
			}
			vs = append(vs, variant{flavour, d, bridgeNF, rpFilter})
		}
	}
	return vs
}

func (v variant) String() string {
	return strings.Join([]string{v.docker.name, "bridgenf" + v.bridgeNF, "rpfilter" + v.rpFilter}, "-")
}
