package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extip/extip/internal/nettest"
)

// guestAddr is whom an operator wants to keep out.
const guestAddr = "203.0.113.201"

// A ban is something that an operator tells a firewall, to keep the guest, or
// everybody from port 8080, away from the container's external address.
type ban struct {
	wall string
	// rule is as in docs/firewalls.md, undo takes it back.
	rule, undo string
	// sees is the address that it has to name: external or internal; any if
	// it names none.
	sees string
	// says is whether it has its say.
	says bool
}

func bans() []ban {
	iptables := func(rule, sees string, says bool) ban {
		return ban{"iptables", "iptables " + rule, "iptables " + strings.NewReplacer("-I ", "-D ", "-A ", "-D ").Replace(rule), sees, says}
	}
	nft := func(hook, priority, match, sees string, says bool) ban {
		return ban{"nftables", "nft 'table ip mine { chain c { type filter hook " + hook + " priority " + priority + "; " + match + " drop; }; }'",
			"nft delete table ip mine", sees, says}
	}
	ufw := func(rule, sees string, says bool) ban {
		return ban{"ufw", "ufw " + rule, strings.Replace("ufw delete "+rule, "delete route", "route delete", 1), sees, says}
	}
	firewalld := func(rule, undo, sees string, says bool) ban {
		return ban{"firewalld", "firewall-cmd " + rule, "firewall-cmd " + undo, sees, says}
	}
	direct := func(rule, sees string, says bool) ban {
		return firewalld("--direct --add-rule "+rule, "--direct --remove-rule "+rule, sees, says)
	}
	return []ban{
		iptables("-I DOCKER-USER -s 203.0.113.201 -j DROP", "any", true),
		iptables("-I DOCKER-USER -d 172.31.0.2 -p tcp --dport 8080 -j DROP", "internal", true),
		iptables("-I DOCKER-USER -d 203.0.113.56 -j DROP", "internal", false),
		iptables("-I DOCKER-USER -p tcp -m conntrack --ctorigdst 203.0.113.56 --ctorigdstport 8080 -j DROP", "internal", true),
		iptables("-I FORWARD -s 203.0.113.201 -j DROP", "any", true),
		iptables("-A FORWARD -s 203.0.113.201 -j DROP", "any", false),
		iptables("-I INPUT -d 203.0.113.56 -j DROP", "external", false),
		iptables("-t raw -I PREROUTING -s 203.0.113.201 -d 203.0.113.56 -j DROP", "external", true),
		iptables("-t mangle -I PREROUTING -d 203.0.113.56 -p tcp --dport 8080 -j DROP", "external", true),
		iptables("-t mangle -A FORWARD -d 172.31.0.2 -p tcp --dport 8080 -j DROP", "internal", true),
		nft("prerouting", "-300", "ip saddr 203.0.113.201 ip daddr 203.0.113.56", "external", true),
		nft("prerouting", "-150", "ip daddr 203.0.113.56 tcp dport 8080", "external", true),
		nft("prerouting", "0", "ip daddr 203.0.113.56 tcp dport 8080", "internal", false),
		nft("forward", "0", "ip daddr 172.31.0.2 tcp dport 8080", "internal", true),
		nft("forward", "10", "ip saddr 203.0.113.201", "any", true),
		nft("input", "0", "ip daddr 203.0.113.56", "external", false),
		ufw("deny from 203.0.113.201", "any", false),
		ufw("route deny from 203.0.113.201", "any", true),
		ufw("route deny proto tcp from any to 172.31.0.2 port 8080", "internal", true),
		firewalld("--zone=drop --add-source=203.0.113.201", "--zone=drop --remove-source=203.0.113.201", "any", false),
		firewalld("--add-rich-rule='rule family=ipv4 source address=203.0.113.201 drop'", "--remove-rich-rule='rule family=ipv4 source address=203.0.113.201 drop'", "any", false),
		direct("ipv4 filter DOCKER-USER 0 -s 203.0.113.201 -j DROP", "any", true),
		direct("ipv4 raw PREROUTING 0 -d 203.0.113.56 -p tcp --dport 8080 -j DROP", "external", true),
	}
}

// TestFirewallsDoc holds the table in docs/firewalls.md to the bans.
func TestFirewallsDoc(t *testing.T) {
	var rows []string
	for _, b := range bans() {
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s |", b.rule, b.sees, map[bool]string{true: "yes", false: "no"}[b.says]))
	}
	_, after, _ := strings.Cut(firewallsDoc(t), "|---|---|---|\n")
	have, _, _ := strings.Cut(after, "\n\n")
	if diff := cmp.Diff(strings.Join(rows, "\n"), have); diff != "" {
		t.Errorf("docs/firewalls.md (-want +got):\n%s", diff)
	}
}

func firewallsDoc(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile("../docs/firewalls.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

var (
	inTable   = regexp.MustCompile(`^table \S+ (\S+) \{`)
	inChain   = regexp.MustCompile(`^\s*chain (\S+) \{`)
	baseChain = regexp.MustCompile(`type \w+ hook (prerouting|input|forward|postrouting) priority (-?\d+);`)
)

// checkPicture holds the picture in docs/firewalls.md to the hooks that are in
// use on the host.
func (l *lab) checkPicture(t *testing.T) {
	t.Helper()
	doc := firewallsDoc(t)
	var table, chain string
	for line := range strings.Lines(l.must("nft", "-y", "list", "ruleset")) {
		if m := inTable.FindStringSubmatch(line); m != nil {
			table = m[1]
		}
		if m := inChain.FindStringSubmatch(line); m != nil {
			chain = m[1]
		}
		hook := baseChain.FindStringSubmatch(line)
		if hook == nil || table == "mine" || strings.Contains(line, "priority -310") { // the guard's, of bridges
			continue
		}
		owner := table + " " + chain
		if table != "extip" && table != "firewalld" {
			owner = "iptables " + owner
		}
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^[ │]*%s +%s +%s\b`, hook[1], hook[2], owner)).MatchString(doc) {
			t.Errorf("the picture lacks %s %s %s", hook[1], hook[2], owner)
		}
	}
}

// A wall is a firewall that the operator of a host runs.
type wall struct {
	name string
	// start starts it, before the engine.
	start func(l *lab)
	// keep bans the guest for good, with the wall's own means.
	keep string
	// reloads are what its operator does with it.
	reloads []reload
}

type reload struct {
	name string
	do   func(l *lab)
	// off says that the firewall keeps nobody out then.
	off bool
}

// command is a reload by what is typed for it.
func command(line string, off bool) reload {
	return reload{line, func(l *lab) { l.must("sh", "-c", line) }, off}
}

const mine = `flush ruleset
table inet mine {
	chain input { type filter hook input priority 0; policy accept; }
	chain forward {
		type filter hook forward priority 0; policy drop;
		ip saddr 203.0.113.201 drop
		ct state established,related accept
		ct status dnat accept
		iifname "br-web" accept
	}
}
`

func walls() []wall {
	var firewalld *daemon
	return []wall{
		{name: "iptables", reloads: []reload{command("iptables-restore < /run/saved", false)}, keep: "iptables -t raw -A PREROUTING -s 203.0.113.201 -j DROP",
			start: func(l *lab) { l.must("sh", "-c", "iptables-save > /run/saved") }},
		{name: "nftables", reloads: []reload{command("nft -f /run/nftables.conf", false)}, keep: "nft -f /run/nftables.conf",
			start: func(l *lab) { install(l.t, []byte(mine), l.path("/run/nftables.conf")) }},
		{name: "ufw", reloads: []reload{command("ufw reload", false), command("ufw disable", true), command("ufw --force enable", false)}, keep: "ufw route deny from 203.0.113.201",
			start: func(l *lab) { l.must("sh", "-c", "ufw allow 22 && ufw --force enable") }},
		{name: "firewalld", keep: "firewall-cmd --permanent --direct --add-rule ipv4 raw PREROUTING 0 -s 203.0.113.201 -j DROP",
			start: func(l *lab) {
				firewalld = l.startFirewalld()
				l.must("sh", "-c", "firewall-cmd -q --permanent --add-port=22/udp; firewall-cmd -q --permanent --zone=trusted --add-interface=br-web; firewall-cmd --reload")
			},
			reloads: []reload{
				command("firewall-cmd --reload", false),
				command("firewall-cmd --complete-reload", false),
				{"firewalld stops", func(*lab) { firewalld.signal("TERM") }, true},
				{"firewalld starts", func(l *lab) { l.runFirewalld(firewalld) }, false},
			},
		},
	}
}

// TestFirewalls has extip stand beside each firewall: external addresses work,
// what the operator forbids where it has its say is forbidden, and whatever is
// done with the firewall, the addresses work again, after what the log says, and
// the host never answers in the container's place.
func TestFirewalls(t *testing.T) {
	t.Parallel()
	for _, w := range walls() {
		for _, backend := range []string{"nftables", "iptables"} {
			t.Run(w.name+"/"+backend, func(t *testing.T) {
				o := options{backend: backend, plugin: byHint}
				if backend == "nftables" {
					o.plugin = append([]string{"--accounting"}, byHint...)
				}
				lab := newWalled(t, o)
				w.start(lab)
				lab.startEngine()
				lab.startPlugin()
				lab.host.Serve(22)
				guest := lab.lan.Attach("guest", guestAddr+"/24")
				lab.dual("web", "172.31.0.0/16", "2001:db8:31::/64", "extip.ports=tcp/1-65535,udp/1-65535,icmp", "extip.limit=rate=10000/s", "extip.pool=203.0.113.56-203.0.113.62,2001:db8::56-2001:db8::5f", "com.docker.network.bridge.name=br-web")
				web := lab.run("web", "--network", "name=web,\"driver-opt=extip.address=203.0.113.56,2001:db8::56\"")
				works := func(guestSees string) {
					t.Helper()
					ask(t, []question{
						{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr},
						{lab.outside, "udp", "203.0.113.56:8080", "web saw " + outsideAddr},
						{lab.outside, "icmp", "203.0.113.56", "ttl 63"},
						{lab.outside, "tcp", "[2001:db8::56]:80", "web saw " + outsideAddr6},
						{web, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
						{web, "tcp", "[" + outsideAddr6 + "]:80", "outside saw 2001:db8::56"},
						{guest, "tcp", "203.0.113.56:80", guestSees},
					})
				}
				works("web saw " + guestAddr)
				lab.checkPicture(t)
				for _, b := range bans() {
					if b.wall == w.name {
						b.try(t, lab, guest)
					}
				}
				lab.must("sh", "-c", w.keep)
				for _, r := range w.reloads {
					watch := watchPort(t, lab.outside, "tcp", "203.0.113.56:22")
					took := repairTime(t, lab.outside, "203.0.113.56:80", "web saw "+outsideAddr, func() { r.do(lab) })
					time.Sleep(300 * time.Millisecond)
					asked, answered, longest := watch.stop()
					t.Logf("%-8s %-32s works after %v; %d questions to the host, %d answers, for at most %v", backend, r.name, took.Round(time.Millisecond), asked, answered, longest)
					if asked == 0 || answered > 0 {
						t.Errorf("%s: of %d questions, the host answers %d on an external address", r.name, asked, answered)
					}
					guestSees := ""
					if r.off {
						guestSees = "web saw " + guestAddr
					}
					works(guestSees)
				}
			})
		}
	}
}

// try bans, and sees what comes of it; nobody else must be kept out.
func (b ban) try(t *testing.T, l *lab, guest *nettest.Node) {
	t.Helper()
	l.must("sh", "-c", b.rule)
	defer l.must("sh", "-c", b.undo)
	banned, other := question{guest, "tcp", "203.0.113.56:80", "web saw " + guestAddr}, question{l.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr}
	if strings.Contains(b.rule, "8080") {
		banned = question{l.outside, "tcp", "203.0.113.56:8080", "web saw " + outsideAddr}
	}
	if b.says {
		banned.want = ""
	}
	for _, q := range []question{banned, other} {
		if got := q.ask(); got != q.want {
			t.Errorf("%s: %s asks %s: got %q, want %q", b.rule, q.from.Name, q.addr, got, q.want)
		}
	}
}
