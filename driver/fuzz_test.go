package driver

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/extip/extip/link"
	"github.com/extip/extip/store"
)

// FuzzCalls has anything come over the engine's socket. Nothing panics, and what
// is refused leaves machine and records as they were.
func FuzzCalls(f *testing.F) {
	recordings, err := filepath.Glob("testdata/docker-*.jsonl")
	if err != nil || len(recordings) == 0 {
		f.Fatalf("recordings %v, %v", recordings, err)
	}
	for _, file := range recordings {
		content, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for line := range bytes.Lines(content) {
			var call struct {
				Path string
				Body json.RawMessage
			}
			if err := json.Unmarshal(line, &call); err != nil {
				f.Fatal(err)
			}
			f.Add(strings.TrimPrefix(call.Path, "/NetworkDriver."), []byte(call.Body))
		}
	}
	for _, m := range methods {
		f.Add(m, []byte(`{"NetworkID":"`+netID+`","EndpointID":"`+epID+`","Options":{"com.docker.network.generic":{"extip.pool":"203.0.113.1/0"}}}`))
		f.Add(m, []byte(`{"NetworkID":"n","EndpointID":"e","Interface":null,"Options":null,"IPv4Data":[null]}`))
	}
	f.Fuzz(func(t *testing.T, method string, body []byte) {
		if strings.ContainsFunc(method, func(r rune) bool { return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') }) {
			t.Skip("no path")
		}
		l := newLab(t)
		l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56")
		if err := l.run(epID, "172.31.0.2/16"); err != nil {
			t.Fatal(err)
		}
		before := l.host.String() + l.recorded()
		status, answer := serveLab(t, l)("/NetworkDriver."+method, string(body))
		if strings.Contains(answer, "internal error") {
			t.Errorf("%s %q: %s", method, body, answer)
		}
		if after := l.host.String() + l.recorded(); status >= 400 && after != before {
			t.Errorf("%s %q: %d, %s\nleaves\n%s\nof\n%s", method, body, status, answer, after, before)
		}
	})
}

// FuzzOptions: a name that is accepted is safe wherever rules and commands are
// made of it.
func FuzzOptions(f *testing.F) {
	for _, o := range Options() {
		for _, v := range []string{"", "true", "none", "203.0.113.56-203.0.113.62,!203.0.113.60", "2001:db8::/64", "tcp/22,udp/53", "connections=20000,rate=500/s", "rate=1000001/s,rate", "a b", "x;reboot", "\"'`$(x)\n"} {
			f.Add(o.Key, v)
		}
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		given := map[string]any{key: value}
		if o, _, err := decodeNetwork(given); err == nil {
			safe(t, o.parent)
			safe(t, o.bridge)
			safe(t, o.pool.String())
		}
		if o, err := decodeEndpoint(given); err == nil {
			safe(t, o.reservation)
			again, err := parseLimit(limitText(o.filter.Limit))
			if err != nil || again != o.filter.Limit {
				t.Errorf("%+v is read again as %+v, %v", o.filter.Limit, again, err)
			}
		}
	})
}

func safe(t *testing.T, name string) {
	t.Helper()
	for _, c := range []byte(name) {
		if c <= ' ' && !strings.Contains(name, ",") || c >= 0x7f || strings.IndexByte("/:\"'\\", c) >= 0 && netipLike(name) == false {
			t.Errorf("%q is accepted", name)
		}
	}
}

// netipLike tells whether a text has only what addresses and their lists have.
func netipLike(s string) bool {
	return strings.Trim(s, "0123456789abcdef.:/-,! ") == ""
}

// FuzzNotes: whatever stands on a link, reading it is no danger; and what is
// written is read again.
func FuzzNotes(f *testing.F) {
	f.Add("network=02b1c3d4e5f6 ip=172.31.0.2/16 external=203.0.113.56 source=client egress=external mac=02:00:00:00:00:77 reservation=mail")
	f.Add("network=02b1c3d4e5f6 ip=172.31.0.2/16 ports=tcp/22 allow=everyone refuse=drop limit=connections=20000,rate=500/s")
	f.Add("network= ip=,, external=, source==")
	f.Add("parent=br-ex source=client egress=external dad=fast alias=parent conflict=keep auto=true icc=true internal=false spoof=allow pool=203.0.113.0/24")
	f.Fuzz(func(t *testing.T, note string) {
		d := &Driver{}
		_, _ = d.noted("xip-1", link.Found{Owner: "n", Note: note, IsBridge: true, Addresses: []netip.Prefix{netip.MustParsePrefix("172.31.0.1/16")}})
		e, err := notedEndpoint(link.Found{Owner: "e", Note: note})
		if err != nil || strings.ContainsAny(string(e.Source)+string(e.Egress)+e.Reservation+e.MAC+e.Network, " =") {
			return
		}
		again, err := notedEndpoint(link.Found{Owner: "e", Note: endpointNote(e)})
		if err != nil {
			t.Fatalf("%q becomes %q: %v", note, endpointNote(e), err)
		}
		e.Created = again.Created
		e.Network, again.Network = short(e.Network), short(again.Network)
		if diff := cmp.Diff(e, again, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreFields(store.Endpoint{}, "Reservation")); diff != "" {
			t.Errorf("%q (-want +got):\n%s", note, diff)
		}
	})
}
