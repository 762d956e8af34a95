package nftables

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/internal/natlab"
	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

func someState() nat.State {
	return nat.State{
		Networks: []nat.Network{nattest.Net(1)},
		Mappings: []nat.Mapping{nattest.Map4(1, 1), nattest.Limited(nattest.Filtered(nattest.Map4(1, 2), false), 300, 20), nattest.Map6(1, 1)},
	}
}

// What others do to our tables, and what Sync says to it.
func TestSyncReports(t *testing.T) {
	for _, tt := range []struct {
		name    string
		command string
		want    []string // in any order, nothing else
	}{
		{"nothing", "", nil},
		{"others' tables", "add table ip other; add chain ip other c; add table inet extip", nil},
		{"a map is emptied", "flush map ip extip ext2ctr", []string{"ip: set ext2ctr: missing: 203.0.113.1 203.0.113.2"}},
		{"an element is gone", "delete element ip extip ext_addrs { 203.0.113.1 }", []string{"ip: set ext_addrs: missing: 203.0.113.1"}},
		{
			"an element is altered",
			"delete element ip extip ext2ctr { 203.0.113.1 }; add element ip extip ext2ctr { 203.0.113.1 : 172.30.1.99 }",
			[]string{"ip: set ext2ctr: altered: 203.0.113.1"},
		},
		{
			"an element of somebody else's",
			"add element ip extip ctr2ext { 172.30.1.99 : 203.0.113.99 }; add element ip extip fwd_by_oif { \"br7\" : accept }",
			[]string{"ip: set ctr2ext: left over: 172.30.1.99", "ip: set fwd_by_oif: left over: br7"},
		},
		{
			"a verdict is altered",
			"delete element ip extip fwd_by_oif { \"br1\" }; add element ip extip fwd_by_oif { \"br1\" : goto into-net1 }",
			[]string{"ip: set fwd_by_oif: altered: br1"},
		},
		{"a chain is emptied", "flush chain ip extip forward", []string{"ip: chain forward was altered"}},
		{"a filter lets everything pass", "add element ip extip open-d201897e45ce3bfd { 0.0.0.0/0 . udp . 1-100 }", []string{
			"ip: set open-d201897e45ce3bfd: left over: 0.0.0.0-255.255.255.255 . 17-17 . 1-100",
		}},
		{"an address loses its filter", "delete element ip extip filter_by_ext { 203.0.113.2 }", []string{"ip: set filter_by_ext: missing: 203.0.113.2"}},
		{"an address has another's filter", "flush chain ip extip check-d201897e45ce3bfd", []string{"ip: chain check-d201897e45ce3bfd was altered"}},
		{"filters are gone", "delete chain ip extip filter", []string{"ip: chain filter was missing"}},
		{"an address loses its limits", "flush set ip extip rate_in; delete element ip extip count_out { 172.30.1.3 }", []string{
			"ip: set rate_in: missing: 203.0.113.2", "ip: set count_out: missing: 172.30.1.3",
		}},
		{
			"limits are altered",
			"flush set ip extip count_in; add element ip extip count_in { 203.0.113.2 ct count over 301 }" +
				"; flush set ip extip rate_in; add element ip extip rate_in { 203.0.113.2 limit rate over 20/minute burst 20 packets }" +
				"; flush set ip extip rate_out; add element ip extip rate_out { 172.30.1.3 limit rate 20/second burst 20 packets }",
			[]string{"ip: set count_in: altered: 203.0.113.2", "ip: set rate_in: altered: 203.0.113.2", "ip: set rate_out: altered: 172.30.1.3"},
		},
		{"an address without a limit has one", "add element ip extip rate_in { 203.0.113.1 }", []string{"ip: set rate_in: left over: 203.0.113.1"}},
		{"a rule of somebody else's", "insert rule ip extip into-net1 accept", []string{"ip: chain into-net1 was altered"}},
		{"a rule with a set of its own", "add rule ip extip input tcp dport { 22, 80 } accept", []string{"ip: chain input was altered"}},
		{
			"a chain that we jump to",
			"add chain ip extip theirs; add rule ip extip theirs accept; add rule ip extip forward jump theirs",
			[]string{"ip: chain forward was altered", "ip: chain theirs was left over"},
		},
		{
			"chains and sets of another time",
			"add set ip extip old { type inet_service; }; add map ip extip older { type ipv4_addr : verdict; }" +
				"; add chain ip extip x; add chain ip extip y { type filter hook input priority 5; }" +
				"; add rule ip extip y tcp dport @old jump x; add element ip extip older { 192.0.2.1 : jump x }",
			[]string{"ip: chain x was left over", "ip: chain y was left over", "ip: set old was left over", "ip: set older was left over"},
		},
		{"an object of another kind", "add counter ip extip hits", []string{"ip: table was made anew: 1 foreign objects"}},
		{
			"a set of another type",
			"delete table ip extip; add table ip extip; add map ip extip ext2ctr { type ipv4_addr : ipv4_addr; flags interval; }",
			[]string{"ip: table was made anew: type of set ext2ctr"},
		},
		{
			"a chain elsewhere",
			"delete chain ip extip forward; add chain ip extip forward { type filter hook forward priority 7; }",
			[]string{"ip: table was made anew: hook of chain forward"},
		},
		{"a table asleep", "add table ip extip { flags dormant; }", []string{"ip: table was made anew: flags 0x1"}},
		{"all gone", "flush ruleset", []string{"ip: table was missing", "ip6: table was missing"}},
		{"IPv6", "flush set ip6 extip ext_addrs", []string{"ip6: set ext_addrs: missing: 2001:db8:cafe::1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			node := newHost(t)
			b := open(t, node, Config{})
			st := someState()
			if _, err := b.Sync(st); err != nil {
				t.Fatal(err)
			}
			want := dump(node)
			if tt.command != "" {
				node.Run("nft", tt.command)
			}
			altered := node.Run("nft", "list", "ruleset")
			got, err := b.Sync(st)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(got)
			slices.Sort(tt.want)
			if !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			if len(tt.want) == 0 && node.Run("nft", "list", "ruleset") != altered {
				t.Error("rules were changed without a word")
			}
			if after := dump(node); after != want {
				t.Errorf("after repair\n%s\nwant\n%s", after, want)
			}
			// Look again, whatever the generation says.
			b.agreed = false
			if again, err := b.Repair(); err != nil || len(again) > 0 {
				t.Errorf("second time: %q, %v", again, err)
			}
		})
	}
}

// That an address is full is no difference.
func TestFullIsNoDifference(t *testing.T) {
	node := newHost(t)
	b, st := open(t, node, Config{}), someState()
	if _, err := b.Sync(st); err != nil {
		t.Fatal(err)
	}
	const full = "ip extip full_in { 203.0.113.2 }"
	node.Run("nft", "add element ip extip full_in { 203.0.113.2 timeout 1h }")
	for range 2 {
		if repaired, err := b.Sync(st); err != nil || len(repaired) > 0 {
			t.Errorf("repaired %q, %v", repaired, err)
		}
		b = open(t, node, Config{})
	}
	node.Run("nft", "get element "+full)
}

// What an administrator saves and loads again is what it was, to the kernel
// and to us.
func TestSavedRulesLoad(t *testing.T) {
	nettest.RequireTool(t, "nft")
	// With the legacy flavour, the rules of nf_tables are ours alone.
	nettest.RequireTool(t, "iptables-legacy")
	l := natlab.New(t, natlab.Variants("legacy")[0])
	b := openAdmitted(t, l, "legacy", Config{})
	if _, err := b.Sync(natlab.LimitState()); err != nil {
		t.Fatal(err)
	}
	l.Check(t, "forbidden by filters", natlab.FilterForbidden()) // and counted
	l.Host.Run("nft", "add element ip extip full_out { 198.51.100.1 timeout 1h }")
	want := dump(l.Host)
	l.Host.Run("sh", "-c", "nft list ruleset > /run/saved && nft flush ruleset && nft -f /run/saved")
	if got := dump(l.Host); got != want {
		t.Errorf("loaded\n%s\nwant\n%s", got, want)
	}
	l.Check(t, "allowed by filters", natlab.FilterAllowed())
	l.Check(t, "forbidden by filters", natlab.FilterForbidden())
	l.Check(t, "forbidden", natlab.Forbidden())
	if repaired, err := b.Repair(); err != nil || len(repaired) > 0 {
		t.Errorf("repaired %q, %v", repaired, err)
	}
	// Loaded on top of what is there, rules are doubled.
	l.Host.Run("nft", "-f", "/run/saved")
	if repaired, err := b.Repair(); err != nil || len(repaired) == 0 {
		t.Errorf("repaired %q, %v", repaired, err)
	}
	if got := dump(l.Host); got != want {
		t.Errorf("repaired\n%s\nwant\n%s", got, want)
	}
	if _, err := b.Sync(natlab.State()); err != nil {
		t.Fatal(err)
	}
	l.Check(t, "allowed without filters", natlab.Allowed())
}

// A call that finds the kernel holding something else puts everything right.
func TestDisagreement(t *testing.T) {
	for _, tt := range []struct {
		name, command string
		call          func(b *Backend) error
		want          func(st *nat.State)
	}{
		{
			"what is to be removed is gone", "delete element ip extip ext2ctr { 203.0.113.1 }",
			func(b *Backend) error { return b.Remove(nattest.Map4(1, 1)) },
			func(st *nat.State) { st.Mappings = st.Mappings[1:] },
		},
		{
			"what is to be added is there for another", "add element ip extip ext2ctr { 203.0.113.3 : 172.30.1.99 }",
			func(b *Backend) error { return b.Add(nattest.Map4(1, 3)) },
			func(st *nat.State) { st.Mappings = append(st.Mappings, nattest.Map4(1, 3)) },
		},
		{
			"all is gone", "flush ruleset",
			func(b *Backend) error { return b.Add(nattest.Map4(1, 3)) },
			func(st *nat.State) { st.Mappings = append(st.Mappings, nattest.Map4(1, 3)) },
		},
		{
			"a network's chains are in use", "add rule ip extip forward jump into-net1",
			func(b *Backend) error { return b.RemoveNetwork(nattest.Net(1)) },
			func(st *nat.State) { st.Networks = nil },
		},
		{
			"a new network's chain is there", "add chain ip extip into-net2",
			func(b *Backend) error { return b.AddNetwork(nattest.Net(2)) },
			func(st *nat.State) { st.Networks = append(st.Networks, nattest.Net(2)) },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			node := newHost(t)
			b := open(t, node, Config{})
			st := someState()
			if _, err := b.Sync(st); err != nil {
				t.Fatal(err)
			}
			node.Run("nft", tt.command)
			if err := tt.call(b); err != nil {
				t.Fatal(err)
			}
			tt.want(&st)
			if repaired, err := open(t, node, Config{}).Sync(st); err != nil || len(repaired) > 0 {
				t.Errorf("kernel was left wrong: %q, %v", repaired, err)
			}
		})
	}
}

var errInjected = errors.New("injected")

// The write of every call fails once. The call must say so and leave the
// rules as they were; the next attempt must succeed.
func TestFailAtEveryWrite(t *testing.T) {
	moved := nattest.Map4(1, 2)
	moved.External = nattest.Map4(1, 1).External
	node := newHost(t)
	b := open(t, node, Config{})
	empty := dump(node)
	for _, step := range []struct {
		name string // what the error must name
		do   func() error
	}{
		{`"net1"`, func() error { return b.AddNetwork(nattest.Net(1)) }},
		{`"203.0.113.1 2001:db8:cafe::1"`, func() error { return b.Add(nattest.Map4(1, 1), nattest.Map6(1, 1)) }},
		{`"net2"`, func() error { return b.AddNetwork(nattest.Net(2)) }},
		{`"203.0.113.1"`, func() error { return b.Add(moved) }},
		{`"203.0.113.1"`, func() error { return b.Remove(moved) }},
		{`"2001:db8:cafe::1"`, func() error { return b.Remove(nattest.Map6(1, 1)) }},
		{`"net1"`, func() error { return b.RemoveNetwork(nattest.Net(1)) }},
		{`"net2"`, func() error { return b.RemoveNetwork(nattest.Net(2)) }},
	} {
		before := dump(node)
		for _, injected := range []error{errInjected, unix.ENOENT} {
			b.commit = func(*batch) error { return injected }
			if err := step.do(); !errors.Is(err, injected) || !strings.Contains(err.Error(), step.name) {
				t.Errorf("%s: error %v", step.name, err)
			}
			if got := dump(node); got != before {
				t.Fatalf("%s failed: rules are\n%s\nwant\n%s", step.name, got, before)
			}
			b.commit = b.commitCounted
		}
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
	}
	if got := dump(node); got != empty {
		t.Errorf("in the end\n%s\nwant\n%s", got, empty)
	}
}
