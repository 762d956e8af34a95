package driver

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

func TestPorts(t *testing.T) {
	for in, want := range map[string]string{
		"all": "all", "tcp/22": "tcp/22", "TCP/22, udp/53": "tcp/22,udp/53", "tcp/8000-8099 icmp": "tcp/8000-8099,icmp",
		"sctp/5060,esp,ah": "sctp/5060,esp,ah", "udp/1-65535": "udp/1-65535", "tcp/7-7": "tcp/7",
	} {
		ports, err := parsePorts(in)
		if got := portsText(ports); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"": "is empty", "tcp": `"tcp": allowed are all`, "icmp/8": `"icmp/8": allowed are`, "gre": `"gre": allowed`, "22": `"22": allowed`,
		"tcp/0": "1 to 65535", "tcp/65536": "1 to 65535", "tcp/9-8": "the first before", "tcp/": "1 to 65535", "tcp/ssh": "1 to 65535", "all,tcp/1": `"all": allowed`,
		"tcp/22;drop": "1 to 65535",
	} {
		if _, err := parsePorts(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

func TestAllow(t *testing.T) {
	for in, want := range map[string]string{
		"everyone": "everyone", "192.0.2.0/24": "192.0.2.0/24", "192.0.2.7/24,2001:db8::1": "192.0.2.0/24,2001:db8::1/128", "0.0.0.0/0": "0.0.0.0/0",
	} {
		prefixes, err := parseAllow(in)
		if got := allowText(prefixes); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{"": "is empty", "me": `"me" is no CIDR`, "192.0.2.0/33": "no CIDR", "fe80::1%eth0": "no CIDR", "::ffff:192.0.2.1": "no CIDR"} {
		if _, err := parseAllow(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

func TestNATFilter(t *testing.T) {
	p := netip.MustParsePrefix
	for name, tt := range map[string]struct {
		in     store.Filter
		v4, v6 *nat.Filter
	}{
		"none": {store.Filter{Refuse: store.RefuseReject}, nil, nil},
		"ports": {
			store.Filter{Ports: []store.Ports{{Proto: "icmp"}, {Proto: "tcp", First: 22, Last: 22}}},
			&nat.Filter{Ports: []nat.Ports{{Proto: 1}, {Proto: 6, First: 22, Last: 22}}},
			&nat.Filter{Ports: []nat.Ports{{Proto: 6, First: 22, Last: 22}, {Proto: 58}}},
		},
		"one family": {
			store.Filter{Allow: []netip.Prefix{p("192.0.2.0/24")}, Refuse: store.RefuseReject},
			&nat.Filter{Allow: []netip.Prefix{p("192.0.2.0/24")}, Reject: true},
			&nat.Filter{Allow: []netip.Prefix{p("::/128")}, Reject: true},
		},
	} {
		for v4, want := range map[bool]*nat.Filter{true: tt.v4, false: tt.v6} {
			if diff := cmp.Diff(want, natFilter(tt.in, v4), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("%s, IPv4 %t (-want +got):\n%s", name, v4, diff)
			}
		}
	}
}

// TestFilters: what the options ask for becomes the mappings' filters, lives
// through restarts and the loss of the records, and can be changed.
func TestFilters(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.58", "extip.ports", "tcp/22,icmp")
	for id, kv := range map[string][]string{
		"e1aa": {"extip.address", "203.0.113.56"},
		"e2aa": {"extip.address", "203.0.113.57", "extip.ports", "all", "extip.allow", "192.0.2.0/24", "extip.refuse", "reject", "extip.reservation", "mail"},
	} {
		if err := l.run(id, "172.31.0."+id[1:2]+"/16", kv...); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what string, want map[string]string) {
		t.Helper()
		for id, filter := range want {
			e := l.endpoints[id].rec
			if got := portsText(e.Filter.Ports) + " " + allowText(e.Filter.Allow) + " " + string(e.Filter.Refuse); got != filter {
				t.Errorf("%s: %s has %q, want %q", what, id, got, filter)
			}
			m := l.host.Mappings()[e.External[0]]
			if !m.Filter.Equal(natFilter(e.Filter, true)) {
				t.Errorf("%s: %s is mapped with %+v", what, id, m.Filter)
			}
		}
	}
	first := map[string]string{"e1aa": "tcp/22,icmp everyone drop", "e2aa": "all 192.0.2.0/24 reject"}
	expect("started", first)
	l.restart()
	expect("restarted", first)
	machine := l.host.String()
	if r, err := l.SetFilter("e2aa", "udp/53", "", true); err != nil || len(r.Done) != 2 || l.host.String() != machine {
		t.Errorf("a dry run: %+v, %v", r, err)
	}
	if r, err := l.SetFilter("e2aa", "udp/53", "", false); err != nil || len(r.Done) != 2 {
		t.Errorf("changed: %+v, %v", r, err)
	}
	changed := map[string]string{"e1aa": "tcp/22,icmp everyone drop", "e2aa": "udp/53 192.0.2.0/24 reject"}
	expect("changed", changed)
	if r, err := l.SetFilter("e2aa", "udp/53", "", false); err != nil || len(r.Done) != 0 {
		t.Errorf("once more: %+v, %v", r, err)
	}
	l.host.FailAt = l.host.Writes() + 2
	if _, err := l.SetFilter("e2aa", "all", "everyone", false); err == nil {
		t.Error("a failure is none")
	}
	expect("failed", changed)
	for _, bad := range [][2]string{{"x", ""}, {"", "x"}} {
		if _, err := l.SetFilter("e2aa", bad[0], bad[1], false); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	// Its reservation remembers the change for who asks for the same.
	if err := l.rm("e2aa"); err != nil {
		t.Fatal(err)
	}
	if err := l.run("e3aa", "172.31.0.3/16", "extip.address", "203.0.113.57", "extip.ports", "all", "extip.allow", "192.0.2.0/24", "extip.refuse", "reject", "extip.reservation", "mail"); err != nil {
		t.Fatal(err)
	}
	expect("started again", map[string]string{"e3aa": changed["e2aa"]})
	// Without its records.
	if err := l.store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.start()
	expect("rebuilt", map[string]string{"e1aa": first["e1aa"], "e3aa": changed["e2aa"]})
}

// TestLostFilter: a filter that doesn't fit into a link's note is noted as one
// that lets nobody in.
func TestLostFilter(t *testing.T) {
	var f store.Filter
	for i := range 100 {
		f.Ports = append(f.Ports, store.Ports{Proto: "tcp", First: uint16(1000 + 2*i), Last: uint16(1000 + 2*i)})
	}
	e := store.Endpoint{ID: epID, Network: netID, Filter: f, Addresses: []netip.Prefix{netip.MustParsePrefix("172.31.0.2/16")}}
	got, err := notedEndpoint(link.Found{Owner: epID, Note: endpointNote(e)})
	if err != nil || allowText(got.Filter.Allow) != "0.0.0.0/32,::/128" {
		t.Errorf("%+v, %v", got.Filter, err)
	}
}
