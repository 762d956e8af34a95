package natlab

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/extip/extip/nat"
)

// A Probe is a question and who should answer it, having seen whom: "c1 saw
// 192.0.2.9". An empty want is a question that must stay unanswered.
type Probe struct {
	From, Network, To string // Network: tcp, udp, big (a fragmented datagram) or ping
	Want              string
}

const (
	near = 64 // TTL of an answer from the same segment
	past = 63 // from behind one router
)

func ping(ttl int) string { return fmt.Sprintf("ttl %d", ttl) }

// Allowed is the traffic that must work.
func Allowed() []Probe {
	return []Probe{
		// In: any port, whoever else publishes it, with the client's address.
		{"cli", "tcp", "192.0.2.51:80", "c1 saw 192.0.2.9"},
		{"cli", "udp", "192.0.2.51:80", "c1 saw 192.0.2.9"},
		{"cli", "tcp", "192.0.2.51:8080", "c1 saw 192.0.2.9"},
		{"cli", "udp", "192.0.2.51:8080", "c1 saw 192.0.2.9"},
		{"cli", "tcp", "192.0.2.54:9999", "c4 saw 192.0.2.9"},
		{"cli", "big", "192.0.2.51:80", "c1 saw 192.0.2.9 send 5000 bytes"},
		{"cli", "ping", "192.0.2.51", ping(past)},
		{"cli", "ping", "2001:db8::51", ping(past)},
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
		{"c1", "ping", "2001:db8::9", ping(past)},
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
		{"host", "ping", "2001:db8::51", ping(near)},
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

// Forbidden is the traffic that must not get through.
func Forbidden() []Probe {
	return []Probe{
		{"cli", "tcp", "172.30.0.2:80", ""},
		{"cli", "udp", "172.30.0.2:80", ""},
		{"cli", "ping", "172.30.0.2", ""},
		{"cli", "ping", "2001:db8:30::2", ""},
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

// published is the traffic of a port that Docker publishes in IPv6, too: it
// is open, does not take the external addresses' port, and nothing else is open.
func published() (allowed, forbidden []Probe) {
	allowed = []Probe{
		{"cli", "tcp", "[2001:db8::2]:8080", "d1 saw 2001:db8::9"},
		{"c1", "tcp", "[2001:db8::2]:8080", "d1 saw 2001:db8::51"},
		{"cli", "tcp", "[2001:db8::51]:8080", "c1 saw 2001:db8::9"},
		{"c1", "tcp", "[2001:db8::52]:8080", "c2 saw 2001:db8::51"},
		{"d1", "tcp", "[2001:db8::51]:80", "c1 saw 2001:db8:30::1"},
		{"d1", "tcp", "[2001:db8::9]:80", "cli saw 2001:db8::2"},
	}
	forbidden = []Probe{
		{"c1", "tcp", "[2001:db8:17::2]:80", ""},
		{"c3", "tcp", "[2001:db8:17::2]:80", ""},
		{"d1", "tcp", "[2001:db8:30::2]:80", ""},
	}
	return allowed, forbidden
}

// ask makes all probes at once: waiting for the answers that do not come is
// most of their time. answered tells which of them must come.
func (l *Lab) ask(ps []Probe, answered func(Probe) bool) []string {
	answers := make([]string, len(ps))
	var wg sync.WaitGroup
	for i, p := range ps {
		wg.Go(func() {
			from := l.nodes[p.From]
			if answered(p) {
				from = from.Patient()
			}
			switch p.Network {
			case "ping":
				if ttl := from.Ping(p.To); ttl > 0 {
					answers[i] = ping(ttl)
				}
			case "big":
				answers[i] = from.AskBytes("udp", p.To, 5000)
			default:
				answers[i] = from.Ask(p.Network, p.To)
			}
		})
	}
	wg.Wait()
	return answers
}

// Check makes probes and reports the answers that are not as they should be.
func (l *Lab) Check(t *testing.T, what string, ps []Probe) {
	t.Helper()
	for i, got := range l.ask(ps, func(p Probe) bool { return p.Want != "" }) {
		if p := ps[i]; got != p.Want {
			t.Errorf("%s: %s → %s %s: got %q, want %q", what, p.From, p.Network, p.To, got, p.Want)
		}
	}
}

// checkAnswered makes probes that must have some answer, whose silence
// elsewhere would prove nothing otherwise.
func (l *Lab) checkAnswered(t *testing.T, what string, ps []Probe) {
	t.Helper()
	for i, got := range l.ask(ps, func(Probe) bool { return true }) {
		if p := ps[i]; got == "" {
			t.Errorf("%s: %s → %s %s: nobody answered", what, p.From, p.Network, p.To)
		}
	}
}

// A Subject is a backend in a lab.
type Subject struct {
	nat.Backend
	// Expose takes the backend's drops away, behind its back.
	Expose func()
	// Yield lets Docker's NAT come before the backend's, behind its back.
	Yield func()
	// Left is what of the backend is still on the host, "" if nothing.
	Left func() string
	// Refused is how many packets to an external address its filter has
	// kept out.
	Refused func(external string) int
}

// Run has the traffic asked for in a lab, with the backend that open makes
// on its host.
func Run(t *testing.T, v Variant, open func(*Lab) Subject) {
	l := New(t, v)
	s := open(l)
	sync := func(st nat.State) {
		t.Helper()
		if _, err := s.Sync(st); err != nil {
			t.Fatal(err)
		}
	}
	allowed, forbidden := Allowed(), Forbidden()
	if v.docker.rules6 != "" {
		more, less := published()
		allowed, forbidden = append(allowed, more...), append(forbidden, less...)
	}
	sync(State())
	l.Check(t, "allowed", allowed)
	l.Check(t, "forbidden", forbidden)

	l.Load(v.Flavour, v.docker.later)
	l.Load6(v.Flavour, v.docker.later6)
	fromLater := Probe{"e1", "tcp", "192.0.2.54:80", "c4 saw 172.31.0.1"}
	l.Check(t, "allowed, with a later Docker network", append(allowed, fromLater))
	l.Check(t, "forbidden, with a later Docker network", forbidden)

	sync(State())
	l.checkProofs(t, v, s, forbidden)
	sync(State())
	l.Check(t, "repaired", append(forbidden, Probe{"cli", "tcp", "192.0.2.51:8080", "c1 saw 192.0.2.9"},
		Probe{"cli", "tcp", "[2001:db8::51]:80", "c1 saw 2001:db8::9"}))

	sync(nat.State{})
	if left := s.Left(); left != "" {
		t.Errorf("left after removal:\n%s", left)
	}
}

// checkProofs shows that the probes above can fail: each is answered by the
// wrong party, or at all, once the rule that it is about is taken away.
func (l *Lab) checkProofs(t *testing.T, v Variant, s Subject, forbidden []Probe) {
	t.Helper()
	// Behind Docker's rules, its published port takes the external address.
	s.Yield()
	l.Check(t, "with Docker's rules first", []Probe{{"cli", "tcp", "192.0.2.51:8080", "d1 saw 192.0.2.9"}})

	// Docker's policy drops what nobody accepts, of IPv6 where it has one.
	const unadmitted = "*filter\n-F EXTIP-FORWARD\nCOMMIT\n"
	l.Load(v.Flavour, unadmitted)
	l.Load6(v.Flavour, unadmitted)
	shut := []Probe{{"cli", "tcp", "192.0.2.54:80", ""}, {"c1", "udp", "192.0.2.9:80", ""}}
	if v.docker.rules6 != "" {
		shut = append(shut, Probe{"cli", "tcp", "[2001:db8::54]:80", ""}, Probe{"c1", "udp", "[2001:db8::9]:80", ""})
	}
	l.Check(t, "without an accept", shut)

	// To accept whatever comes from a bridge opens Docker's containers.
	if v.docker.name == docker20().name {
		l.Load(v.Flavour, "*filter\n-I FORWARD -i br0 -j ACCEPT\nCOMMIT\n")
		l.Check(t, "with a careless accept", []Probe{{"c1", "tcp", "172.17.0.2:80", "d1 saw 192.0.2.51"}})
		l.Load(v.Flavour, "*filter\n-D FORWARD -i br0 -j ACCEPT\nCOMMIT\n")
	}

	// Without the backend's drops, and with a filter that passes everything.
	s.Expose()
	const open = "*raw\n-F PREROUTING\nCOMMIT\n*filter\n-I FORWARD -j ACCEPT\nCOMMIT\n"
	l.Load(v.Flavour, open)
	l.Load6(v.Flavour, open)
	l.checkAnswered(t, "unprotected", forbidden)
	const closed = "*filter\n-D FORWARD -j ACCEPT\nCOMMIT\n"
	l.Load(v.Flavour, closed)
	l.Load6(v.Flavour, closed)
}

// Ours are the probes that need none of Docker's rules.
func Ours(ps []Probe) []Probe {
	return slices.DeleteFunc(slices.Clone(ps), func(p Probe) bool {
		return slices.ContainsFunc([]string{"d1", "e1", "172.17.", "172.18."}, func(docker string) bool {
			return strings.Contains(p.From+" "+p.To+" "+p.Want, docker)
		})
	})
}
