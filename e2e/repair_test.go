package e2e

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// byHint has damage repaired because it is noticed, or not at all.
var byHint = []string{"--reconcile-interval", "24h"}

// TestRepair has the host's network damaged in the ways that happen, and
// logs how long it takes until new connections work again: a second at most,
// where the machine isn't busy.
func TestRepair(t *testing.T) {
	t.Parallel()
	eachVariant(t, func(t *testing.T, o options) {
		o.plugin = byHint
		lab := newLab(t, o)
		lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62", "com.docker.network.bridge.name=br-web")
		web := lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
		running := ours(lab.host.Dump())
		sh := func(script string) func() { return func() { lab.must("sh", "-c", script) } }
		for _, tt := range []struct {
			name   string
			damage func()
		}{
			{"iptables -F; iptables -t nat -F", sh("iptables -F; iptables -t nat -F")},
			{"nft flush ruleset", sh("nft flush ruleset")},
			{"ip addr flush dev br-ex", func() {
				lab.must("ip", "addr", "flush", "dev", "br-ex")
				lab.must("ip", "addr", "add", hostAddr+"/24", "dev", "br-ex")
			}},
			{"parent down and up", sh("ip link set br-ex down; ip link set br-ex up")},
			{"bridge deleted", sh("ip link del br-web")},
			{"alias deleted", sh("ip addr del 203.0.113.56/32 dev br-ex")},
			{"all of it", sh("nft flush ruleset; iptables -t nat -F; ip link del br-web; ip addr del 203.0.113.56/32 dev br-ex")},
		} {
			took := repairTime(t, lab.outside, "203.0.113.56:80", "web saw "+outsideAddr, tt.damage)
			t.Logf("%-8s iptables-%-6s %-32s works again after %v", o.backend, o.flavour, tt.name, took.Round(time.Millisecond))
			eventually(t, "everything of extip's is as before", func() bool { return ours(lab.host.Dump()) == running })
			ask(t, []question{
				{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr},
				{lab.outside, "icmp", "203.0.113.56", "ttl 63"},
			})
			// nft flush ruleset takes the engine's rules, too, and
			// the parent's flush the default route.
			lab.try("ip", "route", "replace", "default", "via", outsideAddr)
			ask(t, []question{{web, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"}})
		}
	})
}

var marked = regexp.MustCompile(`(?i)xip|br-web|172\.31\.|203\.0\.113\.5`)

// ours is what a dump shows of extip, sorted: a bridge that is made anew
// stands elsewhere.
func ours(dump string) string {
	var lines []string
	for line := range strings.Lines(dump) {
		if marked.MatchString(line) {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
