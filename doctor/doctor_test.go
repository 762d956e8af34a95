package doctor

import (
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// A breakage is a way in which hosts are unfit.
type breakage struct {
	name   string
	breaks func(*lab)
	// check is the one that finds it, and seen a part of what it says.
	check, seen string
	level       Level
	// fails names questions that aren't answered meanwhile.
	fails []string
	// about is what to trace, and stops where that ends; "" if it goes through.
	about Question
	stops string
	// mend is what the remedy can't put back, and after what it need not.
	mend, after func(*lab)
	// again says that there is more to be found once the remedy was taken.
	again bool
}

func to(addr string) Question { return Question{To: netip.MustParseAddr(addr)} }

func from(addr, by string) Question {
	return Question{To: netip.MustParseAddr(addr), From: netip.MustParseAddr(by)}
}

func sh(script string) func(*lab) {
	return func(l *lab) { l.host.Run("sh", "-c", strings.ReplaceAll(script, "iptables ", l.program+" ")) }
}

func breakages(v variant) []breakage {
	in, in6, wan, self := to("192.0.2.51"), to("2001:db8::51"), from("203.0.113.52", "198.51.100.9"), from("192.0.2.51", "172.30.1.2")
	port80 := in
	port80.Port, port80.Proto = 80, 6 // tcp
	var record Subject
	mapping := "nft delete element ip extip ext2ctr { 192.0.2.51 }"
	other := "iptables-legacy -"
	if v.flavour == "legacy" {
		other = "iptables-nft -"
	}
	if v.backend == "iptables" {
		mapping = "iptables -t nat -F XIP-D-33"
	}
	return []breakage{
		{name: "ip_forward", breaks: sh("sysctl -w net.ipv4.ip_forward=1; sysctl -w net.ipv4.ip_forward=0"), check: "forwarding",
			seen:  "net.ipv4.conf.eth0.forwarding, net.ipv4.conf.eth1.forwarding, net.ipv4.conf.xip-n1.forwarding and net.ipv4.conf.xip-n2.forwarding are 0",
			fails: []string{"in", "wan"}, about: in, stops: stepRoute},
		{name: "forwarding of one interface", breaks: sh("sysctl -w net.ipv4.conf.eth0.forwarding=0"), check: "forwarding", seen: "net.ipv4.conf.eth0.forwarding is 0",
			fails: []string{"in"}, about: in, stops: stepRoute},
		{name: "IPv6 forwarding", breaks: sh("sysctl -w net.ipv6.conf.eth0.force_forwarding=0 || sysctl -w net.ipv6.conf.all.forwarding=0"), check: "forwarding", seen: "net.ipv6.conf",
			fails: []string{"in6"}, about: in6, stops: stepRoute},
		{name: "accept_ra", breaks: sh("sysctl -w net.ipv6.conf.eth0.forwarding=1; sysctl -w net.ipv6.conf.eth0.accept_ra=1"), check: "router", seen: "accept_ra is 1", level: Warn, about: in6},
		{name: "our accepts gone", breaks: sh("iptables -F EXTIP-FORWARD"), check: "filter", seen: "FORWARD policy DROP",
			fails: []string{"in", "out", "wan"}, about: in, stops: stepForward},
		{name: "our jump gone", breaks: sh("iptables -D FORWARD -m comment --comment extip -j EXTIP-FORWARD"), check: "filter", seen: "FORWARD policy DROP",
			fails: []string{"in", "out", "wan"}, about: in, stops: stepForward},
		{name: "a reject before our accepts", breaks: sh("iptables -I FORWARD -o xip-n1 -j REJECT"), check: "filter", seen: "-j REJECT",
			fails: []string{"in"}, about: in, stops: stepForward},
		{name: "DOCKER-USER drops", breaks: sh("iptables -N DOCKER-USER; iptables -I FORWARD -j DOCKER-USER; iptables -A DOCKER-USER -i xip-n1 -j DROP"),
			check: "filter", seen: "-i xip-n1 -j DROP", fails: []string{"in", "out"}, about: in, stops: stepAnswer,
			after: sh("iptables -D FORWARD -j DOCKER-USER; iptables -F DOCKER-USER; iptables -X DOCKER-USER")},
		{name: "the other iptables drops", breaks: sh(other + "P FORWARD DROP"), check: "filter", seen: "FORWARD policy DROP",
			fails: []string{"in", "out", "wan"}, about: in, stops: stepForward, after: sh(other + "P FORWARD ACCEPT;" + other + "F FORWARD")},
		{name: "a firewall of nftables by policy",
			breaks: sh(`nft 'table inet fw { chain forward { type filter hook forward priority 10; policy drop; ct state established,related accept; iifname "eth9" accept; }; }'`),
			check:  "filter", seen: `nft's inet fw forward: "policy drop"`, fails: []string{"in", "in6", "out", "wan"}, about: in, stops: stepForward,
			after: sh("nft delete table inet fw")},
		{name: "a firewall of nftables by a rule",
			breaks: sh(`nft 'table ip fw { set inside { type ifname; elements = { "xip-n1", "xip-n9" }; }; chain deep { counter drop; }; chain forward { type filter hook forward priority -5; oifname @inside ct state new goto deep; }; }'`),
			check:  "filter", seen: `nft's ip fw deep: "counter drop"`, fails: []string{"in"}, about: in, stops: stepForward,
			after: sh("nft delete table ip fw")},
		{name: "a drop in raw", breaks: sh("iptables -t raw -A PREROUTING -d 192.0.2.51 -j DROP"), check: "filter", seen: "-t raw",
			fails: []string{"in"}, about: in, stops: stepNAT},
		{name: "strict rp_filter", breaks: sh("sysctl -w net.ipv4.conf.eth1.rp_filter=1"), check: "source", seen: "rp_filter is 1 on eth1",
			fails: []string{"wan"}, about: wan, stops: stepSource},
		{name: "hairpin mode off", breaks: func(l *lab) {
			l.host.Sysctl("bridge.bridge-nf-call-iptables", "1")
			l.host.Run("bridge", "link", "set", "dev", "xipc1", "hairpin", "off")
		}, check: "hairpin", seen: "xipc1 is without hairpin mode", fails: []string{"self"}, about: self, stops: stepPort,
			after: func(l *lab) { l.host.Sysctl("bridge.bridge-nf-call-iptables", "0") }},
		{name: "mapping gone", breaks: sh(mapping), check: "mapping", seen: "192.0.2.51 is not translated",
			fails: []string{"in"}, about: in, stops: stepNAT},
		{name: "another DNAT before ours", breaks: sh(`nft 'table ip other { chain pre { type nat hook prerouting priority -150; ip daddr 192.0.2.51 dnat to 172.30.2.2; }; }'`),
			check: "owner", seen: "takes 192.0.2.51 before extip", about: in, stops: stepNAT, fails: []string{"in"},
			after: sh("nft delete table ip other")},
		{name: "another DNAT before ours, of a port", breaks: sh(`nft 'table ip other { chain pre { type nat hook prerouting priority -150; ip daddr 192.0.2.51 tcp dport 80 dnat to 172.30.2.2; }; }'`),
			check: "owner", seen: "takes some of what is for 192.0.2.51 before extip", about: port80, stops: stepNAT, fails: []string{"in"},
			after: sh("nft delete table ip other")},
		{name: "another SNAT before ours", breaks: sh(`nft 'table ip other { chain post { type nat hook postrouting priority 50; oifname "eth0" masquerade; }; }'`),
			check: "owner", seen: "takes what 172.30.1.2 sends before extip", fails: []string{"out"}, about: in,
			after: sh("nft delete table ip other")},
		{name: "another DNAT after ours", breaks: sh("iptables -t nat -A PREROUTING -d 192.0.2.51/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.30.2.2"),
			check: "owner", seen: "translates 192.0.2.51, too", level: Warn, about: in},
		{name: "another host with the address", breaks: func(l *lab) {
			record = l.subject
			other := l.lan.Attach("other", "192.0.2.51/24")
			other.Serve(80)
			l.others++
		}, check: "conflict", seen: "192.0.2.51 is used by", about: in, stops: stepAlias,
			mend: func(l *lab) {
				l.lan.Switch().Run("ip", "link", "del", "port3")
				l.client.Run("ip", "neigh", "flush", "all")
				l.others--
				l.subject = record
				l.reconcile()
			}},
		{name: "parent down", breaks: sh("ip link set eth1 down"), check: "parent", seen: "eth1 is switched off", fails: []string{"wan"}, about: wan, stops: stepParent,
			mend: func(l *lab) {
				l.host.Run("ip", "route", "replace", "default", "via", "203.0.113.9", "metric", "200")
				l.reconcile()
			}},
		{name: "parent renamed", breaks: sh("ip link set eth0 name eth5"), check: "parent", seen: "its address 192.0.2.51 is on eth5", about: in, stops: stepParent, again: true},
		{name: "connections nearly full", breaks: func(l *lab) { l.write("netfilter/nf_conntrack_count", "850") }, check: "conntrack", seen: "850 of 1000", level: Warn, about: in,
			after: func(l *lab) { l.settingsBack() }},
		{name: "connections full", breaks: func(l *lab) { l.write("netfilter/nf_conntrack_count", "1000") }, check: "conntrack", seen: "1000 of 1000", about: in, stops: stepNAT,
			after: func(l *lab) { l.settingsBack() }},
		{name: "connections nearly full of one address", breaks: func(l *lab) {
			l.client.Flows("192.0.2.51:80", 40, 40)
			l.write("netfilter/nf_conntrack_count", "180")
			l.write("netfilter/nf_conntrack_max", "200")
		}, check: "conntrack", seen: "180 of 200 connections are tracked, of those by 192.0.2.51 (c1) ", level: Warn, about: in,
			after: func(l *lab) { l.settingsBack() }},
		{name: "an address at its limit", breaks: func(l *lab) {
			l.limit(in.To, nat.Limit{Connections: 150})
			l.client.Flows("192.0.2.51:80", 160, 100)
		}, check: "limit", seen: "192.0.2.51 has ", level: Warn, about: in, fails: []string{"in"},
			after: func(l *lab) { l.limit(in.To, nat.Limit{}) }},
		{name: "a container at its limit", breaks: func(l *lab) {
			l.limit(in.To, nat.Limit{Connections: 300})
			l.c1.Flows("192.0.2.9:80", 310, 200)
		}, check: "limit", seen: "the container of 192.0.2.51 has opened 3", level: Warn, about: in, fails: []string{"out"},
			after: func(l *lab) { l.limit(in.To, nat.Limit{}) }},
		{name: "arp_ignore", breaks: sh("sysctl -w net.ipv4.conf.eth0.arp_ignore=8; ip neigh flush all"), check: "arp", seen: "arp_ignore is 8", about: in, stops: stepAlias, fails: []string{"in"}},
		{name: "alias gone", breaks: sh("ip addr del 192.0.2.51/32 dev eth0"), check: "alias", seen: "192.0.2.51 is not on eth0", about: in, stops: stepAlias, fails: []string{"in"}},
		{name: "alias by another's hand", breaks: sh("ip addr del 192.0.2.51/32 dev eth0; ip addr add 192.0.2.51/24 dev eth0"), check: "alias", seen: "by somebody else's hand", level: Warn, about: in},
		{name: "alias elsewhere, too", breaks: sh("ip addr add 192.0.2.51/32 dev eth1"), check: "alias", seen: "192.0.2.51 is on eth1", about: in},
		{name: "bridge gone", breaks: sh("ip link del xip-n1"), check: "bridge", seen: "there is no bridge xip-n1", about: in, stops: stepRoute, fails: []string{"in"}},
		{name: "bridge down", breaks: sh("ip link set xip-n1 down"), check: "bridge", seen: "the bridge xip-n1 is switched off", about: in, stops: stepRoute, fails: []string{"in"}},
		{name: "container's end down", breaks: func(l *lab) {
			l.c2.Run("ip", "link", "set", "eth0", "down")
			l.script("docker", "exec nsenter --net="+l.c2.NetNS+" ip link set eth0 up")
		}, check: "bridge", seen: "xipc2 is without a carrier", about: wan, stops: stepPort, fails: []string{"wan"},
			mend: func(l *lab) {
				l.host.AwaitPort("xipc2")
				l.c2.Run("ip", "route", "add", "default", "via", "172.30.2.1")
			}},
		{name: "port off its bridge", breaks: sh("ip link set xipc1 nomaster"), check: "bridge", seen: "xipc1 is not a port", about: in, stops: stepPort, fails: []string{"in"}},
	}
}

// TestBreakages: the lab is broken in each of the ways that doctor knows. It
// names that cause and no other, its remedy, run as printed, repairs it, and a
// packet is followed exactly as far as it gets.
func TestBreakages(t *testing.T) {
	for _, v := range []variant{{"nftables", "nft"}, {"nftables", "legacy"}, {"iptables", "nft"}, {"iptables", "legacy"}} {
		t.Run(v.backend+"-beside-iptables-"+v.flavour, func(t *testing.T) {
			t.Parallel() // most of the time is waiting for answers that don't come
			nettest.RequireTool(t, "iptables-"+v.flavour)
			l := newLab(t, v)
			l.healthy(t)
			if bad := l.examine(l.doctor); len(bad) > 0 {
				t.Errorf("with all neighbours asked:\n%s", Report(bad))
			}
			for _, b := range breakages(v) {
				t.Run(b.name, func(t *testing.T) { l.suffer(t, b) })
			}
		})
	}
}

// healthy checks that all works, and that doctor and trace think so, too.
func (l *lab) healthy(t *testing.T) {
	t.Helper()
	var wg sync.WaitGroup
	for _, q := range l.questions() {
		wg.Go(func() {
			// A bridge may take a moment to hear of a port that is up.
			for end := time.Now().Add(time.Minute); !q.ok(); {
				if time.Now().After(end) {
					t.Errorf("%s: not answered as it should be, %q", q, q.want)
					return
				}
			}
		})
	}
	wg.Wait()
	if bad := l.examine(l.patient()); len(bad) > 0 {
		t.Errorf("nothing is wrong, but doctor says:\n%s", Report(bad))
	}
	for _, q := range []Question{to("192.0.2.51"), to("2001:db8::51"), from("203.0.113.52", "198.51.100.9"), from("192.0.2.51", "172.30.1.2")} {
		if steps := l.trace(q); !through(steps) {
			t.Errorf("nothing is wrong, but the trace ends:\n%s", Text(steps))
		}
	}
}

func through(steps []Step) bool { return len(steps) > 0 && steps[len(steps)-1].OK }

func (l *lab) suffer(t *testing.T, b breakage) {
	b.breaks(l)
	l.client.Run("ip", "neigh", "flush", "all")
	var wg sync.WaitGroup
	for _, name := range b.fails {
		wg.Go(func() {
			if q := l.questions()[name]; q.ok() {
				t.Errorf("%s: still answered, so the breakage is none", q)
			}
		})
	}
	wg.Wait()
	steps := l.trace(b.about)
	t.Logf("\n%s", Text(steps))
	if last := steps[len(steps)-1]; b.stops == "" && !last.OK || b.stops != "" && (last.OK || last.Step != b.stops) {
		t.Errorf("trace should end at %q:\n%s", b.stops, Text(steps))
	}
	bad := l.examine(l.patient())
	t.Logf("\n%s", Report(bad))
	level := b.level
	if level == "" {
		level = Fail
	}
	for _, f := range bad {
		if f.Check != b.check || f.Level != level || !strings.Contains(f.Seen, b.seen) {
			t.Errorf("not expected: %s", Report([]Finding{f}))
		}
		if f.Remedy == "" {
			t.Errorf("no remedy: %s", Report([]Finding{f}))
		} else {
			l.remedy(f.Remedy)
		}
	}
	if len(bad) == 0 {
		t.Errorf("not found")
	}
	if b.again {
		for _, f := range l.examine(l.patient()) {
			t.Logf("then:\n%s", Report([]Finding{f}))
			l.remedy(f.Remedy)
		}
	}
	if b.mend != nil {
		if bad := l.examine(l.patient()); len(bad) > 0 {
			t.Errorf("after the remedy:\n%s", Report(bad))
		}
		b.mend(l)
	}
	if b.after != nil {
		defer b.after(l)
	}
	l.healthy(t)
}

func (l *lab) settingsBack() {
	l.write("netfilter/nf_conntrack_count", "10")
	l.write("netfilter/nf_conntrack_max", "1000")
}
