package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nettest"
)

func mac(n *nettest.Node, dev string) string {
	_, rest, _ := strings.Cut(n.Run("ip", "-o", "link", "show", "dev", dev), "link/ether ")
	mac, _, _ := strings.Cut(rest, " ")
	return mac
}

// TestForeignOwner: another machine on the segment has addresses of the pool.
// Who asks for one of them is refused with that machine's MAC, and nothing is
// left of it; who doesn't, gets another.
func TestForeignOwner(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.lan.Attach("other", "203.0.113.56/24", "203.0.113.58/24", "2001:db8::56/64")
	other := lab.lan.Attach("another", "203.0.113.60/24")
	lab.dual("web", "172.31.0.0/16", "2001:db8:31::/64", "extip.pool=203.0.113.56-203.0.113.62,2001:db8::56-2001:db8::58")
	before := lab.host.Dump()
	for address, words := range map[string][]string{
		"203.0.113.60":              {"203.0.113.60", "used by " + mac(other, "eth0")},
		"203.0.113.61,2001:db8::56": {"2001:db8::56", "used by "},
	} {
		refused(t, lab, words, "--network", "name=web,\"driver-opt=extip.address="+address+"\",driver-opt=extip.reservation=mail")
		lab.unchanged(before)
	}
	lab.run("first", "--network", "web")
	lab.run("second", "--network", "web")
	ask(t, []question{
		{lab.outside, "tcp", "203.0.113.57:80", "first saw " + outsideAddr},
		{lab.outside, "tcp", "203.0.113.59:80", "second saw " + outsideAddr},
		{lab.outside, "tcp", "[2001:db8::57]:80", "first saw " + outsideAddr6},
		{lab.outside, "tcp", "[2001:db8::58]:80", "second saw " + outsideAddr6},
	})
	refused(t, lab, []string{"exhausted", "2 of 3 addresses are in use", "2001:db8::56 is used by"}, "--network", "web")
	lab.docker("rm", "-f", "first", "second")
	lab.unchanged(before)
}

// TestLateOwner: somebody takes an address that a container has. It is told
// once; then the address is kept, or left to it until it is gone.
func TestLateOwner(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.network("keep", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.57")
	lab.network("yield", "172.30.0.0/16", "extip.pool=203.0.113.58-203.0.113.59", "extip.conflict=yield")
	lab.run("kept", "--network", "name=keep,driver-opt=extip.address=203.0.113.56")
	lab.run("yielded", "--network", "name=yield,driver-opt=extip.address=203.0.113.58")
	lab.killPlugin()
	lab.startPlugin()
	thief := lab.lan.Attach("thief", "203.0.113.56/24", "203.0.113.58/24")
	logged := func(words ...string) func() bool {
		return func() bool {
			// Its packets name it as the owner of either address.
			for _, from := range []string{"203.0.113.56", "203.0.113.58"} {
				thief.Run("ip", "neigh", "flush", "dev", "eth0")
				_, _ = thief.Try("ping", "-c1", "-W1", "-I", from, outsideAddr)
			}
			log := lab.pluginLog()
			return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(log, w) })
		}
	}
	nettest.RequireTool(t, "ping")
	eventually(t, "the conflicts are noticed", logged("told that it is ours", mac(thief, "eth0")))
	eventually(t, "one is kept, the other left", logged("it is kept", "it is left to it"))
	addrs := lab.host.Run("ip", "addr", "show", "dev", lab.parent)
	if !strings.Contains(addrs, "203.0.113.56/32") || strings.Contains(addrs, "203.0.113.58/32") {
		t.Errorf("the host has\n%s", addrs)
	}
	thief.Run("ip", "addr", "del", "203.0.113.58/24", "dev", "eth0")
	thief.Run("ip", "addr", "del", "203.0.113.56/24", "dev", "eth0")
	eventually(t, "the yielded address is back", func() bool { return lab.outside.Ask("tcp", "203.0.113.58:80") == "yielded saw "+outsideAddr })
	ask(t, []question{{lab.outside, "tcp", "203.0.113.56:80", "kept saw " + outsideAddr}})
	lab.docker("rm", "-f", "kept", "yielded")
}

// TestTakeOver: an address moves here from another machine. A client that is
// just talking to that one talks to the container from its next packet on.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.dual("web", "172.31.0.0/16", "2001:db8:31::/64", "extip.dad=off")
	old := lab.lan.Attach("old", "203.0.113.56/24", "2001:db8::56/64")
	old.Serve(80)
	ask(t, []question{
		{lab.outside, "udp", "203.0.113.56:80", "old saw " + outsideAddr},
		{lab.outside, "udp", "[2001:db8::56]:80", "old saw " + outsideAddr6},
	})
	// Still there: its answers are what the client goes on getting otherwise.
	lab.run("new", "--network", "name=web,\"driver-opt=extip.address=203.0.113.56,2001:db8::56\"")
	ask(t, []question{
		{lab.outside, "udp", "203.0.113.56:80", "new saw " + outsideAddr},
		{lab.outside, "udp", "[2001:db8::56]:80", "new saw " + outsideAddr6},
	})
	if got := lab.outside.Run("ip", "neigh"); strings.Contains(got, "56 dev eth0 lladdr "+mac(old, "eth0")) || !strings.Contains(got, mac(lab.host, lab.parent)) {
		t.Errorf("the client's neighbours:\n%s", got)
	}
}

var joinTook = regexp.MustCompile(`msg=done call=Join .*\bms=([0-9.]+)`)

// joins is what the plugin's Joins so far took, in ms.
func (l *lab) joins() (ms []float64) {
	l.t.Helper()
	for _, m := range joinTook.FindAllStringSubmatch(l.pluginLog(), -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			l.t.Fatal(err)
		}
		ms = append(ms, v)
	}
	return ms
}

// TestClaimWait: an address of the pool is probed before somebody gets it and not
// again, one that is asked for only then. What that adds to docker run is in the
// log: nothing, and half a second.
func TestClaimWait(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	tap := lab.outside.Tap("eth0")
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.50-203.0.113.62")
	lab.network("off", "172.30.0.0/16", "extip.pool=203.0.113.80-203.0.113.99", "extip.dad=off")
	ahead := func() string { return grep(lab.pluginLog(), "probed ahead") }
	eventually(t, "the pool is probed ahead", func() bool { return ahead() != "" })
	// probes is how often the neighbours were asked for an address: by
	// nobody, of nobody known (RFC 5227 §1.1).
	probes := func(a string) int { return tap.Count(append(make([]byte, 10), netip.MustParseAddr(a).AsSlice()...)) }
	took := map[string][]float64{}
	for i := range 5 {
		for kind, network := range map[string]string{
			"pool": "web", "asked": fmt.Sprintf("name=web,driver-opt=extip.address=203.0.113.%d", 100+i), "off": "off",
		} {
			n, known, name := len(lab.joins()), ahead(), fmt.Sprint(kind, i)
			lab.run(name, "--network", network)
			took[kind] = append(took[kind], lab.joins()[n])
			a, want := lab.externalOf(name), 3
			if kind == "off" {
				want = 0
			}
			eventually(t, fmt.Sprintf("%s, of %s, is probed %d times", a, name, want), func() bool { return probes(a) == want })
			if strings.Contains(known, a) != (kind == "pool") {
				t.Errorf("%s has %s; before,\n%s", name, a, known)
			}
		}
	}
	for _, list := range took {
		slices.Sort(list)
	}
	pool, asked, off := took["pool"][2], took["asked"][2], took["off"][2]
	t.Logf("Join, median of 5: address from the pool %.1f ms, asked for %.1f ms, without probes %.1f ms", pool, asked, off)
}

// TestReservation: a name keeps its address while containers and networks come
// and go, through restarts of the plugin and of the host.
func TestReservation(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	web := func() { lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62") }
	mail := func() {
		t.Helper()
		lab.run("mail", "--network", "name=web,driver-opt=extip.reservation=mail")
		ask(t, []question{{lab.outside, "tcp", "203.0.113.56:80", "mail saw " + outsideAddr}})
		lab.docker("rm", "-f", "mail")
	}
	web()
	mail()
	for i := range 6 {
		lab.run(fmt.Sprint("other", i), "--network", "web")
	}
	refused(t, lab, []string{"exhausted", "6 of 7", "1 reserved as mail"}, "--network", "web")
	refused(t, lab, []string{"203.0.113.56", "reserved as \"mail\""}, "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	mail()
	lab.killPlugin()
	lab.startPlugin()
	mail()
	for i := range 6 {
		lab.docker("rm", "-f", fmt.Sprint("other", i))
	}
	lab.docker("network", "rm", "web")
	web()
	mail()
	lab.reboot()
	lab.startPlugin()
	lab.startEngine()
	mail()
}

// TestRoutedBlocks: addresses that are routed to this host need no neighbours,
// and no interface of a segment.
func TestRoutedBlocks(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.host.Serve(80)
	lab.network("nowhere", "172.31.0.0/16", "extip.pool=198.51.100.8/30", "extip.alias=none")
	lab.network("lo", "172.30.0.0/16", "extip.pool=198.51.100.16/30", "extip.alias=lo")
	lab.docker("network", "create", "-d", "extip", "--subnet", "172.29.0.0/16", "-o", "extip.parent=lo", "-o", "extip.pool=198.51.100.32/30", "onlo")
	before := lab.host.Dump()
	lab.outside.Run("ip", "route", "add", "198.51.100.0/24", "via", hostAddr)
	var questions []question
	for name, addr := range map[string]string{"nowhere": "198.51.100.9", "lo": "198.51.100.17", "onlo": "198.51.100.33"} {
		c := lab.run(name, "--network", "name="+name+",driver-opt=extip.address="+addr)
		questions = append(questions,
			question{lab.outside, "tcp", addr + ":80", name + " saw " + outsideAddr},
			question{lab.outside, "icmp", addr, "ttl 63"},
			question{c, "tcp", outsideAddr + ":80", "outside saw " + addr},
			question{c, "udp", addr + ":80", name + " saw " + addr},
			question{lab.host, "tcp", addr + ":80", name + " saw " + strings.Replace(lab.inspectIP(name, name), ".0.2", ".0.1", 1)},
		)
	}
	ask(t, questions)
	if addrs := lab.host.Run("ip", "addr", "show", "dev", lab.parent); strings.Contains(addrs, "198.51.100.") {
		t.Errorf("on the parent: %s", addrs)
	}
	lab.docker("rm", "-f", "nowhere", "lo", "onlo")
	lab.unchanged(before)
}

// TestParentComesLate: containers start while their parent is missing, and have
// their addresses once it is there.
func TestParentComesLate(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.dual("web", "172.31.0.0/16", "2001:db8:31::/64", "extip.pool=203.0.113.56-203.0.113.62,2001:db8::56-2001:db8::58")
	lab.docker("run", "-d", "--name", "always", "--hostname", "always", "--restart", "always", "--network", "web", probeImage, "/probe", "serve", "80")
	lab.reboot()
	lab.host.Run("ip", "link", "del", lab.parent)
	lab.startPlugin()
	lab.startEngine()
	eventually(t, "it runs without its parent", func() bool {
		return lab.docker("inspect", "-f", "{{.State.Running}}", "always") == "true" && strings.Contains(lab.pluginLog(), "withheld")
	})
	if out := lab.outside.Ask("tcp", "203.0.113.56:80"); out != "" {
		t.Errorf("answered without a parent: %s", out)
	}
	lab.connectParent()
	eventually(t, "it is reached once the parent is there", func() bool {
		return lab.outside.Ask("tcp", "203.0.113.56:80") == "always saw "+outsideAddr && lab.outside.Ask("tcp", "[2001:db8::56]:80") == "always saw "+outsideAddr6
	})
}
