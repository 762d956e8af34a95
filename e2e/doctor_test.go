package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extip/extip/doctor"
)

// findings are what the doctor says, but for what is well; fails tells whether it
// exits with an error.
func (l *lab) findings() (list []doctor.Finding, fails bool) {
	l.t.Helper()
	out, err := l.command("extip", "doctor", "--json").Output()
	if jerr := json.Unmarshal(out, &list); jerr != nil {
		l.t.Fatalf("%v: %s", jerr, out)
	}
	var bad []doctor.Finding
	for _, f := range list {
		if f.Level != doctor.OK {
			bad = append(bad, f)
		}
	}
	return bad, err != nil
}

// TestDoctor breaks a host in ways that extip can't mend: the doctor names the
// cause, a trace ends there, and the remedy helps.
func TestDoctor(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) { examined(t, options{backend: backend}) })
	}
}

func examined(t *testing.T, o options) {
	lab := newLab(t, o)
	lab.dual("web", "172.31.0.0/16", "2001:db8:31::/64", "extip.pool=203.0.113.56-203.0.113.62,2001:db8::56-2001:db8::5f")
	web := lab.run("web", "--network", "web")
	works := func() bool {
		return lab.outside.Ask("tcp", "203.0.113.56:80") == "web saw "+outsideAddr && web.Ask("tcp", outsideAddr+":80") == "outside saw 203.0.113.56"
	}
	eventually(t, "it works", works)
	if bad, fails := lab.findings(); fails {
		t.Errorf("of a fit host: %+v", bad)
	}
	if got := lab.extip("rules"); !strings.Contains(got, "203.0.113.56") || !strings.Contains(got, "2001:db8::56") {
		t.Errorf("rules:\n%s", got)
	}
	for _, target := range []string{"203.0.113.56:80", "[2001:db8::56]:80/udp"} {
		if out, err := lab.try("extip", "trace", target); err != nil {
			t.Errorf("trace %s: %v\n%s", target, err, out)
		}
	}
	for _, tt := range []struct{ broken, check, step string }{
		{"nft add table ip fw; nft add chain ip fw f '{ type filter hook forward priority 0; policy drop; }'", "filter", "forward"},
		{"ip link set eth0 down", "parent", "parent"},
	} {
		lab.must("sh", "-c", tt.broken)
		eventually(t, "it is broken", func() bool { return lab.outside.Ask("tcp", "203.0.113.56:80") == "" })
		bad, fails := lab.findings()
		remedy := ""
		for _, f := range bad {
			if f.Level == doctor.Fail && f.Check != tt.check {
				t.Errorf("%s: also %+v", tt.broken, f)
			}
			if f.Check == tt.check && remedy == "" {
				remedy = f.Remedy
			}
		}
		if !fails || remedy == "" {
			t.Errorf("%s: fails %t, %+v", tt.broken, fails, bad)
			return
		}
		out, err := lab.try("extip", "trace", "203.0.113.56:80")
		last := out[strings.LastIndex(out, "ENDS")+1:]
		if err == nil || !strings.Contains(last, tt.step) {
			t.Errorf("%s: trace %v\n%s", tt.broken, err, out)
		}
		lab.must("sh", "-c", remedy)
		eventually(t, "the remedy helps: "+remedy, works)
	}
	lab.must("nft", "delete", "table", "ip", "fw")
	file := filepath.Join(lab.dir, "extip.nft")
	if err := os.WriteFile(file, []byte(lab.extip("export")), 0o644); err != nil {
		t.Fatal(err)
	}
	lab.must("nft", "-c", "-f", file)
}
