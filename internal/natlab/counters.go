package natlab

import (
	"net/netip"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// RunCounters has connections made and refused, and compares what is counted
// with that: exactly, and whatever happens to the rules meanwhile. open makes a
// backend on the lab's host, and wipe takes its rules away behind its back.
// Whatever shares a chain with an address must not disturb its sums.
func RunCounters(t *testing.T, open func(*nettest.Node) nat.Backend, wipe func(*nettest.Node)) {
	l := New(t, Bare())
	b := open(l.Host)
	for _, family := range []counted{
		{b: b, l: l, c1: "192.0.2.51", c2: "192.0.2.52", c4: "192.0.2.54", cli: "192.0.2.9", refusedBytes: 20 + 8 + 10},
		{b: b, l: l, c1: "2001:db8::51", c2: "2001:db8::52", c4: "2001:db8::54", cli: "2001:db8::9", refusedBytes: 40 + 8 + 10},
	} {
		t.Run(family.c1, func(t *testing.T) { family.run(t, wipe) })
	}
}

// counted is one family's part of RunCounters.
type counted struct {
	b               nat.Backend
	l               *Lab
	c1, c2, c4, cli string // external addresses, and the client
	refusedBytes    uint64 // of a datagram with 10 bytes
	want            map[string]nat.Counters
}

func (c *counted) run(t *testing.T, wipe func(*nettest.Node)) {
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.b.Sync(nat.State{})
	ok(err)
	_, err = c.b.Sync(FilterState())
	ok(err)
	c.want = map[string]nat.Counters{}
	c.check(t, "nothing yet")
	c.traffic(t)
	c.check(t, "in, out and refused")

	// What is written again, and what is not.
	for _, m := range filtered() {
		ok(c.b.Add(m))
	}
	_, err = c.b.Repair()
	ok(err)
	c.check(t, "all told again")
	neighbour := neighbourOf(c.c1)
	ok(c.b.Add(neighbour))
	c.check(t, "with a neighbour")
	c.traffic(t)
	c.check(t, "more")
	ok(c.b.Remove(neighbour, c.mapping(t, c.c4)))
	ok(c.b.Add(c.mapping(t, c.c4)))
	delete(c.want, c.c4)
	c.traffic(t)
	c.traffic(t) // more than a counter showed before it was put back
	c.check(t, "without the neighbour")
	for flushed := range 2 {
		wipe(c.l.Host)
		_, err = c.b.Repair()
		ok(err)
		for range 1 + flushed {
			c.traffic(t)
		}
		c.check(t, "after a flush")
	}

	// A move keeps the address's sums; an end ends them.
	moved := c.mapping(t, c.c2)
	moved.Endpoint, moved.Internal = "c3", netip.MustParseAddr(map[bool]string{true: "172.30.0.4", false: "2001:db8:30::4"}[moved.External.Is4()])
	ok(c.b.Add(moved))
	c.check(t, "moved")
	c.ask(t, "cli", c.c2, 80, "c3 saw "+c.cli)
	c.add(c.c2, nat.Counters{Incoming: 1})
	c.ask(t, "c3", c.cli, 80, "cli saw "+c.c2)
	c.add(c.c2, nat.Counters{Outgoing: 1})
	c.check(t, "and asked")
	ok(c.b.Remove(moved))
	delete(c.want, c.c2)
	counters, err := c.b.Counters()
	ok(err)
	if got, there := counters[moved.External]; there {
		t.Errorf("%s is not mapped, and counted %+v", c.c2, got)
	}
	ok(c.b.Add(c.mapping(t, c.c2)))
	c.check(t, "mapped anew")
}

// traffic is a known number of connections and of datagrams that are refused.
func (c *counted) traffic(t *testing.T) {
	t.Helper()
	for range 3 {
		c.ask(t, "cli", c.c1, 80, "c1 saw "+c.cli)
	}
	c.ask(t, "cli", c.c2, 8080, "c2 saw "+c.cli)
	if c.l.nodes["cli"].Ping(c.c1) == 0 {
		t.Errorf("no ping of %s", c.c1)
	}
	c.add(c.c1, nat.Counters{Incoming: 4})
	c.add(c.c2, nat.Counters{Incoming: 1})

	for range 2 {
		c.ask(t, "c1", c.cli, 80, "cli saw "+c.c1)
	}
	c.add(c.c1, nat.Counters{Outgoing: 2})
	// On one bridge, and from one to another.
	c.ask(t, "c1", c.c1, 80, "c1 saw "+c.c1)
	c.ask(t, "c4", c.c1, 80, "c1 saw "+c.c4)
	c.add(c.c1, nat.Counters{Incoming: 2, Outgoing: 1})
	c.add(c.c4, nat.Counters{Outgoing: 1})

	const refused = 5
	for range refused {
		c.l.nodes["cli"].Throw(join(c.c1, 9), 10)
	}
	c.add(c.c1, nat.Counters{Refused: nat.Traffic{Packets: refused, Bytes: refused * c.refusedBytes}})
}

func (c *counted) ask(t *testing.T, from, to string, port int, want string) {
	t.Helper()
	if got := c.l.nodes[from].Ask("tcp", join(to, port)); got != want {
		t.Errorf("%s asks %s: %q, want %q", from, to, got, want)
	}
}

// add is what has been done since, with an external address.
func (c *counted) add(external string, n nat.Counters) {
	sum := c.want[external]
	sum.Incoming += n.Incoming
	sum.Outgoing += n.Outgoing
	sum.Refused.Packets += n.Refused.Packets
	sum.Refused.Bytes += n.Refused.Bytes
	c.want[external] = sum
}

// check compares the sums of the family's addresses, when what was thrown last
// may have arrived.
func (c *counted) check(t *testing.T, what string) {
	t.Helper()
	const patience, pause = 5 * time.Second, 20 * time.Millisecond
	for deadline := time.Now().Add(patience); ; time.Sleep(pause) {
		counters, err := c.b.Counters()
		if err != nil {
			t.Fatal(err)
		}
		wrong := false
		for _, external := range []string{c.c1, c.c2, c.c4} {
			got, want := counters[netip.MustParseAddr(external)], c.want[external]
			if got == want {
				continue
			}
			if wrong = true; time.Now().After(deadline) {
				t.Errorf("%s: %s: %+v, want %+v", what, external, got, want)
			}
		}
		if !wrong || time.Now().After(deadline) {
			return
		}
	}
}

func (c *counted) mapping(t *testing.T, external string) nat.Mapping {
	for _, m := range filtered() {
		if m.External.String() == external {
			return m
		}
	}
	t.Fatalf("no mapping of %s", external)
	return nat.Mapping{}
}

// neighbourOf is a mapping whose external address shares its last byte with
// another one.
func neighbourOf(external string) nat.Mapping {
	m := mapping("c9", "198.51.100.51", "172.30.0.4")
	if netip.MustParseAddr(external).Is6() {
		m = mapping("c9", "2001:db8:9::51", "2001:db8:30::4")
	}
	m.Egress = false
	return m
}
