package e2e

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// extip runs the program on the host, which must succeed.
func (l *lab) extip(args ...string) string {
	l.t.Helper()
	return l.must(append([]string{"extip"}, args...)...)
}

// status is the external addresses with their containers and states, as the
// program prints them for programs.
func (l *lab) status() map[string]string {
	l.t.Helper()
	var list []struct{ External, Internal, Container, NetworkName, State string }
	out := strings.ReplaceAll(l.extip("status", "--json"), "network_name", "NetworkName")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		l.t.Fatal(err)
	}
	have := map[string]string{}
	for _, a := range list {
		have[a.External] = strings.Join([]string{a.Internal, a.Container, a.NetworkName, a.State}, " ")
	}
	return have
}

// TestCLI operates a host as one would: it looks, attaches, detaches, moves and
// reserves, beside a flow that loses no packet by it.
func TestCLI(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{plugin: []string{"--metrics", "127.0.0.1:9323"}})
	before := lab.host.Dump()
	if got := lab.extip("status"); got != "no container has an external address" {
		t.Errorf("of nothing: %q", got)
	}
	events := lab.command("extip", "events", "--json")
	log, err := os.Create(filepath.Join(lab.dir, "events"))
	if err != nil {
		t.Fatal(err)
	}
	events.Stdout = log
	if err := events.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = events.Process.Kill()
		_ = events.Wait()
	})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	web := lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	lab.run("mail", "--network", "name=web,driver-opt=extip.address=203.0.113.57")
	in, out := startFlow(t, lab.outside, "203.0.113.56:80"), startFlow(t, web, outsideAddr+":80")

	// Names come from the engine, a moment after the container is there.
	want := map[string]string{"203.0.113.56": "172.31.0.2 web web published", "203.0.113.57": "172.31.0.3 mail web published"}
	eventually(t, "the names are known", func() bool { return cmp.Equal(want, lab.status()) })
	for args, want := range map[string]string{
		"status":            "203.0.113.56  172.31.0.2  web        web      " + lab.parent + "   published",
		"show 203.0.113.57": "container    mail",
		"show web":          "internal     172.31.0.2",
		"networks":          "203.0.113.56-203.0.113.62  5/7",
		"check":             "the kernel is as recorded",
		"reservations":      "nothing is reserved",
		"reconcile":         "nothing to do",
	} {
		if got := lab.extip(strings.Fields(args)...); !strings.Contains(got, want) {
			t.Errorf("%s: no %q in:\n%s", args, want, got)
		}
	}
	if got := lab.extip("version"); !strings.Contains(got, "\nplugin ") {
		t.Errorf("version: %s", got)
	}

	// A dry run says what would be, and changes nothing.
	running := lab.host.Dump()
	if got := lab.extip("attach", "web", "203.0.113.60", "--dry-run"); !strings.Contains(got, "203.0.113.60") {
		t.Errorf("a dry attach: %s", got)
	}
	lab.unchanged(running)

	lab.extip("attach", "web", "203.0.113.60")
	ask(t, []question{
		{lab.outside, "tcp", "203.0.113.60:80", "web saw " + outsideAddr},
		{lab.outside, "udp", "203.0.113.56:80", "web saw " + outsideAddr},
		{web, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
	})
	if got, err := lab.try("extip", "attach", "mail", "203.0.113.60"); err == nil || !strings.Contains(got, "web") {
		t.Errorf("an address that web has: %v, %s", err, got)
	}
	if got := lab.extip("check"); got != "the kernel is as recorded" {
		t.Error(got)
	}
	lab.extip("detach", "203.0.113.60")
	ask(t, []question{
		{lab.outside, "tcp", "203.0.113.60:80", ""},
		{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr},
	})
	lab.unchanged(running)

	lab.extip("reserve", "shop", "203.0.113.61")
	if got := lab.extip("reservations"); !strings.Contains(got, "shop  203.0.113.61") {
		t.Error(got)
	}
	if out, err := lab.tryDocker("run", "--rm", "--network", "name=web,driver-opt=extip.address=203.0.113.61", probeImage, "/probe", "sleep"); err == nil || !strings.Contains(out, "shop") {
		t.Errorf("an address that is reserved: %v, %s", err, out)
	}
	lab.run("shop", "--network", "name=web,driver-opt=extip.reservation=shop")
	ask(t, []question{{lab.outside, "tcp", "203.0.113.61:80", "shop saw " + outsideAddr}})
	lab.extip("unreserve", "shop")

	scrape := lab.scrape("127.0.0.1:9323")
	for _, want := range []string{
		`extip_call_duration_seconds_count{call="Join",result="ok"} 3`, `extip_call_duration_seconds_count{call="CreateEndpoint",result="error"} 1`,
		`state="published"} 3`, `extip_pool_size{network="`, `"} 7`, `extip_repairs_total{cause="timer"} 0`,
		`extip_address_new_connections_total{address="203.0.113.61",direction="in"} 1`,
	} {
		if !strings.Contains(scrape, want) {
			t.Errorf("no %s in:\n%s", want, grep(scrape, "extip_"))
		}
	}

	lostNone(t, "attach, detach, reserve", map[string]*flow{"in": in, "out": out})
	lab.docker("rm", "-f", "web", "mail", "shop")
	lab.docker("network", "rm", "web")
	lab.unchanged(before)
	_ = events.Process.Kill()
	_ = events.Wait()
	text, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"network-created", "claimed", "published", "withdrawn", "released", "reserved", "unreserved", "network-removed"} {
		if !strings.Contains(string(text), `"kind":"`+kind+`"`) {
			t.Errorf("no event %s in:\n%s", kind, text)
		}
	}
}

// TestAccounting: packets are counted where they are asked for, and by whom can.
func TestAccounting(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{backend: "nftables", plugin: []string{"--accounting"}})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62", "extip.ports=udp/80")
	lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	counted := func() (counters map[string]any) {
		t.Helper()
		var list []struct{ Counters map[string]any }
		if err := json.Unmarshal([]byte(lab.extip("show", "203.0.113.56", "--json")), &list); err != nil || len(list) != 1 {
			t.Fatal(err, list)
		}
		return list[0].Counters
	}
	ask(t, []question{{lab.outside, "udp", "203.0.113.56:80", "web saw " + outsideAddr}})
	const refused = 3
	for range refused {
		lab.outside.Throw("203.0.113.56:9", 10)
	}
	traffic := func(packets, bytes float64) map[string]any { return map[string]any{"packets": packets, "bytes": bytes} }
	want := map[string]any{
		"incoming": 1.0, "outgoing": 0.0, "limited_in": 0.0, "limited_out": 0.0, "refused": traffic(refused, refused*(20+8+10)),
		"received": traffic(1, 20+8+1), "sent": traffic(1, float64(20+8+len("web saw "+outsideAddr))),
	}
	eventually(t, "all is counted", func() bool { return cmp.Equal(want, counted()) })
	lab.must("nft", "flush", "ruleset")
	eventually(t, "the rules are back", func() bool { return lab.outside.Ask("udp", "203.0.113.56:80") != "" })
	if got := counted(); got["incoming"].(float64) < 2 {
		t.Errorf("after a flush: %v", got)
	}
	if out, err := lab.try("extip", "serve", "--backend=iptables", "--accounting"); err == nil || !strings.Contains(out, "--accounting needs --backend=nftables") {
		t.Errorf("with iptables: %v, %s", err, out)
	}
}

// TestLive follows a real packet; what a plugin that is killed leaves of that goes
// when it is started.
func TestLive(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{backend: "nftables"})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	live := lab.command("extip", "trace", "--live", "203.0.113.56:80")
	log, err := os.Create(filepath.Join(lab.dir, "live"))
	if err != nil {
		t.Fatal(err)
	}
	live.Stdout = log
	if err := live.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = live.Process.Kill()
		_ = live.Wait()
	})
	tables := func() string { return lab.must("nft", "list", "tables") }
	eventually(t, "packets are followed", func() bool { return strings.Contains(tables(), "table ip extip-live") })
	ask(t, []question{{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr}})
	eventually(t, "what they meet is told", func() bool {
		b, err := os.ReadFile(log.Name())
		return err == nil && strings.Contains(string(b), " > 172.31.0.2:80 tcp syn\n") &&
			strings.Contains(string(b), "ip extip prerouting: accept: dnat to ip daddr map @ext2ctr\n")
	})
	lab.killPlugin()
	if !strings.Contains(tables(), "table ip extip-live") {
		t.Errorf("killed, it left nothing: the test shows nothing: %s", tables())
	}
	lab.startPlugin()
	eventually(t, "nothing is left of it", func() bool { return !strings.Contains(tables(), "extip-live") })
}

// scrape is what Prometheus would see on the host.
func (l *lab) scrape(addr string) string {
	l.t.Helper()
	var text []byte
	l.host.MustDo(func() error {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Write([]byte("GET /metrics HTTP/1.0\r\n\r\n")); err != nil {
			return err
		}
		text, err = io.ReadAll(c)
		return err
	})
	return string(text)
}

// TestMove moves an address under a running download, with and without --drain;
// the flow of an address beside it loses nothing.
func TestMove(t *testing.T) {
	t.Parallel()
	for _, drain := range []bool{false, true} {
		name := "break"
		if drain {
			name = "drain"
		}
		t.Run(name, func(t *testing.T) {
			lab := newLab(t, options{})
			before := lab.host.Dump()
			lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
			blue := lab.run("blue", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
			green := lab.run("green", "--network", "name=web,driver-opt=extip.address=203.0.113.57")
			serveDownloads(t, blue)
			serveDownloads(t, green)
			beside := startFlow(t, lab.outside, "203.0.113.57:80")
			running := startDownload(t, lab.outside, "203.0.113.56")
			if running.server != "blue" || !running.goesOn() {
				t.Fatal("no download")
			}
			args := []string{"move", "203.0.113.56", "green"}
			if drain {
				args = append(args, "--drain")
			}
			start := time.Now()
			lab.extip(args...)
			t.Logf("the whole command took %v; the plugin says:\n%s", time.Since(start), grep(lab.pluginLog(), "call=move"))
			if got := startDownload(t, lab.outside, "203.0.113.56"); got.server != "green" || !got.goesOn() {
				t.Errorf("a new download comes from %s", got.server)
			}
			ask(t, []question{
				{lab.outside, "tcp", "203.0.113.56:80", "green saw " + outsideAddr},
				{lab.outside, "udp", "203.0.113.56:80", "green saw " + outsideAddr},
			})
			if drain {
				if !running.goesOn() {
					t.Error("the download that ran broke")
				}
			} else if !running.broke() {
				t.Error("the download that ran goes on")
			}
			lostNone(t, "a move", map[string]*flow{"beside": beside})
			if got := lab.extip("check"); got != "the kernel is as recorded" {
				t.Error(got)
			}
			_ = running.conn.Close()
			// And back: what moved can move again.
			lab.extip("move", "203.0.113.56", "blue")
			ask(t, []question{
				{lab.outside, "tcp", "203.0.113.56:80", "blue saw " + outsideAddr},
				{lab.outside, "tcp", "203.0.113.57:80", "green saw " + outsideAddr},
			})
			lab.docker("rm", "-f", "blue", "green")
			lab.docker("network", "rm", "web")
			lab.unchanged(before)
		})
	}
}

// TestAttachToNone: a container gets its first address, and loses it, while it
// runs; its own connections follow.
func TestAttachToNone(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	web := lab.run("web", "--network", "name=web,driver-opt=extip.address=none")
	ask(t, []question{{web, "tcp", outsideAddr + ":80", "outside saw " + hostAddr}})
	lab.extip("attach", "web")
	ask(t, []question{
		{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr},
		{web, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
	})
	// A restart of the plugin knows of it.
	lab.killPlugin()
	lab.startPlugin()
	ask(t, []question{{web, "udp", outsideAddr + ":80", "outside saw 203.0.113.56"}})
	lab.extip("detach", "203.0.113.56")
	ask(t, []question{
		{lab.outside, "icmp", "203.0.113.56", ""},
		{web, "tcp", outsideAddr + ":80", "outside saw " + hostAddr},
	})
}

// grep returns the lines with a word in them.
func grep(text, word string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			b.WriteString(line)
		}
	}
	return b.String()
}
