package nftables

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// readOn reads the rules of a node.
func readOn(t *testing.T, node *nettest.Node) (rs *Ruleset) {
	t.Helper()
	node.MustDo(func() (err error) {
		rs, err = Read()
		return err
	})
	return rs
}

// What rules of other programs look like.
const foreign = `
table inet fw {
	set good { type ifname; elements = { "br1", "br2" }; }
	set nets { type ipv4_addr; flags interval; elements = { 198.51.100.0/24, 203.0.113.7-203.0.113.9 }; }
	set pairs { type ipv4_addr . inet_proto . inet_service; flags interval; elements = { 192.0.2.0/24 . tcp . 80-90 }; }
	map zones { type ifname : verdict; elements = { "eth0" : goto zone-out, "br3" : jump zone-in }; }
	chain zone-out { ip daddr 172.30.0.5 accept; oifname "br7" return; reject; }
	chain zone-in { meta l4proto tcp tcp dport 22 accept; }
	chain forward {
		type filter hook forward priority 10; policy drop;
		ct state established,related accept
		ct state invalid drop
		ct status dnat accept
		meta nfproto ipv4 ip saddr @nets drop
		ip saddr . meta l4proto . th dport @pairs drop
		meta mark 0x00000007 accept
		fib daddr type local drop
		iifname vmap @zones
		iifname "br*" oifname @good accept
		iifname != "br1" ip daddr 172.16.0.0/12 counter drop
		udp dport { 53, 123 } accept
		limit rate 5/second accept
	}
}
table ip other {
	map to { type ipv4_addr : ipv4_addr; elements = { 192.0.2.51 : 172.30.0.2 }; }
	chain pre { type nat hook prerouting priority dstnat; policy accept; dnat to ip daddr map @to; ip daddr 192.0.2.52 tcp dport 80 dnat to 172.30.0.3:8080; }
	chain post { type nat hook postrouting priority srcnat; policy accept; ip saddr 172.30.0.2 snat to 192.0.2.51; oifname "eth0" masquerade; }
}
`

func TestAsk(t *testing.T) {
	node := newHost(t)
	load(t, node, foreign)
	rs := readOn(t, node)
	addr := netip.MustParseAddr
	iface := func(name string) nat.Interface { return nat.Interface{Name: name} }
	forward := func(in, out, src, dst string, more ...func(*nat.Packet)) nat.Packet {
		p := nat.Packet{In: iface(in), Out: iface(out), Src: addr(src), Dst: addr(dst), Local: func(a netip.Addr) bool { return a == addr("192.0.2.2") }}
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
		want string // the rule that drops; "" if it passes
	}{
		{"policy, but a rule before depends", forward("lo", "lo", "192.0.2.9", "192.0.2.8"), "policy drop?"},
		{"established", forward("lo", "lo", "192.0.2.9", "192.0.2.8", func(p *nat.Packet) { p.Established = true }), ""},
		{"reply", forward("lo", "lo", "192.0.2.9", "192.0.2.8", func(p *nat.Packet) { p.Reply = true }), ""},
		{"translated", forward("lo", "lo", "192.0.2.9", "192.0.2.8", func(p *nat.Packet) { p.DNAT = true }), ""},
		{"in an interval", forward("br1", "br2", "198.51.100.255", "192.0.2.8"), "ip saddr @nets drop"},
		{"at its end", forward("br1", "br2", "203.0.113.9", "192.0.2.8"), "ip saddr @nets drop"},
		{"after it", forward("br1", "br2", "203.0.113.10", "192.0.2.8"), ""},
		{"a concatenation", forward("br1", "br2", "192.0.2.77", "192.0.2.8", port(6, 85)), "ip saddr . meta l4proto . th dport @pairs drop"},
		{"another port", forward("br1", "br2", "192.0.2.77", "192.0.2.8", port(6, 91)), ""},
		{"another protocol", forward("br1", "br2", "192.0.2.77", "192.0.2.8", port(17, 85)), ""},
		{"a mark", forward("lo", "lo", "203.0.113.1", "192.0.2.8", func(p *nat.Packet) { p.Mark = 7 }), ""},
		{"to the host", forward("lo", "lo", "203.0.113.1", "192.0.2.2"), "fib daddr type local drop"},
		{"a zone that rejects", forward("eth0", "br1", "203.0.113.1", "172.30.0.2"), "reject"},
		{"but not this", forward("eth0", "br1", "203.0.113.1", "172.30.0.5"), ""},
		{"gone to, it does not come back", forward("eth0", "br7", "203.0.113.1", "172.30.0.2"), "policy drop"},
		{"jumped to, it does", forward("br3", "br1", "203.0.113.1", "192.0.2.8", port(6, 23)), ""},
		{"a name with a star", forward("br9", "br2", "203.0.113.1", "172.30.0.2"), ""},
		{"another name", forward("eth1", "br2", "203.0.113.1", "172.30.0.2"), `iifname != "br1" ip daddr 172.16.0.0/12 counter drop`},
		{"a port of some", forward("eth1", "eth2", "203.0.113.1", "192.0.2.8", port(17, 123)), ""},
		{"IPv6", forward("br1", "br2", "2001:db8::1", "2001:db8::2"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			for _, r := range rs.Ask(nat.Forward, tt.p) {
				got = r.Rule
				if r.Doubt && tt.want != got {
					got += "?"
				}
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}

	in := rs.Ask(nat.Prerouting, forward("eth0", "", "203.0.113.1", "192.0.2.51"))
	if len(in) != 1 || in[0].Drop || in[0].To != addr("172.30.0.2") || in[0].Rule != "dnat to ip daddr map @to" || in[0].Priority != -100 {
		t.Errorf("in: %+v", in)
	}
	if in := rs.Ask(nat.Prerouting, forward("eth0", "", "203.0.113.1", "192.0.2.52", port(6, 80))); len(in) != 1 || in[0].To != addr("172.30.0.3") {
		t.Errorf("in by port: %+v", in)
	}
	if in := rs.Ask(nat.Prerouting, forward("eth0", "", "203.0.113.1", "192.0.2.52", port(6, 81))); len(in) != 0 {
		t.Errorf("in by another port: %+v", in)
	}
	out := rs.Ask(nat.Postrouting, forward("", "eth0", "172.30.0.2", "203.0.113.1"))
	if len(out) != 1 || out[0].To != addr("192.0.2.51") {
		t.Errorf("out: %+v", out)
	}
	if out := rs.Ask(nat.Postrouting, forward("", "eth0", "172.30.0.3", "203.0.113.1")); len(out) != 1 || out[0].To.IsValid() || out[0].Drop {
		t.Errorf("out, masqueraded: %+v", out)
	}
	for address, want := range map[string]int{"192.0.2.51": 2, "192.0.2.52": 1, "192.0.2.53": 0} {
		named := rs.Names(addr(address))
		if len(named) != want {
			t.Errorf("%s is named by %+v", address, named)
		}
		for _, r := range named {
			node.Run("sh", "-c", r.Undo)
		}
	}
	if named := readOn(t, node).Names(addr("192.0.2.51")); len(named) != 0 {
		t.Errorf("after removing them: %+v", named)
	}
}

// A limit of ours drops a connection that finds its address full, one of
// somebody else's perhaps.
func TestAskLimits(t *testing.T) {
	node := newHost(t)
	b := open(t, node, Config{})
	m := nattest.Limited(nattest.Map4(1, 1), 300, 20)
	if err := b.Add(m); err != nil {
		t.Fatal(err)
	}
	client := netip.MustParseAddr("192.0.2.9")
	ask := func(p nat.Packet) (dropped, doubt bool) {
		rulings := readOn(t, node).Ask(nat.Prerouting, p)
		return len(rulings) == 2 && rulings[0].Drop && rulings[0].Ours, slices.ContainsFunc(rulings, func(r nat.Ruling) bool { return r.Doubt })
	}
	in, out := nat.Packet{Src: client, Dst: m.External}, nat.Packet{Src: m.Internal, Dst: client}
	for _, p := range []nat.Packet{in, out} {
		if dropped, doubt := ask(p); dropped || doubt {
			t.Errorf("to %s: dropped %t, doubt %t", p.Dst, dropped, doubt)
		}
	}
	node.Run("nft", "add element ip extip full_in { 203.0.113.1 timeout 1h }")
	if dropped, _ := ask(in); !dropped {
		t.Error("it isn't dropped where the address is full")
	}
	in.Established = true
	if dropped, _ := ask(in); dropped {
		t.Error("what is connected is dropped")
	}
	load(t, node, `table ip other {
		set some { type ipv4_addr; limit rate over 1/second; elements = { 203.0.113.1 limit rate over 5/second }; }
		chain pre { type filter hook prerouting priority 0; policy drop; ip daddr @some drop; ip daddr 203.0.113.1 counter drop; }
	}`)
	if dropped, doubt := ask(in); dropped || !doubt {
		t.Errorf("by another table's limit: dropped by ours %t, doubt %t", dropped, doubt)
	}
}

// Rules are spelled as nft lists them.
func TestSpell(t *testing.T) {
	node := newHost(t)
	load(t, node, foreign)
	if err := open(t, node, Config{}).Add(nattest.Limited(nattest.Map4(1, 1), 300, 20)); err != nil {
		t.Fatal(err)
	}
	rs := readOn(t, node)
	spelled := map[string]bool{}
	for _, c := range rs.chains {
		for _, r := range c.rules {
			spelled[rs.spell(c, r)] = true
		}
	}
	list := node.Run("nft", "-s", "list", "ruleset")
	rules := 0
	for line := range strings.Lines(list) {
		line = strings.TrimSpace(line)
		if !regexp.MustCompile(`^(ct|ip|meta|fib|iifname|oifname|udp|tcp|dnat|snat|reject|limit)\b`).MatchString(line) ||
			strings.HasPrefix(line, "limit rate over ") || strings.HasPrefix(line, "ct count over ") { // what a set's elements do
			continue
		}
		rules++
		line = strings.ReplaceAll(line, "limit rate 5/second", "<limit>")
		if !spelled[line] {
			t.Errorf("not spelled like that: %s", line)
		}
	}
	if rules < 20 {
		t.Errorf("only %d rules in\n%s", rules, list)
	}
	if t.Failed() {
		for s := range spelled {
			t.Log(s)
		}
	}
}
