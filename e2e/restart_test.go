package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// TestPluginRestart ends the plugin, politely and not, under a running
// container: not one packet is lost, and what is removed afterwards leaves no
// trace.
func TestPluginRestart(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	before := lab.host.Dump()
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	web := lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	works := func() {
		t.Helper()
		ask(t, []question{
			{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr},
			{lab.outside, "udp", "203.0.113.56:80", "web saw " + outsideAddr},
			{web, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
		})
	}
	running := lab.host.Dump()
	in, out := startFlow(t, lab.outside, "203.0.113.56:80"), startFlow(t, web, outsideAddr+":80")
	for _, end := range []func(){lab.stopPlugin, lab.killPlugin} {
		end()
		works()
		lab.startPlugin()
		works()
		lab.unchanged(running)
	}
	lostNone(t, "two restarts of the plugin", map[string]*flow{"in": in, "out": out})
	lab.docker("rm", "-f", "web")
	lab.docker("network", "rm", "web")
	lab.unchanged(before)
}

// TestBackendSwitch changes the backend under traffic: what one wrote goes when
// the other translates, and not one packet is lost.
func TestBackendSwitch(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{backend: "iptables"})
	before := lab.host.Dump()
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	web := lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	in, out := startFlow(t, lab.outside, "203.0.113.56:80"), startFlow(t, web, outsideAddr+":80")
	mark := map[string]string{"iptables": "XIP-D", "nftables": "table ip extip"}
	for _, tt := range []struct{ to, from string }{{"nftables", "iptables"}, {"iptables", "nftables"}} {
		lab.stopPlugin()
		lab.plugin.args = append(lab.plugin.args, "--backend", tt.to)
		lab.startPlugin()
		// It listens before it is done; calls wait in its socket.
		eventually(t, "the switch to "+tt.to, func() bool {
			dump := lab.host.Dump()
			return strings.Contains(dump, mark[tt.to]) && !strings.Contains(dump, mark[tt.from])
		})
		ask(t, []question{
			{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr},
			{web, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
		})
	}
	lostNone(t, "two switches of the backend", map[string]*flow{"in": in, "out": out})
	lab.docker("rm", "-f", "web")
	lab.docker("network", "rm", "web")
	lab.unchanged(before)
}

// TestPluginKilledInCall kills the plugin at random moments of `docker run`.
// Whatever the engine makes of it, the next start is clean.
func TestPluginKilledInCall(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	lab.run("warm", "--network", "web")
	lab.docker("rm", "-f", "warm")
	before := lab.host.Dump()
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	failed := 0
	const tries = 8
	for i := range tries {
		done := make(chan error, 1)
		go func() {
			_, err := lab.tryDocker("run", "-d", "--name", "web", "--network", "web", probeImage, "/probe", "serve", "80")
			done <- err
		}()
		time.Sleep(time.Duration(random.IntN(250)) * time.Millisecond)
		lab.killPlugin()
		lab.startPlugin()
		if err := <-done; err != nil {
			failed++
		}
		lab.docker("rm", "-f", "web")
		// What the engine never asks to be removed is removed by the
		// comparison with its records, a while later; at once on SIGHUP
		// only what no container can have any more.
		lab.stopPlugin()
		lab.startPlugin()
		if t.Failed() {
			t.Fatalf("seed %d, try %d", seed, i)
		}
	}
	t.Logf("seed %d: %d of %d runs failed when the plugin was killed", seed, failed, tries)
	lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.60")
	ask(t, []question{{lab.outside, "tcp", "203.0.113.60:80", "web saw " + outsideAddr}})
	lab.docker("rm", "-f", "web")
	if !within(5*long, func() bool { return lab.host.Dump() == before }) {
		lab.unchanged(before)
	}
	lab.docker("network", "rm", "web")
}

// TestEngineRestart ends the engine in every way and starts it again: each
// container with a restart policy is back on its old external address.
func TestEngineRestart(t *testing.T) {
	t.Parallel()
	for _, live := range []bool{false, true} {
		t.Run(fmt.Sprintf("live-restore=%t", live), func(t *testing.T) {
			lab := newLab(t, options{daemon: fmt.Sprintf(`{"live-restore": %t}`, live)})
			before := lab.host.Dump()
			lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
			always := []string{"--restart", "always", "--network"}
			lab.run("mail", append(always, "name=web,driver-opt=extip.address=203.0.113.60")...)
			lab.run("shop", append(always, "name=web,driver-opt=extip.address=203.0.113.61")...)
			lab.run("pool", append(always, "name=web,ip=172.31.0.99")...)
			works := func() {
				t.Helper()
				eventually(t, "the containers run", func() bool {
					return answer(lab.outside, "203.0.113.60:80") == "mail saw "+outsideAddr &&
						answer(lab.outside, "203.0.113.61:80") == "shop saw "+outsideAddr &&
						answer(lab.outside, "203.0.113.56:80") == "pool saw "+outsideAddr
				})
				for name, addr := range map[string]string{"mail": "203.0.113.60", "shop": "203.0.113.61", "pool": "203.0.113.56"} {
					ask(t, []question{
						{lab.outside, "tcp", addr + ":80", name + " saw " + outsideAddr},
						{lab.container(name), "udp", outsideAddr + ":80", "outside saw " + addr},
					})
				}
			}
			works()
			for _, end := range []func(){lab.stopEngine, lab.killEngine, lab.killEngine} {
				end()
				lab.startEngine()
				works()
			}
			lab.docker("rm", "-f", "mail", "shop", "pool")
			lab.docker("network", "rm", "web")
			lab.sameButOrder(before)
		})
	}
}

// TestReboot cuts the host's power; only the disk is left. The plugin starts
// before the engine, as it must.
func TestReboot(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	lab.run("mail", "--restart", "always", "--network", "name=web,driver-opt=extip.address=203.0.113.60")
	lab.run("gone", "--network", "name=web,driver-opt=extip.address=203.0.113.61")
	lab.reboot()
	lab.startPlugin()
	lab.startEngine()
	eventually(t, "the container runs", func() bool { return answer(lab.outside, "203.0.113.60:80") == "mail saw "+outsideAddr })
	ask(t, []question{
		{lab.outside, "tcp", "203.0.113.60:80", "mail saw " + outsideAddr},
		{lab.container("mail"), "tcp", outsideAddr + ":80", "outside saw 203.0.113.60"},
		{lab.outside, "icmp", "203.0.113.61", ""}, // it has no restart policy
	})
	// Its address is free for others, and itself.
	lab.docker("start", "gone")
	eventually(t, "it runs again", func() bool { return answer(lab.outside, "203.0.113.61:80") == "gone saw "+outsideAddr })
	lab.docker("rm", "-f", "mail", "gone")
	lab.docker("network", "rm", "web")
	if left := ours(lab.host.Dump()); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// TestContainerRestartKeepsUDPWorking: the flow of a client that goes on
// sending from the same port must not stay with the container of before.
func TestContainerRestartKeepsUDPWorking(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	const port = 40000
	if got := fromPort(lab.outside, port, "203.0.113.56:80"); got != "web saw "+outsideAddr {
		t.Fatalf("before: %q", got)
	}
	lab.docker("rm", "-f", "web")
	// The internal address goes to another container, so that the old flow
	// would lead there.
	lab.run("other", "--network", "name=web,driver-opt=extip.address=none")
	lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	if got := fromPort(lab.outside, port, "203.0.113.56:80"); got != "web saw "+outsideAddr {
		t.Errorf("from the same port after a restart: %q", got)
	}
}

// TestForwardPolicy: the plugin is there before the engine, as it should be at
// boot, and yet the engine closes its FORWARD chain, as it does where it is the
// one that lets the host route.
func TestForwardPolicy(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	if !strings.Contains(lab.must("iptables", "-S", "FORWARD"), "-P FORWARD DROP") {
		t.Skip("this engine doesn't close its FORWARD chain")
	}
	lab.stopEngine()
	lab.reboot()
	lab.startPlugin()
	if got := lab.host.Run("cat", "/proc/sys/net/ipv4/ip_forward"); strings.TrimSpace(got) != "0" {
		t.Errorf("before the engine, ip_forward is %s", got)
	}
	lab.startEngine()
	if got := lab.must("iptables", "-S", "FORWARD"); !strings.Contains(got, "-P FORWARD DROP") {
		t.Errorf("the engine has left its FORWARD chain open:\n%s", got)
	}
	web := lab.run("web", "--network", "web")
	ask(t, []question{
		{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr},
		{web, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
	})
}
