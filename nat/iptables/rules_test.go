package iptables

import (
	"flag"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/nat"
)

var update = flag.Bool("update", false, "rewrite testdata")

// text is what iptables-restore would be fed to get from nothing to the model.
func text(m *model) string {
	var b batch
	for _, t := range m.tables() {
		t.repair(held{}, &b)
	}
	return b.String()
}

func modelOf(f family, st nat.State) *model {
	m := newModel(f)
	m.put(st)
	return m
}

func TestRules(t *testing.T) {
	gateway := nattest.Map4(1, 0x33)
	gateway.Gateway = true
	noEgress := nattest.Map4(1, 0x34)
	noEgress.Egress = false
	internal := nattest.Net(2)
	internal.Internal = true
	marked := nattest.Net(2)
	marked.Mark = 0x10203
	for _, tt := range []struct {
		name   string
		family family
		state  nat.State
	}{
		{"v4", family{}, nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: []nat.Mapping{nattest.Map4(1, 0x33), nattest.Map4(1, 0x34), nattest.Map4(1, 0x40)}}},
		{"v6", family{v6: true}, nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: []nat.Mapping{nattest.Map6(1, 0x33), nattest.Map6(1, 0x100)}}},
		{"gateway", family{}, nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: []nat.Mapping{gateway, noEgress}}},
		{"internal", family{}, nat.State{Networks: []nat.Network{internal}}},
		{"two-networks", family{}, nat.State{Networks: []nat.Network{nattest.Net(1), nattest.Net(2)}, Mappings: []nat.Mapping{nattest.Map4(1, 0x33), nattest.Map4(2, 0x34)}}},
		{"filters", family{}, nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: []nat.Mapping{
			nattest.Filtered(nattest.Map4(1, 0x33), false), nattest.Map4(1, 0x34),
			nattest.Filtered(nattest.Map4(1, 0x35), true, "198.51.100.0/24", "192.0.2.1/32"),
		}}},
		{"filters6", family{v6: true}, nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: []nat.Mapping{
			nattest.Filtered(nattest.Map6(1, 0x33), false), nattest.Filtered(nattest.Map6(1, 0x34), true, "2001:db8:5::/48"),
		}}},
		{"limits", family{}, nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: []nat.Mapping{
			nattest.Limited(nattest.Map4(1, 0x33), 20000, 0), nattest.Limited(nattest.Map4(1, 0x34), 0, 500), nattest.Map4(1, 0x35),
			nattest.Limited(nattest.Filtered(nattest.Map4(1, 0x36), false), 300, 30000),
		}}},
		{"limits6", family{v6: true}, nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: []nat.Mapping{nattest.Limited(nattest.Map6(1, 0x33), 300, 20)}}},
		{"marks", family{}, nat.State{Networks: []nat.Network{nattest.Net(1), marked}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join("testdata", tt.name+".rules")
			got := text(modelOf(tt.family, tt.state))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// random is a rand whose seed a failing test shows.
func random(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// mappings makes disjoint mappings of a family into the networks 1 and 2.
func mappings(r *rand.Rand, f family, count int) []nat.Mapping {
	var ms []nat.Mapping
	for _, i := range r.Perm(250)[:count] {
		m := nattest.Map4(1+r.IntN(2), i)
		if f.v6 {
			m = nattest.Map6(1+r.IntN(2), i)
		}
		m.Gateway, m.Egress = r.IntN(4) == 0, r.IntN(4) > 0
		ms = append(ms, m)
	}
	return ms
}

func eachFamily(t *testing.T, test func(*testing.T, family)) {
	for i, f := range families() {
		t.Run([]string{"IPv4", "IPv6"}[i], func(t *testing.T) { test(t, f) })
	}
}

func TestTranslation(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		r := random(t)
		networks := []nat.Network{nattest.Net(1), nattest.Net(2)}
		networks[1].Mark = 0x2b
		markOf := func(m nat.Mapping) uint32 {
			if bridgeOf(m) == networks[1].Bridge {
				return networks[1].Mark
			}
			return 0
		}
		ms := mappings(r, f, 60)
		tr := tracer{model: modelOf(f, nat.State{Networks: networks, Mappings: ms})}
		client, server := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("198.51.100.80")
		if f.v6 {
			client, server = netip.MustParseAddr("2001:db8:7::7"), netip.MustParseAddr("2001:db8:7::80")
		}
		check := func(what string, got, want packet) {
			t.Helper()
			if got != want {
				t.Errorf("%s: came out as %+v, want %+v", what, got, want)
			}
		}
		for _, m := range ms {
			in := tr.trace(packet{src: client, dst: m.External, in: "eth0", state: "NEW"})
			check("in", in, packet{src: seen(client, m.Gateway), dst: m.Internal, in: "eth0", out: bridgeOf(m), state: "NEW", mapped: true})

			out := tr.trace(packet{src: m.Internal, dst: server, in: bridgeOf(m), state: "NEW"})
			check("out", out, packet{src: seenAs(m), dst: server, in: bridgeOf(m), out: "eth0", state: "NEW", mark: markOf(m)})

			direct := tr.trace(packet{src: client, dst: m.Internal, in: "eth0", state: "NEW"})
			check("past the mapping", direct, packet{})

			invalid := tr.trace(packet{src: m.Internal, dst: server, in: bridgeOf(m), state: "INVALID"})
			check("out, untracked", invalid, packet{})

			local := tr.trace(packet{src: client, dst: m.External, local: true, state: "NEW"})
			check("from the host", local, packet{dst: m.Internal, local: true, out: bridgeOf(m), state: "NEW", mapped: true})

			to := ms[r.IntN(len(ms))]
			peer := tr.trace(packet{src: m.Internal, dst: to.External, in: bridgeOf(m), state: "NEW"})
			from := seenAs(m)
			if to.Gateway {
				from = masqueraded()
			}
			check("to another", peer, packet{src: from, dst: to.Internal, in: bridgeOf(m), out: bridgeOf(to), state: "NEW", mapped: true, mark: markOf(m)})
		}
		other := packet{src: client, dst: server, in: "eth0", out: "eth0", state: "NEW"}
		check("others' traffic", tr.trace(other), other)
	})
}

// What a filter keeps out does not arrive, whoever sends it; what belongs to
// connections of the container does.
func TestFilterRules(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		r := random(t)
		ms := mappings(r, f, 40)
		for i := range ms {
			ms[i].Filter = nattest.RandomFilter(r, f.v6)
		}
		tr := tracer{model: modelOf(f, nat.State{Networks: []nat.Network{nattest.Net(1), nattest.Net(2)}, Mappings: ms})}
		numbers := []uint8{1, 58, 6, 17, 132, 50}
		passed, kept := 0, 0
		for range 5000 {
			m, src, proto, port := ms[r.IntN(len(ms))], nattest.RandomClient(r, f.v6), numbers[r.IntN(len(numbers))], 1+r.IntN(210)
			p := packet{src: src, dst: m.External, in: "eth0", proto: protocols()[proto], port: port, state: []string{"NEW", "ESTABLISHED"}[r.IntN(2)]}
			want := nattest.Passes(m.Filter, src, proto, uint16(port))
			if got := tr.trace(p).dst == m.Internal; got != want {
				t.Fatalf("%v: %+v: arrives: %t, want %t", m.Filter, p, got, want)
			}
			if want {
				passed++
				continue
			}
			kept++
			p.reply, p.state = true, "ESTABLISHED"
			if tr.trace(p) == (packet{}) {
				t.Fatalf("%v: an answer is kept out: %+v", m.Filter, p)
			}
			p.reply, p.state, p.proto = false, "RELATED", map[bool]string{false: "icmp", true: "ipv6-icmp"}[f.v6]
			if tr.trace(p) == (packet{}) {
				t.Fatalf("%v: an error is kept out: %+v", m.Filter, p)
			}
		}
		t.Logf("%d passed, %d were kept out", passed, kept)
	})
}

func bridgeOf(m nat.Mapping) string {
	for _, n := range []nat.Network{nattest.Net(1), nattest.Net(2)} {
		for _, p := range n.Subnets {
			if p.Contains(m.Internal) {
				return n.Bridge
			}
		}
	}
	return ""
}

// masqueraded stands for the address of the interface a packet leaves by.
func masqueraded() netip.Addr { return netip.Addr{} }

func seen(client netip.Addr, gateway bool) netip.Addr { return only(!gateway, client) }

func seenAs(m nat.Mapping) netip.Addr { return only(m.Egress, m.External) }

// The order of calls leaves no trace, and what is undone none either.
func TestOrderDoesNotMatter(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family) {
		r := random(t)
		networks := []nat.Network{nattest.Net(1), nattest.Net(2)}
		ms := mappings(r, f, 60)
		once := modelOf(f, nat.State{Networks: networks, Mappings: ms})
		bare := text(modelOf(f, nat.State{Networks: networks}))

		shuffled := newModel(f)
		var undo []nat.Change
		for _, i := range r.Perm(len(ms)) {
			e := shuffled.effective(nat.Change{Put: nat.State{Networks: networks, Mappings: ms[i : i+1]}})
			shuffled.apply(e)
			undo = append(undo, e.Inverse())
		}
		if got, want := text(shuffled), text(once); got != want {
			t.Errorf("another order gives\n%s\nwant\n%s", got, want)
		}
		for _, e := range slices.Backward(undo[1:]) {
			shuffled.apply(e)
		}
		shuffled.apply(nat.Change{Drop: nat.State{Mappings: undo[0].Drop.Mappings}})
		if got := text(shuffled); got != bare {
			t.Errorf("after undoing all:\n%s\nwant\n%s", got, bare)
		}
	})
}

// Every chain stays short, whatever the addresses.
func TestBucketsStaySmall(t *testing.T) {
	m := newModel(family{})
	for i := range 10000 {
		m.put(nat.State{Mappings: []nat.Mapping{many(i)}})
	}
	const most = 10000/256 + 1
	for _, tab := range m.tables() {
		for chain, rules := range tab.chains {
			if len(rules) > most {
				t.Errorf("%s has %d rules, want %d at most", chain, len(rules), most)
			}
		}
	}
}

// many is the i-th of up to 65536 mappings.
func many(i int) nat.Mapping {
	return nat.Mapping{
		Endpoint: "many",
		External: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}),
		Internal: netip.AddrFrom4([4]byte{172, 30, byte(i >> 8), byte(i)}),
		Egress:   true,
	}
}
