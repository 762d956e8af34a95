package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

// The addresses of docs/routed.md.
const (
	routedAddr, routedAddr6 = "203.0.113.56", "2001:db8:56::56"
	clientAddr, clientAddr6 = "192.0.2.200", "2001:db8:200::200"
)

// TestRouted: two hosts that share no segment. Each has a link of its own to a
// router and tells it of the addresses on its lo: host1 by BIRD, host2 by FRR,
// with the configurations of docs/routed.md.
//
//	client ── router ─┬─ host1
//	                  └─ host2
func TestRouted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	host1, host2 := s.newHost(1, "nftables"), s.newHost(2, "iptables")
	s.startBIRD(host1)
	s.startFRR(host2)
	s.makeNetwork(host1, "extip.parent=lo", "extip.pool=203.0.113.56-203.0.113.59,2001:db8:56::56-2001:db8:56::5f")
	s.makeNetwork(host2, "extip.parent=eth0", "extip.alias=lo", "extip.dad=off", "extip.pool=203.0.113.60-203.0.113.63,2001:db8:56::60-2001:db8:56::6f")

	s.start(host1, "first")
	s.stop(host1, "first")
	s.start(host2, "second")
	s.stop(host2, "second")

	// Both have it, until one of them dies without a word.
	host1.docker("start", "first")
	host2.docker("start", "second")
	s.awaitRoutes("to both hosts", 1, 2)
	died := time.Now()
	host2.cutPower()
	s.awaitRoutes("to host1 only", 1)
	s.awaitAnswer("first")
	t.Logf("host2 died: the client reaches host1 after %v", time.Since(died))
}

// A site is a router with hosts on links of their own, and a client behind it.
type site struct {
	t              *testing.T
	client, router *nettest.Node
	programs       map[string]string // the routing daemons, by name
}

func newSite(t *testing.T) *site {
	t.Helper()
	requireEngine(t, os.Getenv("EXTIP_TEST_ENGINE"))
	s := &site{t: t, programs: map[string]string{}}
	for _, name := range []string{"bird", "zebra", "bfdd", "bgpd", "vtysh"} {
		s.programs[name] = routingDaemon(t, name)
	}
	lan := nettest.NamedSegment(t, "far")
	s.router = lan.Attach("router", "192.0.2.1/24", "2001:db8:200::1/64")
	s.client = lan.Attach("client", clientAddr+"/24", clientAddr6+"/64")
	s.router.Sysctl("ipv4.ip_forward", "1")
	s.router.Sysctl("ipv6.conf.all.forwarding", "1")
	s.client.Run("ip", "route", "add", "default", "via", "192.0.2.1")
	s.client.Run("ip", "route", "add", "default", "via", "2001:db8:200::1")
	s.client.Serve(80)

	conf := fromDoc(t, "# /etc/bird/bird.conf on the router", t.TempDir()+"/bird.conf")
	var log bytes.Buffer
	bird := s.router.Command(s.programs["bird"], "-d", "-c", conf, "-s", conf+".ctl")
	bird.Stdout, bird.Stderr = &log, &log
	if err := bird.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = bird.Process.Kill()
		_ = bird.Wait()
		if t.Failed() {
			t.Logf("output of the router's bird:\n%s", tail(log.String(), 60))
		}
	})
	return s
}

// routingDaemon is where a daemon's program is: on PATH, where FRR's package has
// it, or where scripts/test.sh unpacks it.
func routingDaemon(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/lib/frr", filepath.Join(cacheDir(), "routing", "bin")) {
		if path := filepath.Join(dir, name); exists(path) {
			return path
		}
	}
	nettest.Require(t, false, "the program "+name)
	return ""
}

// newHost is the nth host, with its link and without engine and plugin.
func (s *site) newHost(n int, backend string) *lab {
	s.t.Helper()
	router, host := s.ends(n)
	link := nettest.NamedSegment(s.t, fmt.Sprint("link", n))
	link.Plug(s.router, fmt.Sprint("eth", n), router[0]+"/30", router[1]+"/64")
	l := &lab{outside: s.client, t: s.t, lan: link, dir: s.t.TempDir(), opts: options{
		backend: backend, parent: "none", address: host[0], engine: os.Getenv("EXTIP_TEST_ENGINE"),
	}}
	l.chooseIptables()
	l.boot()
	l.host.Run("ip", "addr", "add", host[0]+"/30", "dev", "eth0")
	l.host.Run("ip", "addr", "add", host[1]+"/64", "dev", "eth0", "nodad")
	l.host.Run("ip", "route", "add", "default", "via", router[0])
	l.host.Run("ip", "route", "add", "default", "via", router[1])
	l.host.Sysctl("ipv4.conf.eth0.rp_filter", "1")
	return l
}

// ends are the addresses of both ends of a host's link.
func (s *site) ends(n int) (router, host [2]string) {
	return [2]string{fmt.Sprintf("198.51.100.%d", 4*n-3), fmt.Sprintf("2001:db8:%d::1", n)},
		[2]string{fmt.Sprintf("198.51.100.%d", 4*n-2), fmt.Sprintf("2001:db8:%d::2", n)}
}

func (s *site) startBIRD(l *lab) {
	s.t.Helper()
	conf := fromDoc(s.t, "# /etc/bird/bird.conf on host1", l.dir+"/bird.conf")
	const socket = "/run/bird.ctl"
	l.newDaemon("bird", socket, s.programs["bird"], "-d", "-c", conf, "-s", socket).start()
}

func (s *site) startFRR(l *lab) {
	s.t.Helper()
	conf := fromDoc(s.t, "! /etc/frr/frr.conf on host2", l.dir+"/frr.conf")
	// Its own user and group are for who has installed it.
	l.must("sh", "-c", `mkdir /run/frr && mount -t tmpfs tmpfs /var/tmp &&
		{ echo frrvty:x:65533:root; cat /etc/group; } >/run/group && mount --bind /run/group /etc/group`)
	l.must(s.programs["vtysh"], "--config_dir", l.dir, "--dryrun", "--inputfile", conf)
	for _, name := range []string{"zebra", "bfdd", "bgpd"} {
		l.newDaemon(name, "/run/frr/"+name+".vty", s.programs[name], "-u", "root", "-g", "root", "-f", conf, "--log", "stdout").start()
	}
}

// makeNetwork starts engine and plugin and makes a network there.
func (s *site) makeNetwork(l *lab, opts ...string) {
	s.t.Helper()
	l.startEngine()
	l.startPlugin()
	args := []string{"network", "create", "-d", "extip", "--subnet", "172.31.0.0/16", "--ipv6", "--subnet", "2001:db8:31::/64"}
	for _, o := range opts {
		args = append(args, "-o", o)
	}
	l.docker(append(args, "web")...)
}

// start runs a container, and returns when the client reaches it.
func (s *site) start(l *lab, name string) {
	s.t.Helper()
	began := time.Now()
	l.docker("run", "-d", "--name", name, "--hostname", name, "--network", "name=web,\"driver-opt=extip.address="+routedAddr+","+routedAddr6+"\"",
		probeImage, "/probe", "serve", "80")
	ran := time.Since(began)
	s.awaitAnswer(name)
	s.t.Logf("%s: docker run took %v; the client reaches it after %v", name, ran, time.Since(began))
	l.must(l.plugin.args[0], "doctor")
	l.must(l.plugin.args[0], "trace", routedAddr)
	c := l.container(name)
	for _, q := range []question{
		{s.client, "tcp", routedAddr + ":80", name + " saw " + clientAddr},
		{s.client, "udp", "[" + routedAddr6 + "]:80", name + " saw " + clientAddr6},
		{c, "tcp", clientAddr + ":80", "client saw " + routedAddr},
		{c, "udp", "[" + clientAddr6 + "]:80", "client saw " + routedAddr6},
		{l.host, "tcp", clientAddr + ":80", "client saw " + l.opts.address},
	} {
		// A daemon that is kept waiting for a second takes its routes back.
		eventually(s.t, fmt.Sprintf("%s asks %s %s: %s", q.from.Name, q.network, q.addr, q.want), func() bool { return q.ask() == q.want })
	}
}

// stop stops a container, and returns when the router has no way to it.
func (s *site) stop(l *lab, name string) {
	s.t.Helper()
	began := time.Now()
	l.docker("stop", "-t", "0", name)
	ran := time.Since(began)
	s.awaitRoutes("to nowhere")
	s.t.Logf("%s: docker stop took %v; the router's routes are gone after %v", name, ran, time.Since(began))
	ask(s.t, []question{{s.client, "tcp", routedAddr + ":80", ""}, {s.client, "udp", "[" + routedAddr6 + "]:80", ""}})
}

// awaitAnswer returns when a container answers the client, by both families.
func (s *site) awaitAnswer(name string) {
	s.t.Helper()
	for _, addr := range []string{routedAddr + ":80", "[" + routedAddr6 + "]:80"} {
		eventually(s.t, name+" answers on "+addr, func() bool {
			return strings.HasPrefix(datagram(s.client, 0, addr, 50*time.Millisecond), name+" saw ")
		})
	}
}

// awaitRoutes returns when the router's routes to the external addresses lead
// to these hosts and no others.
func (s *site) awaitRoutes(what string, hosts ...int) {
	s.t.Helper()
	eventually(s.t, "the routes lead "+what, func() bool {
		for i, dst := range []string{routedAddr, routedAddr6} {
			out, err := s.router.Command("ip", [2]string{"-4", "-6"}[i], "route", "show", dst).Output()
			if err != nil {
				return false
			}
			for n := 1; n <= 2; n++ {
				_, host := s.ends(n)
				if strings.Contains(string(out), "via "+host[i]+" ") != slices.Contains(hosts, n) {
					return false
				}
			}
		}
		return true
	})
}

// fromDoc writes the configuration in docs/routed.md that begins with that line
// to a file.
func fromDoc(t *testing.T, first, file string) string {
	t.Helper()
	doc, err := os.ReadFile("../docs/routed.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(doc), "\n    "+first+"\n")
	if !ok {
		t.Fatalf("docs/routed.md has no %s", first)
	}
	var conf strings.Builder
	for line := range strings.Lines(after) {
		text, ok := strings.CutPrefix(line, "    ")
		if !ok && line != "\n" {
			break
		}
		conf.WriteString(text)
	}
	if err := os.WriteFile(file, []byte(conf.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}
