package iptables

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

const foreign = `*raw
-A PREROUTING -d 192.0.2.60/32 -j DROP
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/24 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.9/32 -o eth0 -j SNAT --to-source 192.0.2.61
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A DOCKER -d 192.0.2.61/32 -m comment --comment "it's \"$(exit 3)\"" -j DNAT --to-destination 172.17.0.3
COMMIT
*filter
:FORWARD DROP [0:0]
:USER - [0:0]
:deep - [0:0]
-A FORWARD -j USER
-A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br0 -m conntrack --ctstate DNAT -j ACCEPT
-A FORWARD -i br+ ! -o br+ -m comment --comment "a \"quoted\" -j DROP" -j ACCEPT
-A FORWARD -i eth1 -g deep
-A FORWARD -i eth2 -p udp -m multiport --dports 53,100:200 -j ACCEPT
-A FORWARD -i eth3 -m mark --mark 0x7/0xff -j ACCEPT
-A FORWARD -i eth4 -m limit --limit 5/sec -j ACCEPT
-A USER -s 198.51.100.0/24 -j REJECT --reject-with icmp-port-unreachable
-A USER -d 0.0.0.48/0.0.0.240 -j RETURN
-A USER -d 172.30.0.99/32 -j DROP
-A deep -d 172.30.0.7/32 -j ACCEPT
COMMIT
`

// What a limit of ours drops, it drops for a moment.
func TestAskLimits(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		node := nettest.NewNode(t, "host")
		m := nattest.Limited(nattest.Map4(1, 1), 300, 20)
		if err := open(t, node, flavour).Add(m); err != nil {
			t.Fatal(err)
		}
		node.MustDo(func() error {
			rs, err := Read("iptables-" + flavour)
			if err != nil {
				return err
			}
			for _, r := range rs.Ask(nat.Prerouting, nat.Packet{Src: netip.MustParseAddr("192.0.2.9"), Dst: m.External}) {
				if r.Drop || r.Doubt || r.To != m.Internal {
					t.Errorf("%+v", r)
				}
			}
			return nil
		})
	})
}

func TestAsk(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		node := nettest.NewNode(t, "host")
		cmd := node.Command("iptables-"+flavour+"-restore", "--noflush")
		cmd.Stdin = strings.NewReader(foreign)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		read := func() (rs *Ruleset) {
			node.MustDo(func() (err error) {
				rs, err = Read("iptables-" + flavour)
				return err
			})
			return rs
		}
		rs := read()
		addr := netip.MustParseAddr
		packet := func(in, out, src, dst string, more ...func(*nat.Packet)) nat.Packet {
			p := nat.Packet{In: nat.Interface{Name: in}, Out: nat.Interface{Name: out}, Src: addr(src), Dst: addr(dst),
				Local: func(a netip.Addr) bool { return slices.Contains([]string{"192.0.2.2", "192.0.2.61"}, a.String()) }}
			for _, m := range more {
				m(&p)
			}
			return p
		}
		port := func(proto uint8, port uint16) func(*nat.Packet) {
			return func(p *nat.Packet) { p.Proto, p.Port = proto, port }
		}
		for _, tt := range []struct {
			name string
			p    nat.Packet
			want string
		}{
			{"policy", packet("eth0", "br0", "192.0.2.9", "172.30.0.2"), "policy DROP"},
			{"translated", packet("eth0", "br0", "192.0.2.9", "172.30.0.2", func(p *nat.Packet) { p.DNAT = true }), ""},
			{"reply", packet("eth0", "br0", "192.0.2.9", "172.30.0.2", func(p *nat.Packet) { p.Reply = true }), ""},
			{"a plus", packet("br1", "eth0", "192.0.2.9", "172.30.0.2"), ""},
			{"not a plus", packet("br1", "br2", "192.0.2.9", "172.30.0.2"), "policy DROP"},
			{"a prefix", packet("br1", "eth0", "198.51.100.7", "172.30.0.2"), "-A USER -s 198.51.100.0/24 -j REJECT --reject-with icmp-port-unreachable"},
			{"a returning mask", packet("br1", "eth0", "192.0.2.9", "172.30.0.51"), ""},
			{"one address", packet("br1", "eth0", "192.0.2.9", "172.30.0.99"), "-A USER -d 172.30.0.99/32 -j DROP"},
			{"gone to, accepted", packet("eth1", "eth0", "192.0.2.9", "172.30.0.7"), ""},
			{"gone to, it does not come back", packet("eth1", "eth0", "192.0.2.9", "172.30.0.8"), "policy DROP"},
			{"ports", packet("eth2", "eth0", "192.0.2.9", "172.30.0.8", port(17, 150)), ""},
			{"other ports", packet("eth2", "eth0", "192.0.2.9", "172.30.0.8", port(17, 201)), "policy DROP"},
			{"other protocols", packet("eth2", "eth0", "192.0.2.9", "172.30.0.8", port(6, 53)), "policy DROP"},
			{"any port", packet("eth2", "eth0", "192.0.2.9", "172.30.0.8"), "policy DROP?"},
			{"a mark", packet("eth3", "eth0", "192.0.2.9", "172.30.0.8", func(p *nat.Packet) { p.Mark = 0x107 }), ""},
			{"another mark", packet("eth3", "eth0", "192.0.2.9", "172.30.0.8", func(p *nat.Packet) { p.Mark = 8 }), "policy DROP"},
			{"a limit", packet("eth4", "eth0", "192.0.2.9", "172.30.0.8"), "policy DROP?"},
			{"IPv6", packet("eth0", "br0", "2001:db8::1", "2001:db8::2"), ""},
		} {
			got := ""
			for _, r := range rs.Ask(nat.Forward, tt.p) {
				if got = r.Rule; r.Doubt {
					got += "?"
				}
			}
			if got != tt.want {
				t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
			}
		}
		for _, tt := range []struct {
			name string
			hook nat.Hook
			p    nat.Packet
			want string // the new address, "host", "drop", or "" if nothing is decided
		}{
			{"a published port", nat.Prerouting, packet("eth0", "", "192.0.2.9", "192.0.2.2", port(6, 8080)), "172.17.0.2"},
			{"another port", nat.Prerouting, packet("eth0", "", "192.0.2.9", "192.0.2.2", port(6, 8081)), ""},
			{"an address", nat.Prerouting, packet("eth0", "", "192.0.2.9", "192.0.2.61", port(6, 22)), "172.17.0.3"},
			{"elsewhere", nat.Prerouting, packet("eth0", "", "192.0.2.9", "192.0.2.3", port(6, 8080)), ""},
			{"raw", nat.Prerouting, packet("eth0", "", "192.0.2.9", "192.0.2.60", port(6, 8080)), "drop"},
			{"masquerade", nat.Postrouting, packet("", "eth0", "172.17.0.3", "192.0.2.9"), "host"},
			{"not that", nat.Postrouting, packet("", "docker0", "172.17.0.3", "192.0.2.9"), ""},
		} {
			got := ""
			for _, r := range rs.Ask(tt.hook, tt.p) {
				switch got = r.To.String(); {
				case r.Drop:
					got = "drop"
				case !r.To.IsValid():
					got = "host"
				}
			}
			if got != tt.want {
				t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
			}
		}
		named := rs.Names(addr("192.0.2.61"))
		if len(named) != 2 {
			t.Errorf("192.0.2.61 is named by %+v", named)
		}
		for _, r := range named {
			node.Run("sh", "-c", r.Undo)
		}
		if named := read().Names(addr("192.0.2.61")); len(named) != 0 {
			t.Errorf("after removing them: %+v", named)
		}
	})
}
