package driver

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extip/extip/announce"
	"github.com/extip/extip/nat"
)

// TestView: what is told of addresses and networks, in the form that programs
// read.
func TestView(t *testing.T) {
	l := operated(t)
	e := l.endpoints[ep1]
	e.rec.Name = "web"
	began := e.rec.Created
	if _, err := l.Move(t.Context(), addr("203.0.113.61"), ep2, true, false); err != nil {
		t.Fatal(err)
	}
	l.Conflict(announce.Conflict{Parent: "br-ex", Address: addr("203.0.113.60"), MAC: stranger, Defended: true})
	l.withhold(e, addr("203.0.113.60"), "waits for br-ex")
	if err := l.endpoint(ep3, "172.31.0.4/16"); err != nil {
		t.Fatal(err)
	}
	text := func(v any) string {
		b, err := json.MarshalIndent(v, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	list := l.Addresses()
	if list[1].Since != began || list[1].Conflicts.Last.IsZero() {
		t.Errorf("%+v", list[1])
	}
	for i := range list {
		if d := time.Since(list[i].Since); d < 0 || d > time.Hour {
			t.Errorf("%s: since %s", list[i].External, list[i].Since)
		}
		list[i].Since = time.Time{}
		if list[i].Conflicts != nil {
			list[i].Conflicts.Last = time.Time{}
		}
		if list[i].State == StateDraining {
			list[i].Reason = list[i].Reason[:strings.LastIndex(list[i].Reason, " ")]
		}
	}
	want := `[
 {"external": "203.0.113.56", "internal": "172.31.0.4", "endpoint": "bbbb3333", "network": "` + netID + `", "parent": "br-ex", "on": "br-ex", "port": "xipbbbb3333",
  "state": "plumbed", "reason": "its container is being started, or has stopped", "source": "client", "egress": "external", "since": "0001-01-01T00:00:00Z"},
 {"external": "203.0.113.60", "internal": "172.31.0.2", "container": "web", "endpoint": "aaaa1111", "network": "` + netID + `", "parent": "br-ex", "on": "br-ex", "port": "xipaaaa1111",
  "state": "withheld", "reason": "it waits for br-ex", "source": "client", "egress": "external", "since": "0001-01-01T00:00:00Z",
  "conflicts": {"mac": "02:00:00:00:00:99", "count": 1, "last": "0001-01-01T00:00:00Z"}},
 {"external": "203.0.113.61", "internal": "172.31.0.3", "endpoint": "aaaa2222", "network": "` + netID + `", "parent": "br-ex", "on": "br-ex", "port": "xipaaaa2222",
  "state": "published", "source": "client", "egress": "other", "since": "0001-01-01T00:00:00Z"},
 {"external": "203.0.113.61", "internal": "172.31.0.2", "container": "web", "endpoint": "aaaa1111", "network": "` + netID + `", "parent": "br-ex", "port": "xipaaaa1111",
  "state": "draining", "reason": "what was connected before stays until it ends, or", "source": "client", "since": "0001-01-01T00:00:00Z"},
 {"external": "203.0.113.70", "internal": "172.31.0.3", "endpoint": "aaaa2222", "network": "` + netID + `", "parent": "br-ex", "on": "br-ex", "port": "xipaaaa2222",
  "state": "published", "source": "client", "egress": "external", "since": "0001-01-01T00:00:00Z"}
]`
	if diff := cmp.Diff(text(json.RawMessage(want)), text(list)); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	want = `[{"id": "` + netID + `", "bridge": "xip-02b1c3d4e5f", "parent": "br-ex", "on": "br-ex", "gateways": ["172.31.0.1/16"], "subnets": ["172.31.0.0/16"],
  "pool": "203.0.113.56-203.0.113.58", "size": 3, "free": 2, "mtu": 1450, "auto": true, "source": "client", "egress": "external", "dad": "fast",
  "alias": "parent", "conflict": "keep", "limit": "none", "icc": true, "endpoints": 3, "external": 4}]`
	if diff := cmp.Diff(text(json.RawMessage(want)), text(l.NetworkInfos())); diff != "" {
		t.Errorf("networks (-want +got):\n%s", diff)
	}
	if got := text(newLab(t).Addresses()) + text(newLab(t).NetworkInfos()); got != "[][]" {
		t.Errorf("of nothing: %s", got)
	}
}

// TestCounted: what was counted is told of addresses that lead to their
// container, and what can't be read keeps no address from being told of.
func TestCounted(t *testing.T) {
	l := operated(t)
	if _, err := l.Move(t.Context(), addr("203.0.113.61"), ep2, true, false); err != nil {
		t.Fatal(err)
	}
	n := nat.Counters{Refused: nat.Traffic{Packets: 7, Bytes: 420}, Incoming: 5, Outgoing: 3}
	l.host.Count(addr("203.0.113.61"), n, nil)
	list, err := l.Counted()
	if err != nil || len(list) != 4 {
		t.Fatal(list, err)
	}
	for _, a := range list {
		want := &nat.Counters{}
		switch {
		case a.State == StateDraining:
			want = nil
		case a.External == addr("203.0.113.61"):
			want = &n
		}
		if diff := cmp.Diff(want, a.Counters); diff != "" {
			t.Errorf("%s, %s (-want +got):\n%s", a.External, a.State, diff)
		}
	}
	broken := errors.New("no answer")
	l.host.Count(addr("203.0.113.61"), n, broken)
	if list, err := l.Counted(); len(list) != 4 || !errors.Is(err, broken) {
		t.Errorf("unreadable: %v, %v", list, err)
	}
}
