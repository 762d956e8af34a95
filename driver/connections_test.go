package driver

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

func TestParseLimit(t *testing.T) {
	for in, want := range map[string]string{
		"none": "none", "connections=20000": "connections=20000", "rate=500/s": "rate=500/s", "connections=1,rate=1/s": "connections=1,rate=1/s",
		"rate=1000000/s,connections=10000000": "connections=10000000,rate=1000000/s",
	} {
		l, err := parseLimit(in)
		if got := limitText(l); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "all", "None", "connections", "connections=", "connections=0", "connections=-1", "connections=+1", "connections=1e3", "connections=10000001", "connections=99999999999",
		"rate=500", "rate=500/m", "rate=/s", "rate=0/s", "rate=1000001/s", "rate=5 /s", "5/s", "connections=5,", "connections=5 rate=5/s", "connections=5,none", "burst=5",
	} {
		if l, err := parseLimit(in); err == nil || !strings.Contains(err.Error(), "allowed are none, or connections=N and rate=N/s") || l != (store.Limit{}) {
			t.Errorf("%q: %+v, %v", in, l, err)
		}
	}
	for _, in := range []string{"connections=5,connections=6", "rate=5/s,rate=5/s"} {
		if _, err := parseLimit(in); err == nil || !strings.Contains(err.Error(), "twice") {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// TestConnectionLimits: what the options ask for becomes the mappings' limits, lives
// through restarts and the loss of the records, and can be changed.
func TestConnectionLimits(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.58", "extip.limit", "connections=20000")
	last := []string{"extip.address", "203.0.113.57", "extip.limit", "rate=500/s", "extip.ports", "tcp/22", "extip.reservation", "mail"}
	for id, kv := range map[string][]string{"e1aa": {"extip.address", "203.0.113.56"}, "e2aa": last} {
		if err := l.run(id, "172.31.0."+id[1:2]+"/16", kv...); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what string, want map[string]string) {
		t.Helper()
		for id, limit := range want {
			e := l.endpoints[id].rec
			m := l.host.Mappings()[e.External[0]]
			if got := limitText(e.Filter.Limit); got != limit || m.Limit != nat.Limit(e.Filter.Limit) {
				t.Errorf("%s: %s has %q, and is mapped with %+v, want %q", what, id, got, m.Limit, limit)
			}
		}
		for _, a := range l.Addresses() {
			if limit := want[a.Endpoint]; a.Limit != limit {
				t.Errorf("%s: %s shows %q, want %q", what, a.External, a.Limit, limit)
			}
		}
		if n := l.NetworkInfos(); len(n) != 1 || n[0].Limit != "connections=20000" {
			t.Errorf("%s: networks %+v", what, n)
		}
	}
	expect("started", map[string]string{"e1aa": "connections=20000", "e2aa": "rate=500/s"})
	l.restart()
	expect("restarted", map[string]string{"e1aa": "connections=20000", "e2aa": "rate=500/s"})
	machine := l.host.String()
	if r, err := l.SetLimit("e2aa", "connections=7", true); err != nil || len(r.Done) != 2 || l.host.String() != machine {
		t.Errorf("a dry run: %+v, %v", r, err)
	}
	if r, err := l.SetLimit("e2aa", "connections=7", false); err != nil || strings.Join(r.Done, "\n") != "- limit of e2aa: rate=500/s\n+ limit of e2aa: connections=7" {
		t.Errorf("changed: %+v, %v", r, err)
	}
	// Neither a filter nor a limit changes the other.
	if _, err := l.SetFilter("e2aa", "tcp/80", "", false); err != nil {
		t.Fatal(err)
	}
	changed := map[string]string{"e1aa": "connections=20000", "e2aa": "connections=7"}
	expect("changed", changed)
	if got := portsText(l.endpoints["e2aa"].rec.Filter.Ports); got != "tcp/80" {
		t.Errorf("ports are %s", got)
	}
	if r, err := l.SetLimit("e2aa", "connections=7", false); err != nil || len(r.Done) != 0 {
		t.Errorf("once more: %+v, %v", r, err)
	}
	l.host.FailAt = l.host.Writes() + 2
	if _, err := l.SetLimit("e2aa", "none", false); err == nil {
		t.Error("a failure is none")
	}
	expect("failed", changed)
	if _, err := l.SetLimit("e2aa", "few", false); err == nil || !strings.HasPrefix(err.Error(), `extip.limit=few: "few": allowed are none`) {
		t.Errorf("few: %v", err)
	}
	// Its reservation remembers the change for who asks for the same.
	if err := l.rm("e2aa"); err != nil {
		t.Fatal(err)
	}
	if err := l.run("e3aa", "172.31.0.3/16", last...); err != nil {
		t.Fatal(err)
	}
	changed = map[string]string{"e1aa": "connections=20000", "e3aa": "connections=7"}
	expect("started again", changed)
	// Without its records.
	if err := l.store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.start()
	expect("rebuilt", changed)
}

// TestNotedLimit: beside a filter that is too long for a link's note, a limit
// has room.
func TestNotedLimit(t *testing.T) {
	e := store.Endpoint{ID: epID, Network: netID, Addresses: []netip.Prefix{netip.MustParsePrefix("172.31.0.2/16")}}
	for i := range 100 {
		e.Filter.Ports = append(e.Filter.Ports, store.Ports{Proto: "tcp", First: uint16(1000 + 2*i), Last: uint16(1000 + 2*i)})
	}
	e.Filter.Limit = store.Limit{Connections: nat.MaxConnections, Rate: nat.MaxRate}
	got, err := notedEndpoint(link.Found{Owner: epID, Note: endpointNote(e)})
	if err != nil || got.Filter.Limit != e.Filter.Limit || len(got.Filter.Allow) != 2 {
		t.Errorf("%+v, %v", got.Filter, err)
	}
}
