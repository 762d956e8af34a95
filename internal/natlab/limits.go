package natlab

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

func withLimit(m nat.Mapping, l nat.Limit) nat.Mapping {
	m.Limit = l
	return m
}

// LimitState is the lab's networks and mappings, with filters and limits.
func LimitState() nat.State {
	st := FilterState()
	for i := range st.Mappings {
		st.Mappings[i].Limit = []nat.Limit{{}, {Connections: 20000}, {Rate: 500}, {Connections: 300, Rate: 30000}}[i%4]
	}
	return st
}

// RunLimits has limited addresses flooded in a lab, from outside and from
// their containers.
func RunLimits(t *testing.T, v Variant, open func(*Lab) Subject) {
	l := New(t, v)
	// What is open stays open.
	l.Host.Sysctl("netfilter.nf_conntrack_udp_timeout", "600")
	l.Host.Sysctl("netfilter.nf_conntrack_udp_timeout_stream", "600")
	for _, n := range []string{"cli", "c1"} {
		l.nodes[n].ServeEcho(81)
	}
	s := open(l)
	if _, err := s.Sync(nat.State{Networks: networks(), Mappings: mappings()}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []limitView{{external: "192.0.2.51", other: "192.0.2.52", client: "192.0.2.9"}, {external: "2001:db8::51", other: "2001:db8::52", client: "2001:db8::9"}} {
		ms := mappings()
		x.mapping = ms[slices.IndexFunc(ms, func(m nat.Mapping) bool { return m.External.String() == x.external })]
		l.checkLimit(t, s, x)
	}
}

// A limitView is a limited address, another one, and a client.
type limitView struct {
	external, other, client string
	mapping                 nat.Mapping // of external
}

func (l *Lab) checkLimit(t *testing.T, s Subject, x limitView) {
	t.Helper()
	cli, c1, c2 := l.nodes["cli"], l.nodes["c1"], l.nodes["c2"]
	set := func(limit nat.Limit) {
		t.Helper()
		if err := s.Add(withLimit(x.mapping, limit)); err != nil {
			t.Fatal(err)
		}
	}
	// flood opens that many flows, and wants some of them answered, by one.
	const many = 60
	flood := func(what string, from *nettest.Node, to string, by string, want int) {
		t.Helper()
		wanted := map[string]int{by: want}
		if want == 0 {
			wanted = nil
		}
		if got := from.Flows(join(to, 9999), many, want); !maps.Equal(got, wanted) {
			t.Errorf("%s: of %d flows from %s to %s, answered are %v, want %d by %s", what, many, from.Name, to, got, want, by)
		}
	}
	dropped := func() (in, out int) {
		t.Helper()
		counters, err := s.Counters()
		if err != nil {
			t.Fatal(err)
		}
		c := counters[x.mapping.External]
		return int(c.LimitedIn), int(c.LimitedOut)
	}

	flood("unlimited", cli, x.external, "c1", many)
	flood("unlimited", c1, x.client, "cli", many)
	inTCP, outTCP := cli.Talk("tcp", join(x.external, 81)), c1.Talk("tcp", join(x.client, 81))

	const few = 20
	set(nat.Limit{Connections: few})
	in, out := dropped()
	flood("limited", cli, x.external, "c1", few)
	flood("limited", c1, x.client, "cli", few)
	flood("beside it", cli, x.other, "c2", many)
	flood("beside it", c2, x.client, "cli", many)
	flood("a container's, of another's", c2, x.external, "", 0)
	if nowIn, nowOut := dropped(); nowIn-in != 2*many-few || nowOut-out != many-few {
		t.Errorf("%s: %d packets in and %d out were counted, want %d and %d", x.external, nowIn-in, nowOut-out, 2*many-few, many-few)
	}
	if !inTCP.Say(true) || !outTCP.Say(true) {
		t.Error("connections of before don't go on")
	}

	// Who goes on has room again when others are gone.
	set(nat.Limit{Connections: 1})
	first := cli.Talk("tcp", join(x.external, 81))
	if got := cli.Ask("tcp", join(x.external, 80)); got != "" {
		t.Errorf("the second of one connection: %q", got)
	}
	if !first.Say(true) {
		t.Error("the first connection doesn't go on")
	}
	first.Close()
	await(t, "room for another connection", func() bool { return cli.Ask("tcp", join(x.external, 80)) != "" })

	// A rate counts connections, not packets.
	const rate = 5
	set(nat.Limit{Rate: rate})
	in, out = dropped()
	cli.Spray(join(x.external, 7777), many)
	c1.Spray(join(x.client, 7777), many)
	if nowIn, nowOut := dropped(); nowIn != in || nowOut != out {
		t.Errorf("of one flow, %d packets in and %d out were counted", nowIn-in, nowOut-out)
	}
	for _, way := range []struct {
		from   *nettest.Node
		to, by string
	}{{cli, x.external, "c1"}, {c1, x.client, "cli"}} {
		began := time.Now()
		got := way.from.Flows(join(way.to, 9999), many, 1)[way.by]
		most := rate + int(rate*time.Since(began).Seconds()) + 1
		if got == 0 || got > most || most < many && got == many {
			t.Errorf("%s opens %d flows, %d a second: answered are %d, want 1 to %d", way.from.Name, many, rate, got, most)
		}
	}
	flood("beside it", cli, x.other, "c2", many)

	set(nat.Limit{})
	flood("no longer limited", cli, x.external, "c1", many)
	flood("no longer limited", c1, x.client, "cli", many)
}

// await waits for something that is to happen within a second or two.
func await(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !happened(); {
		if time.Now().After(deadline) {
			t.Fatalf("there never was %s", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
