package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nettest"
)

// A managed is a lab whose engine has extip as a managed plugin, of this name.
type managed struct {
	*lab
	t    *testing.T
	name string
}

func newManaged(t *testing.T, o options, name string) *managed {
	t.Helper()
	o.bare = true
	m := &managed{lab: newLab(t, o), t: t, name: name}
	m.startEngine()
	return m
}

// build gives a plugin to the engine. Those of different versions have
// different programs.
func (m *managed) build(name, version string) {
	m.t.Helper()
	program := filepath.Join(m.dir, "program-"+version)
	install(m.t, append(extipBinary(m.t), version...), program)
	wd, err := os.Getwd()
	if err != nil {
		m.t.Fatal(err)
	}
	m.must(filepath.Join(filepath.Dir(wd), "scripts", "build-plugin.sh"), "--program", program, name)
}

// works fails the test unless the container that answers on an external
// address does so, and is seen by it.
func (m *managed) works(name, external string) {
	m.t.Helper()
	eventually(m.t, name+" runs", func() bool { return answer(m.outside, external+":80") == name+" saw "+outsideAddr })
	ask(m.t, []question{
		{m.outside, "tcp", external + ":80", name + " saw " + outsideAddr},
		{m.outside, "icmp", external, "ttl 63"},
		{m.container(name), "tcp", outsideAddr + ":80", "outside saw " + external},
	})
}

// TestManaged takes the managed plugin through its life: it answers to its
// full name and to the short one, and keeps its records when it is disabled,
// when the engine starts again, and when its settings change.
func TestManaged(t *testing.T) {
	t.Parallel()
	m := newManaged(t, options{}, "extip/plugin:one")
	before := m.host.Dump()
	m.build(m.name, "1")
	m.docker("plugin", "enable", m.name)
	m.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	m.docker("network", "create", "-d", m.name, "--subnet", "172.30.0.0/16",
		"-o", "extip.parent="+m.parent, "-o", "extip.pool=203.0.113.64-203.0.113.70", "full")
	web := m.run("web", "--restart", "always", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	m.run("full", "--restart", "always", "--network", "name=full,driver-opt=extip.address=203.0.113.64")
	works := func() {
		t.Helper()
		m.works("web", "203.0.113.56")
		m.works("full", "203.0.113.64")
	}
	works()
	// The command line of the host finds it.
	install(t, extipBinary(t), filepath.Join(m.dir, "bin", "extip"))
	if have := m.status(); have["203.0.113.56"] != "172.31.0.2 web web published" {
		t.Errorf("status: %q", have)
	}
	running := m.host.Dump()
	if out, err := m.tryDocker("plugin", "disable", m.name); err == nil || !strings.Contains(out, "in use") {
		t.Errorf("disabled while a network has its full name: %v, %s", err, out)
	}
	in, out := startFlow(t, m.outside, "203.0.113.56:80"), startFlow(t, web, outsideAddr+":80")
	m.docker("plugin", "disable", "-f", m.name)
	works()
	m.docker("plugin", "set", m.name, "EXTIP_LOG_LEVEL=debug", "EXTIP_BACKEND=iptables")
	m.docker("plugin", "enable", m.name)
	if rules := m.must("iptables-save"); !strings.Contains(rules, "XIP-D") {
		t.Errorf("EXTIP_BACKEND=iptables has no effect:\n%s", rules)
	}
	works()
	m.docker("plugin", "disable", "-f", m.name)
	m.docker("plugin", "set", m.name, "EXTIP_BACKEND=auto")
	m.docker("plugin", "enable", m.name)
	works()
	m.unchanged(running)
	lostNone(t, "two times off and on", map[string]*flow{"in": in, "out": out})
	for _, end := range []func(){m.stopEngine, m.killEngine} {
		end()
		m.startEngine()
		works()
	}
	m.docker("rm", "-f", "web", "full")
	m.docker("network", "rm", "web", "full")
	m.sameButOrder(before)
	m.docker("plugin", "rm", "-f", m.name)
	if _, err := os.Stat(m.path(pluginSocket)); err == nil {
		t.Error("the socket is left")
	}
}

// TestManagedBesideService: two plugins would undo each other's work, so the
// second one does not start, and says why.
func TestManagedBesideService(t *testing.T) {
	t.Parallel()
	m := newManaged(t, options{}, "extip/plugin:one")
	m.startPlugin()
	m.build(m.name, "1")
	if out, err := m.tryDocker("plugin", "enable", m.name); err == nil {
		t.Errorf("enabled beside the service: %s", out)
	}
	eventually(t, "the engine's log says why", m.engineLogs("another plugin serves it"))
	m.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	m.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	m.works("web", "203.0.113.56")
}

// TestManagedBesideLegacy: the one kind of firewall that the managed form
// can't pass is named in the log.
func TestManagedBesideLegacy(t *testing.T) {
	t.Parallel()
	m := newManaged(t, options{flavour: "legacy"}, "extip/plugin:one")
	m.build(m.name, "1")
	m.docker("plugin", "enable", m.name)
	eventually(t, "the engine's log says so", m.engineLogs("iptables-legacy has rules here"))
}

// engineLogs tells whether the engine's log has a text, which comes from the
// plugin by way of containerd, a while later.
func (m *managed) engineLogs(text string) func() bool {
	return func() bool {
		m.t.Helper()
		log, err := os.ReadFile(m.engine.log())
		if err != nil {
			m.t.Fatal(err)
		}
		return strings.Contains(string(log), text)
	}
}

// TestManagedFromRegistry installs the plugin from a registry, after a look at
// what it asks for, and upgrades it from there under traffic.
func TestManagedFromRegistry(t *testing.T) {
	t.Parallel()
	nettest.RequireTool(t, "docker-registry")
	m := newManaged(t, options{}, "extip/plugin:now")
	const registry = "127.0.0.1:5000" // of the lab's own lo
	config := filepath.Join(m.dir, "registry.yml")
	install(t, []byte(fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %s/registry}}\nhttp: {addr: %s}\n", m.dir, registry)), config)
	cmd := m.command("docker-registry", "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // it ends with the lab
	eventually(t, "the registry answers", func() bool {
		return m.command("curl", "-sf", "--noproxy", "*", "http://"+registry+"/v2/").Run() == nil
	})
	for _, version := range []string{"1", "2"} {
		name := registry + "/extip/plugin:" + version
		m.build(name, version)
		m.docker("plugin", "push", name)
		m.docker("plugin", "rm", name)
	}

	ask := m.command("docker", "plugin", "install", "--alias", m.name, registry+"/extip/plugin:1")
	ask.Stdin = strings.NewReader("n\n")
	out, _ := ask.CombinedOutput()
	t.Logf("%s", out)
	for _, want := range []string{"network: [host]", "mount: [/run/docker/plugins]", "mount: [/usr]", "mount: [/proc/sys/net]", "capabilities: [CAP_NET_ADMIN CAP_NET_RAW]"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the prompt has no %q", want)
		}
	}
	if got := strings.Count(string(out), "\n - "); got != 5 {
		t.Errorf("it asks for %d things", got)
	}
	if got := m.docker("plugin", "ls", "-q"); got != "" {
		t.Errorf("installed though refused: %s", got)
	}

	m.docker("plugin", "install", "--grant-all-permissions", "--alias", m.name, registry+"/extip/plugin:1", "EXTIP_POOL=203.0.113.56-203.0.113.62")
	m.network("web", "172.31.0.0/16")
	web := m.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.60")
	m.works("web", "203.0.113.60")
	incoming, outgoing := startFlow(t, m.outside, "203.0.113.60:80"), startFlow(t, web, outsideAddr+":80")
	m.docker("plugin", "disable", "-f", m.name)
	m.docker("plugin", "upgrade", "--grant-all-permissions", m.name, registry+"/extip/plugin:2")
	m.docker("plugin", "enable", m.name)
	m.works("web", "203.0.113.60")
	lostNone(t, "an upgrade", map[string]*flow{"in": incoming, "out": outgoing})
	// Records and settings are as before.
	refused(t, m.lab, []string{"203.0.113.60", "taken by"}, "--network", "name=web,driver-opt=extip.address=203.0.113.60")
	m.run("next", "--network", "web")
	m.works("next", "203.0.113.56")
	m.docker("rm", "-f", "web", "next")
	m.docker("network", "rm", "web")
}
