package natlab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
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

// RunAccounts compares what is counted of packets with what was sent, with a
// backend that accounts for them: what came for an address and what left with
// it, whoever began, but not what a filter refused.
func RunAccounts(t *testing.T, open func(*nettest.Node) nat.Backend) {
	l := New(t, Bare())
	b := open(l.Host)
	st := State()
	st.Mappings = append(st.Mappings[2:], filtered()[:2]...) // of c1
	if _, err := b.Sync(st); err != nil {
		t.Fatal(err)
	}
	cli := l.nodes["cli"]
	cli.MustDo(func() error {
		mute, err := net.ListenPacket("udp", ":7")
		if err == nil {
			t.Cleanup(func() { _ = mute.Close() })
		}
		return err
	})
	// The search for neighbours is done with the external addresses, too.
	mac := func(n *nettest.Node) string {
		return strings.Fields(n.Run("ip", "-br", "link", "show", "dev", "eth0"))[2]
	}
	for _, m := range st.Mappings {
		cli.Run("ip", "neigh", "replace", m.External.String(), "lladdr", mac(l.Host), "dev", "eth0", "nud", "permanent")
	}
	for _, a := range []string{"192.0.2.9", "2001:db8::9"} {
		l.Host.Run("ip", "neigh", "replace", a, "lladdr", mac(cli), "dev", "eth0", "nud", "permanent")
	}
	for _, x := range []struct {
		filtered, open, sibling, cli string // c1, c2 and c4
		head                         uint64 // bytes before what ICMP or UDP carries
	}{
		{"192.0.2.51", "192.0.2.52", "192.0.2.54", "192.0.2.9", 20 + 8},
		{"2001:db8::51", "2001:db8::52", "2001:db8::54", "2001:db8::9", 40 + 8},
	} {
		for _, step := range []struct {
			what, from, to string
			throw          int               // datagrams, of 10 bytes; 0: a ping
			moved          map[string][2]int // packets received and sent
		}{
			{"a ping from outside", "cli", x.open, 0, map[string][2]int{x.open: {1, 1}}},
			{"a ping from a container", "c2", x.cli, 0, map[string][2]int{x.open: {1, 1}}},
			{"a ping between containers", "c4", x.open, 0, map[string][2]int{x.open: {1, 1}, x.sibling: {1, 1}}},
			{"a ping to itself", "c4", x.sibling, 0, map[string][2]int{x.sibling: {2, 2}}},
			{"a ping from the host", "host", x.filtered, 0, nil},
			{"datagrams that are refused", "cli", x.filtered, 5, nil},
			{"datagrams to outside", "c2", x.cli, 7, map[string][2]int{x.open: {0, 7}}},
		} {
			before := l.settle(t, b)
			if step.throw == 0 && l.nodes[step.from].Ping(step.to) == 0 {
				t.Errorf("%s: no answer", step.what)
			}
			for range step.throw {
				l.nodes[step.from].Throw(join(step.to, 7), 10)
			}
			after := l.settle(t, b)
			for _, external := range []string{x.filtered, x.open, x.sibling} {
				a := netip.MustParseAddr(external)
				got := [2]int{int(after[a].Received.Packets - before[a].Received.Packets), int(after[a].Sent.Packets - before[a].Sent.Packets)}
				if got != step.moved[external] {
					t.Errorf("%s: %s received and sent %d, want %d", step.what, external, got, step.moved[external])
				}
				bytes := after[a].Sent.Bytes - before[a].Sent.Bytes
				if n := uint64(step.throw) * (x.head + 10); step.throw > 0 && got[1] > 0 && bytes != n {
					t.Errorf("%s: %s sent %d bytes, want %d", step.what, external, bytes, n)
				}
			}
		}
	}
}

// settle reads counters until they stand still.
func (l *Lab) settle(t *testing.T, b nat.Backend) (now map[netip.Addr]nat.Counters) {
	t.Helper()
	const still = 100 * time.Millisecond
	for before := ""; ; time.Sleep(still) {
		var err error
		if now, err = b.Counters(); err != nil {
			t.Fatal(err)
		}
		var lines []string
		for a, c := range now {
			lines = append(lines, fmt.Sprint(a, c.Refused, *c.Received, *c.Sent))
		}
		slices.Sort(lines)
		text := strings.Join(lines, " ")
		if text == before {
			return now
		}
		before = text
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
	if got := c.l.nodes[from].Patient().Ask("tcp", join(to, port)); got != want {
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
