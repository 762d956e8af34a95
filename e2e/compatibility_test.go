package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// forms are the ways in which extip runs beside an engine.
var forms = []string{"nftables", "iptables", "managed plugin"}

// TestCompatibility goes through the life of a container with extip in each
// form, beside the engine with each firewall that it can use. With
// EXTIP_TEST_COMPATIBILITY=FILE it notes in the file's table what works.
func TestCompatibility(t *testing.T) {
	t.Parallel()
	for _, firewall := range []string{"iptables-nft", "iptables-legacy", "nftables"} {
		var engine string
		row := []string{firewall}
		for _, form := range forms {
			t.Run(firewall+"/"+strings.ReplaceAll(form, " ", "-"), func(t *testing.T) {
				o := options{bare: true, backend: form, flavour: strings.TrimPrefix(firewall, "iptables-")}
				if firewall == "nftables" {
					o.flavour, o.daemon = "nft", `{"firewall-backend": "nftables"}`
				}
				lab := newLab(t, o)
				engine = lab.engineVersion()
				if firewall == "nftables" && major(engine) < 29 {
					t.Skip("engines before 29 have no nftables of their own")
				}
				if firewall == "nftables" {
					lab.host.Sysctl("ipv4.ip_forward", "1") // the engine insists, and doesn't do it
				}
				lab.startEngine()
				if form != "managed plugin" {
					lab.startPlugin()
					lab.life()
					row = append(row, "yes")
					return
				}
				m := &managed{lab: lab, t: t, name: "extip/plugin:one"}
				m.build(m.name, "1")
				lab.docker("plugin", "enable", m.name)
				if firewall == "iptables-legacy" {
					eventually(t, "the engine's log says what is not possible", m.engineLogs("iptables-legacy has rules here"))
					row = append(row, "no, and says so")
					return
				}
				lab.life()
				row = append(row, "yes")
			})
		}
		if file := os.Getenv("EXTIP_TEST_COMPATIBILITY"); file != "" && len(row) == 1+len(forms) {
			note(t, file, append([]string{engine}, row...))
		}
	}
}

// life makes a network and a container, has the engine start again, and removes
// both.
func (l *lab) life() {
	l.t.Helper()
	before := l.host.Dump()
	l.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	l.run("web", "--restart", "always", "--network", "name=web,driver-opt=extip.address=203.0.113.60")
	l.run("next", "--restart", "always", "--network", "name=web,ip=172.31.0.99")
	works := func() {
		l.t.Helper()
		for name, external := range map[string]string{"web": "203.0.113.60", "next": "203.0.113.56"} {
			eventually(l.t, name+" runs", func() bool { return answer(l.outside, external+":80") == name+" saw "+outsideAddr })
			for _, q := range []question{
				{l.outside, "tcp", external + ":80", name + " saw " + outsideAddr},
				{l.outside, "icmp", external, "ttl 63"},
				{l.container(name), "tcp", outsideAddr + ":80", "outside saw " + external},
			} {
				if got := q.ask(); got != q.want {
					l.t.Errorf("%s asks %s %s: got %q, want %q", q.from.Name, q.network, q.addr, got, q.want)
				}
			}
		}
	}
	works()
	l.stopEngine()
	l.startEngine()
	works()
	l.docker("network", "disconnect", "web", "next")
	l.docker("network", "connect", "--driver-opt", "extip.address=203.0.113.61", "web", "next")
	eventually(l.t, "next has another address", func() bool { return answer(l.outside, "203.0.113.61:80") == "next saw "+outsideAddr })
	l.docker("rm", "-f", "web", "next")
	l.docker("network", "rm", "web")
	l.sameButOrder(before)
}

// engineVersion is what the engine's program says, without starting it.
func (l *lab) engineVersion() string {
	l.t.Helper()
	out := l.must("dockerd", "--version")
	found := regexp.MustCompile(`version ([0-9.]+)`).FindStringSubmatch(out)
	if found == nil {
		l.t.Fatalf("no version in %q", out)
	}
	return found[1]
}

func major(version string) int {
	number, _, _ := strings.Cut(version, ".")
	n, _ := strconv.Atoi(number)
	return n
}

const tableHead = "| engine | its firewall | service, `--backend nftables` | service, `--backend iptables` | managed plugin |\n|---|---|---|---|---|\n"

// note puts a row in a file's table, in place of the one of that engine and
// firewall.
func note(t *testing.T, file string, row []string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	start, rest, ok := strings.Cut(string(content), tableHead)
	if !ok {
		t.Fatalf("%s has no table that begins with\n%s", file, tableHead)
	}
	var rows []string
	end := rest
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		rows, end = append(rows, strings.TrimSpace(line)), end[len(line):]
	}
	key := fmt.Sprintf("| %s | %s | ", row[0], row[1])
	rows = slices.DeleteFunc(rows, func(r string) bool { return strings.HasPrefix(r, key) })
	rows = append(rows, "| "+strings.Join(row, " | ")+" |")
	slices.SortStableFunc(rows, func(a, b string) int { return major(strings.TrimPrefix(a, "| ")) - major(strings.TrimPrefix(b, "| ")) })
	if err := os.WriteFile(file, []byte(start+tableHead+strings.Join(rows, "\n")+"\n"+end), 0o644); err != nil {
		t.Fatal(err)
	}
}
