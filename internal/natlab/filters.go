package natlab

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/extip/extip/nat"
)

const (
	tcp = 6 // IANA's protocol numbers
	udp = 17
)

func icmp(external string) nat.Ports {
	if netip.MustParseAddr(external).Is6() {
		return nat.Ports{Proto: 58}
	}
	return nat.Ports{Proto: 1}
}

func port(proto uint8, first, last uint16) nat.Ports {
	return nat.Ports{Proto: proto, First: first, Last: last}
}

// filtered is the lab's mappings with filters: of ports, of clients, of both,
// and two of one container that differ.
//
//	.51 c1  tcp/80-81, icmp         .54 c4  no filter
//	.57 c1  udp/9999, rejects       .55 c5  tcp/80, hides clients
//	.52 c2  from cli                .56 c6  tcp/80 from containers
func filtered() []nat.Mapping {
	ms := mappings()
	second4, second6 := mapping("c1", "192.0.2.57", "172.30.0.2"), mapping("c1", "2001:db8::57", "2001:db8:30::2")
	second4.Egress, second6.Egress = false, false
	ms = append(ms, second4, second6)
	for i, m := range ms {
		ms[i].Filter = map[string]*nat.Filter{
			"192.0.2.51":   {Ports: []nat.Ports{port(tcp, 80, 81), icmp("192.0.2.51")}},
			"2001:db8::51": {Ports: []nat.Ports{port(tcp, 80, 81), icmp("2001:db8::51")}},
			"192.0.2.57":   {Ports: []nat.Ports{port(udp, 9999, 9999)}, Reject: true},
			"2001:db8::57": {Ports: []nat.Ports{port(udp, 9999, 9999)}, Reject: true},
			"192.0.2.52":   {Allow: prefixes("192.0.2.9/32", "198.51.100.0/24")},
			"2001:db8::52": {Allow: prefixes("2001:db8::8/125")},
			"192.0.2.55":   {Ports: []nat.Ports{port(tcp, 80, 80)}},
			"192.0.2.56":   {Ports: []nat.Ports{port(tcp, 80, 80)}, Allow: prefixes("172.16.0.0/12")},
		}[m.External.String()]
	}
	return ms
}

// FilterState is the lab's networks and mappings, with filters.
func FilterState() nat.State { return nat.State{Networks: networks(), Mappings: filtered()} }

// FilterAllowed is what the filters let pass.
func FilterAllowed() []Probe {
	return []Probe{
		{"cli", "tcp", "192.0.2.51:80", "c1 saw 192.0.2.9"},
		{"cli", "ping", "192.0.2.51", ping(past)},
		{"cli", "udp", "192.0.2.57:9999", "c1 saw 192.0.2.9"},
		{"cli", "big", "192.0.2.57:9999", "c1 saw 192.0.2.9 send 5000 bytes"},
		{"cli", "tcp", "192.0.2.52:8080", "c2 saw 192.0.2.9"},
		{"cli", "big", "192.0.2.52:80", "c2 saw 192.0.2.9 send 5000 bytes"},
		{"cli", "tcp", "192.0.2.55:80", "c5 saw 172.31.0.1"},
		{"cli", "udp", "192.0.2.54:8080", "c4 saw 192.0.2.9"},
		{"cli", "tcp", "[2001:db8::51]:80", "c1 saw 2001:db8::9"},
		{"cli", "ping", "2001:db8::51", ping(past)},
		{"cli", "udp", "[2001:db8::57]:9999", "c1 saw 2001:db8::9"},
		{"cli", "big", "[2001:db8::57]:9999", "c1 saw 2001:db8::9 send 5000 bytes"},
		{"cli", "big", "[2001:db8::52]:80", "c2 saw 2001:db8::9 send 5000 bytes"},
		// From containers, and from the host, which isn't filtered.
		{"c1", "tcp", "192.0.2.51:80", "c1 saw 192.0.2.51"},
		{"c3", "tcp", "192.0.2.51:80", "c1 saw 172.30.0.1"},
		{"c4", "tcp", "192.0.2.51:80", "c1 saw 192.0.2.54"},
		{"c4", "tcp", "[2001:db8::51]:80", "c1 saw 2001:db8::54"},
		{"d1", "tcp", "192.0.2.51:80", "c1 saw 172.30.0.1"},
		{"c1", "tcp", "192.0.2.56:80", "c6 saw 192.0.2.51"},
		{"host", "tcp", "192.0.2.51:8080", "c1 saw 172.30.0.1"},
		// What the container begins.
		{"c1", "tcp", "192.0.2.9:8080", "cli saw 192.0.2.51"},
		{"c1", "udp", "192.0.2.9:9999", "cli saw 192.0.2.51"},
		{"c1", "big", "192.0.2.9:80", "cli saw 192.0.2.51 send 5000 bytes"},
		{"c1", "ping", "192.0.2.9", ping(past)},
		{"c2", "udp", "[2001:db8::9]:9999", "cli saw 2001:db8::52"},
		{"c5", "udp", "192.0.2.9:80", "cli saw 192.0.2.55"},
		{"c1", "tcp", "172.30.0.3:80", "c2 saw 172.30.0.2"}, // past the external address
	}
}

// FilterForbidden is what they keep out; Docker's published port 8080, too.
func FilterForbidden() []Probe {
	return []Probe{
		{"cli", "tcp", "192.0.2.51:8080", ""},
		{"cli", "udp", "192.0.2.51:80", ""},
		{"cli", "big", "192.0.2.51:80", ""},
		{"cli", "tcp", "192.0.2.57:80", ""},
		{"cli", "udp", "192.0.2.57:80", ""},
		{"cli", "ping", "192.0.2.57", ""},
		{"cli", "udp", "192.0.2.55:80", ""},
		{"cli", "tcp", "192.0.2.56:80", ""},
		{"cli", "tcp", "[2001:db8::51]:8080", ""},
		{"cli", "udp", "[2001:db8::51]:80", ""},
		{"cli", "tcp", "[2001:db8::57]:80", ""},
		{"cli", "ping", "2001:db8::57", ""},
		{"c1", "tcp", "192.0.2.51:8080", ""},
		{"c1", "tcp", "192.0.2.52:80", ""},
		{"c1", "udp", "192.0.2.52:8080", ""},
		{"c1", "tcp", "[2001:db8::52]:80", ""},
		{"c3", "tcp", "192.0.2.51:8080", ""},
		{"c3", "udp", "192.0.2.57:80", ""},
		{"c4", "udp", "192.0.2.51:80", ""},
		{"c4", "tcp", "[2001:db8::52]:80", ""},
		{"c1", "udp", "192.0.2.56:80", ""},
		{"d1", "tcp", "192.0.2.52:80", ""},
		{"d1", "tcp", "192.0.2.51:8080", ""},
	}
}

// RunFilters has filtered addresses asked in a lab.
func RunFilters(t *testing.T, v Variant, open func(*Lab) Subject) {
	l := New(t, v)
	for _, n := range []string{"cli", "c1"} {
		l.nodes[n].ServeEcho(81)
	}
	for _, n := range l.nodes {
		n.Sysctl("ipv4.icmp_ratelimit", "0")
		n.Sysctl("ipv6.icmp.ratelimit", "0")
	}
	s := open(l)
	unfiltered := filtered()
	for i := range unfiltered {
		unfiltered[i].Filter = nil
	}
	if _, err := s.Sync(nat.State{Networks: networks(), Mappings: unfiltered}); err != nil {
		t.Fatal(err)
	}
	l.checkAnswered(t, "unfiltered", FilterForbidden())
	l.Check(t, "unfiltered", FilterAllowed())

	add := func(ms ...nat.Mapping) {
		t.Helper()
		if err := s.Add(ms...); err != nil {
			t.Fatal(err)
		}
	}
	add(filtered()...)
	l.Check(t, "allowed", FilterAllowed())
	l.Check(t, "forbidden", FilterForbidden())
	l.checkRefusals(t, s)
	for _, family := range []struct{ c1, cli string }{{"192.0.2.51", "192.0.2.9"}, {"2001:db8::51", "2001:db8::9"}} {
		l.checkChange(t, s, family.c1, family.cli)
	}

	add(unfiltered...)
	l.checkAnswered(t, "no longer filtered", FilterForbidden())
}

// checkRefusals: who is rejected hears of it at once, who is dropped doesn't,
// and either is counted for the address that was asked.
func (l *Lab) checkRefusals(t *testing.T, s Subject) {
	t.Helper()
	cli := l.nodes["cli"]
	for _, x := range []struct{ drops, rejects string }{{"192.0.2.51", "192.0.2.57"}, {"2001:db8::51", "2001:db8::57"}} {
		before := []int{s.Refused(x.drops), s.Refused(x.rejects)}
		if got := cli.Provoke(join(x.drops, 9), 10, 64); got != "" {
			t.Errorf("dropped: %s", got)
		}
		if now := s.Refused(x.drops); now != before[0]+1 {
			t.Errorf("%s: %d packets are counted, then one more: %d", x.drops, before[0], now)
		}
		if now := s.Refused(x.rejects); now != before[1] {
			t.Errorf("%s: %d packets are counted, then one for %s: %d", x.rejects, before[1], x.drops, now)
		}
		for _, from := range []string{"cli", "c3", "c4"} {
			got := l.nodes[from].Patient().Provoke(join(x.rejects, 80), 10, 64)
			if !strings.HasPrefix(got, "port unreachable, says ") || !strings.HasSuffix(got, " of "+x.rejects) {
				t.Errorf("%s is rejected: %q", from, got)
			}
		}
		if now := s.Refused(x.rejects); now != before[1]+3 {
			t.Errorf("%s: %d packets are counted, then three more: %d", x.rejects, before[1], now)
		}
		if !cli.Refused(join(x.rejects, 80)) {
			t.Errorf("%s: a TCP connection isn't refused", x.rejects)
		}
	}
}

// checkChange: connections that are no longer allowed stop at once, and go on
// if they are allowed again; those that the container opened don't care.
func (l *Lab) checkChange(t *testing.T, s Subject, external, client string) {
	t.Helper()
	ms := filtered()
	at := slices.IndexFunc(ms, func(m nat.Mapping) bool { return m.External.String() == external })
	change := func(f *nat.Filter) {
		t.Helper()
		ms[at].Filter = f
		if err := s.Add(ms[at]); err != nil {
			t.Fatal(err)
		}
	}
	change(nil)
	cli, c1 := l.nodes["cli"], l.nodes["c1"]
	inTCP, inUDP := cli.Talk("tcp", join(external, 81)), cli.Talk("udp", join(external, 80))
	outTCP, outUDP := c1.Talk("tcp", join(client, 81)), c1.Talk("udp", join(client, 80))
	check := func(what string, in bool) {
		t.Helper()
		if got := [4]bool{inTCP.Say(in), inUDP.Say(in), outTCP.Say(true), outUDP.Say(true)}; got != [4]bool{in, in, true, true} {
			t.Errorf("%s: answers to tcp, udp from outside, and to the container's own: %v", what, got)
		}
	}
	check("before", true)
	web := nat.Ports{Proto: tcp, First: 443, Last: 443}
	change(&nat.Filter{Ports: []nat.Ports{web}})
	check("without the port", false)
	change(&nat.Filter{Ports: []nat.Ports{web, {Proto: tcp, First: 81, Last: 81}, {Proto: udp, First: 80, Last: 80}}})
	check("with the port again", true)
	elsewhere := map[bool]string{true: "198.51.100.0/24", false: "2001:db8:7::/48"}[ms[at].External.Is4()]
	change(&nat.Filter{Allow: prefixes(elsewhere), Reject: true})
	if inUDP.Say(false) || !outTCP.Say(true) || !outUDP.Say(true) {
		t.Errorf("%s: with a filter that rejects other clients", external)
	}
}
