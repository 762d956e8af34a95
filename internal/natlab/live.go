package natlab

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// RunLive has packets followed in a lab. follow follows a flow on the host while
// during does something, which may look at what was seen; it returns all that
// was, a line each: HEADER | FAMILY TABLE CHAIN | RULE | VERDICT.
func RunLive(t *testing.T, open func(*nettest.Node) nat.Backend,
	follow func(host *nettest.Node, flow nat.Flow, during func(seen func() []string)) []string,
) {
	l := New(t, Bare())
	if _, err := open(l.Host).Sync(FilterState()); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ c1, inside, c2, cli, family string }{
		{"192.0.2.51", "172.30.0.2", "192.0.2.52", "192.0.2.9", "ip"},
		{"2001:db8::51", "2001:db8:30::2", "2001:db8::52", "2001:db8::9", "ip6"},
	} {
		flow := nat.Flow{External: netip.MustParseAddr(x.c1), Internal: netip.MustParseAddr(x.inside), Port: 80, Proto: tcp}
		lines := follow(l.Host, flow, func(seen func() []string) {
			l.Check(t, "followed", []Probe{
				{"cli", "tcp", join(x.c1, 80), "c1 saw " + x.cli},
				{"cli", "tcp", join(x.c1, 81), ""}, // nobody listens
				{"cli", "tcp", join(x.c2, 80), "c2 saw " + x.cli},
			})
			l.await(t, "the answer is seen", func() bool {
				return slices.ContainsFunc(seen(), func(line string) bool {
					return strings.HasPrefix(line, join(x.inside, 80)+" > ") && strings.Contains(line, " tcp syn ack |")
				})
			})
		})
		expect := func(parts ...string) {
			t.Helper()
			if !slices.ContainsFunc(lines, func(line string) bool {
				return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) })
			}) {
				t.Errorf("no line with %q in:\n%s", parts, strings.Join(lines, "\n"))
			}
		}
		expect("> "+join(x.c1, 80)+" tcp syn |", "| "+x.family+" extip filter |", "vmap @filter_by_ext | jump check-")
		expect("| " + x.family + " extip prerouting | dnat to " + x.family + " daddr map @ext2ctr | accept")
		expect("> "+join(x.inside, 80)+" tcp syn |", "| "+x.family+" extip forward |")
		expect("| " + x.family + " extip into-n0 | ct status dnat accept | accept")
		expect(join(x.inside, 80)+" > ", " tcp syn ack |", "| "+x.family+" extip ")
		if i := slices.IndexFunc(lines, func(line string) bool {
			return strings.Contains(line, ":81 ") || strings.Contains(line, x.c2+":") || strings.Contains(line, x.c2+"]") || strings.Contains(line, liveMark)
		}); i >= 0 {
			t.Errorf("followed, too: %s", lines[i])
		}

		flow.Port, flow.Proto = 0, 0
		lines = follow(l.Host, flow, func(seen func() []string) {
			l.nodes["cli"].Throw(join(x.c1, 9), 10)
			l.await(t, "the datagram is seen", func() bool {
				return slices.ContainsFunc(seen(), func(line string) bool { return strings.HasSuffix(line, "| drop") })
			})
		})
		expect("> "+join(x.c1, 9)+" udp |", "extip filter")
		expect(x.family+" extip check-", x.family+" daddr @refused drop | drop")
	}
}

// liveMark is in the names of what follows packets itself.
const liveMark = "extip-live"

// await waits for something that takes a moment.
func (l *Lab) await(t *testing.T, what string, done func() bool) {
	t.Helper()
	const patience, pause = 30 * time.Second, 20 * time.Millisecond
	for deadline := time.Now().Add(patience); !done(); time.Sleep(pause) {
		if time.Now().After(deadline) {
			t.Fatalf("not within ten seconds: %s", what)
		}
	}
}
