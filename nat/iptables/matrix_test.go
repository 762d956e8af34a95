package iptables

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/extip/extip/nat"
)

// A probe is a question and who should answer it, having seen whom: "c1 saw
// 192.0.2.9". An empty want is a question that must stay unanswered.
type probe struct {
	from, network, to string // network: tcp, udp, big (a fragmented datagram) or ping
	want              string
}

const (
	near = 64 // TTL of an answer from the same segment
	past = 63 // from behind one router
)

func ping(ttl int) string { return fmt.Sprintf("ttl %d", ttl) }

// allowed is the traffic that must work.
func allowed() []probe {
	return []probe{
		// In: any port, whoever else publishes it, with the client's address.
		{"cli", "tcp", "192.0.2.51:80", "c1 saw 192.0.2.9"},
		{"cli", "udp", "192.0.2.51:80", "c1 saw 192.0.2.9"},
		{"cli", "tcp", "192.0.2.51:8080", "c1 saw 192.0.2.9"},
		{"cli", "udp", "192.0.2.51:8080", "c1 saw 192.0.2.9"},
		{"cli", "tcp", "192.0.2.54:9999", "c4 saw 192.0.2.9"},
		{"cli", "big", "192.0.2.51:80", "c1 saw 192.0.2.9 send 5000 bytes"},
		{"cli", "ping", "192.0.2.51", ping(past)},
		{"cli", "tcp", "[2001:db8::51]:80", "c1 saw 2001:db8::9"},
		{"cli", "udp", "[2001:db8::54]:80", "c4 saw 2001:db8::9"},
		{"cli", "big", "[2001:db8::51]:80", "c1 saw 2001:db8::9 send 5000 bytes"},

		// Out: from the external address, or as the host.
		{"c1", "tcp", "192.0.2.9:80", "cli saw 192.0.2.51"},
		{"c1", "udp", "192.0.2.9:80", "cli saw 192.0.2.51"},
		{"c1", "ping", "192.0.2.9", ping(past)},
		{"c4", "tcp", "192.0.2.9:80", "cli saw 192.0.2.54"},
		{"c3", "tcp", "192.0.2.9:80", "cli saw 192.0.2.2"},
		{"c3", "udp", "192.0.2.9:80", "cli saw 192.0.2.2"},
		{"c1", "tcp", "[2001:db8::9]:80", "cli saw 2001:db8::51"},
		{"c3", "tcp", "[2001:db8::9]:80", "cli saw 2001:db8::2"},

		// Among containers, by external address: the identity they have outside.
		{"c1", "tcp", "192.0.2.51:80", "c1 saw 192.0.2.51"},
		{"c1", "udp", "192.0.2.51:80", "c1 saw 192.0.2.51"},
		{"c1", "tcp", "192.0.2.52:80", "c2 saw 192.0.2.51"},
		{"c3", "tcp", "192.0.2.52:80", "c2 saw 172.30.0.1"},
		{"c1", "tcp", "192.0.2.54:80", "c4 saw 192.0.2.51"},
		{"c3", "udp", "192.0.2.54:80", "c4 saw 172.31.0.1"},
		{"c1", "tcp", "[2001:db8::51]:80", "c1 saw 2001:db8::51"},
		{"c1", "tcp", "[2001:db8::52]:80", "c2 saw 2001:db8::51"},
		{"c1", "tcp", "[2001:db8::54]:80", "c4 saw 2001:db8::51"},
		{"c1", "tcp", "192.0.2.52:8080", "c2 saw 192.0.2.51"},
		{"c1", "tcp", "172.30.0.4:80", "c3 saw 172.30.0.2"}, // by internal address: no NAT

		// From the host and from Docker's own containers.
		{"host", "tcp", "192.0.2.51:80", "c1 saw 172.30.0.1"},
		{"host", "udp", "192.0.2.51:8080", "c1 saw 172.30.0.1"},
		{"host", "ping", "192.0.2.51", ping(near)},
		{"host", "tcp", "[2001:db8::51]:80", "c1 saw 2001:db8:30::1"},
		{"d1", "tcp", "192.0.2.51:80", "c1 saw 172.30.0.1"},

		// A mapping that hides the client, and one without egress.
		{"cli", "tcp", "192.0.2.55:80", "c5 saw 172.31.0.1"},
		{"cli", "udp", "192.0.2.55:80", "c5 saw 172.31.0.1"},
		{"c1", "tcp", "192.0.2.55:80", "c5 saw 172.31.0.1"},
		{"c5", "tcp", "192.0.2.55:80", "c5 saw 172.31.0.1"},
		{"c5", "tcp", "192.0.2.9:80", "cli saw 192.0.2.55"},
		{"cli", "tcp", "192.0.2.56:80", "c6 saw 192.0.2.9"},
		{"c6", "tcp", "192.0.2.9:80", "cli saw 192.0.2.2"},
		{"c6", "tcp", "192.0.2.56:80", "c6 saw 172.30.0.1"},

		// What is not ours stays as it is.
		{"cli", "tcp", "192.0.2.2:80", "host saw 192.0.2.9"},
		{"cli", "tcp", "192.0.2.2:8080", "d1 saw 192.0.2.9"},
		{"c1", "tcp", "192.0.2.2:8080", "d1 saw 192.0.2.51"},
		{"d1", "tcp", "192.0.2.9:80", "cli saw 192.0.2.2"},
		{"i1", "tcp", "172.29.0.3:80", "i2 saw 172.29.0.2"},
	}
}

// forbidden is the traffic that must not get through.
func forbidden() []probe {
	return []probe{
		{"cli", "tcp", "172.30.0.2:80", ""},
		{"cli", "udp", "172.30.0.2:80", ""},
		{"cli", "ping", "172.30.0.2", ""},
		{"cli", "tcp", "[2001:db8:30::2]:80", ""},
		{"c1", "tcp", "172.31.0.2:80", ""},
		{"c4", "udp", "172.30.0.2:80", ""},
		{"c4", "tcp", "[2001:db8:30::2]:80", ""},
		{"d1", "tcp", "172.30.0.2:80", ""},
		{"e1", "tcp", "172.30.0.2:80", ""},
		{"c1", "tcp", "172.17.0.2:80", ""}, // not published
		{"c1", "udp", "172.18.0.2:80", ""},
		{"c3", "tcp", "172.17.0.2:80", ""},
		{"i1", "tcp", "192.0.2.9:80", ""},
		{"i1", "tcp", "192.0.2.51:80", ""},
		{"cli", "tcp", "172.29.0.2:80", ""},
		{"c1", "tcp", "172.29.0.2:80", ""},
		{"d1", "tcp", "172.29.0.2:80", ""},
	}
}

// ask makes all probes at once: waiting for the answers that do not come is
// most of their time.
func (l *lab) ask(ps []probe) []string {
	answers := make([]string, len(ps))
	var wg sync.WaitGroup
	for i, p := range ps {
		wg.Go(func() {
			from := l.nodes[p.from]
			switch p.network {
			case "ping":
				if ttl := from.Ping(p.to); ttl > 0 {
					answers[i] = ping(ttl)
				}
			case "big":
				answers[i] = from.AskBytes("udp", p.to, 5000)
			default:
				answers[i] = from.Ask(p.network, p.to)
			}
		})
	}
	wg.Wait()
	return answers
}

func (l *lab) check(t *testing.T, what string, ps []probe) {
	t.Helper()
	for i, got := range l.ask(ps) {
		if p := ps[i]; got != p.want {
			t.Errorf("%s: %s → %s %s: got %q, want %q", what, p.from, p.network, p.to, got, p.want)
		}
	}
}

func TestTraffic(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		for _, v := range variants(flavour) {
			t.Run(v.String(), func(t *testing.T) { testTraffic(t, v) })
		}
	})
}

func testTraffic(t *testing.T, v variant) {
	l := newLab(t, v)
	b := open(t, l.host, v.flavour)
	st := nat.State{Networks: labNetworks(), Mappings: labMappings()}
	sync := func() {
		t.Helper()
		if _, err := b.Sync(st); err != nil {
			t.Fatal(err)
		}
	}
	sync()
	l.check(t, "allowed", allowed())
	l.check(t, "forbidden", forbidden())

	l.load(v.flavour, v.docker.later)
	fromLater := probe{"e1", "tcp", "192.0.2.54:80", "c4 saw 172.31.0.1"}
	l.check(t, "allowed, with a later Docker network", append(allowed(), fromLater))
	l.check(t, "forbidden, with a later Docker network", forbidden())

	l.checkProofs(t, v, sync)

	st = nat.State{}
	sync()
	if dump := l.host.Dump(); strings.Contains(dump, "XIP") || strings.Contains(dump, "-m comment") {
		t.Errorf("left after removal:\n%s", dump)
	}
}

// checkProofs shows that the probes above can fail: each is answered by the
// wrong party, or at all, once the rule that it is about is taken away.
func (l *lab) checkProofs(t *testing.T, v variant, sync func()) {
	t.Helper()
	// Behind Docker's rules, its published port takes the external address.
	sync()
	l.load(v.flavour, "*nat\n-D PREROUTING 1\n-A PREROUTING -j XIP-PRE\nCOMMIT\n")
	l.check(t, "with our jump last", []probe{{"cli", "tcp", "192.0.2.51:8080", "d1 saw 192.0.2.9"}})

	// To accept whatever comes from a bridge opens Docker's containers.
	if v.docker.name == docker20().name {
		l.load(v.flavour, "*filter\n-I FORWARD -i br0 -j ACCEPT\nCOMMIT\n")
		l.check(t, "with a careless accept", []probe{{"c1", "tcp", "172.17.0.2:80", "d1 saw 192.0.2.51"}})
		l.load(v.flavour, "*filter\n-D FORWARD -i br0 -j ACCEPT\nCOMMIT\n")
	}

	// Without our drops, and with a filter that passes everything.
	l.load(v.flavour, "*mangle\n-F XIP-ISOLATE\nCOMMIT\n*raw\n-F PREROUTING\nCOMMIT\n*filter\n-I FORWARD -j ACCEPT\nCOMMIT\n")
	l.host.Run("ip6tables-"+v.flavour, "-t", "mangle", "-F", "XIP-ISOLATE")
	for i, answer := range l.ask(forbidden()) {
		if p := forbidden()[i]; answer == "" {
			t.Errorf("unprotected: %s → %s %s: nobody answered, so the probe proves nothing", p.from, p.network, p.to)
		}
	}
	l.load(v.flavour, "*filter\n-D FORWARD -j ACCEPT\nCOMMIT\n")
	sync()
	l.check(t, "repaired", append(forbidden(), probe{"cli", "tcp", "192.0.2.51:8080", "c1 saw 192.0.2.9"}))
}
