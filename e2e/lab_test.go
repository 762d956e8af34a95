// Package e2e runs the whole thing: a real engine, the real plugin, real
// containers, and an outside machine that looks at them from the network.
//
//	lab := newLab(t, options{parent: "bridge"})
//	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
//	web := lab.run("web", "--network", "web")
//	lab.outside.Ask("tcp", "203.0.113.56:80") // "web saw 203.0.113.200"
//	web.Ask("tcp", "203.0.113.200:80")        // "outside saw 203.0.113.56"
//
// A lab is a docker host in namespaces of its own (mount, network, process)
// with everything at its usual path: /run/docker.sock, the plugin's socket,
// Open vSwitch's database. Whatever runs there ends with the lab. So labs don't
// disturb each other, and tests are parallel: they wait more than they work.
package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// The whiteboard's addresses. 203.0.113.56 and up are free to be external
// addresses.
const (
	hostAddr     = "203.0.113.10"
	outsideAddr  = "203.0.113.200"
	hostAddr6    = "2001:db8::10"
	outsideAddr6 = "2001:db8::200"
)

// options say in what a lab differs from the usual one.
type options struct {
	// engine is a directory with another engine's programs. If empty, it is
	// what EXTIP_TEST_ENGINE says, or else the engine on PATH.
	engine string
	// flavour is the kernel interface that the host's iptables uses: "nft",
	// which is the usual one, or "legacy".
	flavour string
	// backend is the plugin's --backend; that of EXTIP_TEST_BACKEND if empty,
	// or else auto.
	backend string
	// parent is what carries the host's address: "bridge", the usual one, is
	// a Linux bridge br-ex over eth0; "ovs" is an Open vSwitch bridge br-ex
	// over eth0; "eth0" is eth0 itself; "none" leaves eth0 to the test.
	parent string
	// daemon is the engine's daemon.json, {} if empty.
	daemon string
	// plugin is appended to the plugin's command line.
	plugin []string
	// address is the host's own, if it is not hostAddr.
	address string
	// bare leaves engine and plugin to be started by the test.
	bare bool
}

// eachVariant runs a test with both of the plugin's backends, beside an engine
// that uses either of the kernel's interfaces for iptables.
func eachVariant(t *testing.T, test func(*testing.T, options)) {
	for _, backend := range []string{"nftables", "iptables"} {
		for _, flavour := range []string{"nft", "legacy"} {
			t.Run(backend+"-beside-iptables-"+flavour, func(t *testing.T) {
				t.Parallel()
				test(t, options{backend: backend, flavour: flavour})
			})
		}
	}
}

// A lab is a docker host and an outside machine on one segment.
type lab struct {
	host, outside *nettest.Node
	// parent is the interface of host that has its address.
	parent string

	t              testing.TB
	opts           options
	lan            *nettest.Segment
	dir            string // on disk; goes with the test
	machine        bool   // whether the host is a machine: see newMachine
	boots          int
	init           int // the process that the host's namespaces live by
	shutDown       func()
	engine, plugin *daemon
}

// newLab builds the lab and starts engine and plugin. It goes with the test.
func newLab(t testing.TB, o options) *lab {
	t.Helper()
	if o.engine == "" {
		o.engine = os.Getenv("EXTIP_TEST_ENGINE")
	}
	requireEngine(t, o.engine)
	lan := nettest.NewSegment(t)
	l := &lab{
		outside: lan.Attach("outside", outsideAddr+"/24", outsideAddr6+"/64"),
		t:       t,
		opts:    o,
		lan:     lan,
		dir:     t.TempDir(),
	}
	l.chooseIptables()
	l.boot()
	l.outside.Serve(80)
	if !o.bare {
		l.startEngine()
		l.startPlugin()
	}
	return l
}

// requireEngine requires what a lab with an engine needs: that of a directory,
// or else the one on PATH.
func requireEngine(t testing.TB, dir string) {
	t.Helper()
	nettest.Require(t, isRoot(), "root")
	for _, tool := range []string{"dockerd", "docker", "containerd", "runc", "iptables", "nsenter"} {
		if dir == "" || tool == "iptables" || tool == "nsenter" {
			nettest.RequireTool(t, tool)
		}
	}
}

// neighbour is another host on the segment, with that address, switched on and
// otherwise bare.
func (l *lab) neighbour(address string) *lab {
	l.t.Helper()
	n := &lab{outside: l.outside, t: l.t, opts: l.opts, lan: l.lan, dir: l.t.TempDir()}
	n.opts.address, n.opts.bare = address, true
	n.chooseIptables()
	n.boot()
	return n
}

// isRoot tells the machine's root from the one of a user namespace, which is
// what nettest.Main makes of anybody else: that one is alone there.
func isRoot() bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	fields := strings.Fields(string(ids))
	return os.Geteuid() == 0 && err == nil && len(fields) >= 3 && fields[2] != "1"
}

// chooseIptables makes the directory that, first on PATH, decides which
// iptables the engine and the plugin use, as update-alternatives would.
func (l *lab) chooseIptables() {
	l.t.Helper()
	flavour := l.opts.flavour
	if flavour == "" {
		flavour = "nft"
	}
	multi := "xtables-" + flavour + "-multi"
	nettest.RequireTool(l.t, multi)
	target, err := exec.LookPath(multi)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.Mkdir(l.dir+"/bin", 0o755); err != nil {
		l.t.Fatal(err)
	}
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
		if err := os.Symlink(target, filepath.Join(l.dir, "bin", name)); err != nil {
			l.t.Fatal(err)
		}
	}
}

// boot switches the host on, with nothing of before but what is on disk.
func (l *lab) boot() {
	l.t.Helper()
	l.boots++
	l.host = nettest.NewNode(l.t, fmt.Sprintf("host%s.%d", strings.ReplaceAll(l.opts.address, ".", "-"), l.boots))
	l.host.Name = "host"
	l.lan.Plug(l.host, "eth0")
	if l.machine {
		l.connectParent()
		l.startSystemd()
		return
	}
	l.startInit()
	l.connectParent()
	l.engine = l.newEngine()
	l.plugin = l.newPlugin()
}

// reboot cuts the power and boots again.
func (l *lab) reboot() {
	l.t.Helper()
	l.cutPower()
	l.boot()
}

// cutPower switches the host off.
func (l *lab) cutPower() {
	l.t.Helper()
	l.shutDown()
	l.host.Run("ip", "link", "del", "eth0")
}

// startInit starts the first process of the host. Processes of the host are
// its children, so they end when it does, and it ends when the test closes its
// standard input or dies.
func (l *lab) startInit() {
	l.t.Helper()
	const prepare = `mount --make-rprivate / && mount -t proc proc /proc && mount -t tmpfs tmpfs /run &&
		mkdir -p /run/lock /run/docker/plugins /run/openvswitch && exec "$0" init`
	probe := filepath.Join(l.dir, "bin", "probe")
	install(l.t, probeBinary(l.t), probe)
	cmd := l.host.Command("sh", "-c", prepare, probe)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.init = cmd.Process.Pid
	l.shutDown = sync.OnceFunc(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
		removeCgroups(l.t, l.cgroup())
	})
	l.t.Cleanup(l.shutDown)
	if _, err := fmt.Fscanln(stdout, new(string)); err != nil {
		l.t.Fatalf("the host did not boot: %v", err)
	}
}

// cgroup is the parent of the lab's containers' cgroups.
func (l *lab) cgroup() string { return fmt.Sprintf("extip-e2e-%d-%d", os.Getpid(), l.init) }

// removeCgroups removes what is left of the cgroups whose path has a name in
// it; the kernel lets go of them a moment after their last process.
func removeCgroups(t testing.TB, name string) {
	eventually(t, "the cgroups can be removed", func() bool {
		var dirs []string
		err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
			if d != nil && d.IsDir() && strings.Contains(path, name) {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			if rerr := os.Remove(dirs[i]); rerr != nil && !os.IsNotExist(rerr) {
				err = rerr
			}
		}
		return err == nil
	})
}

// command prepares a program to be run on the host: unlike those of
// l.host.Command, it sees the host's files and processes too.
func (l *lab) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(l.init), "-m", "-n", "-p", "--"}, args...)...)
	path := []string{filepath.Join(l.dir, "bin")}
	if l.opts.engine != "" {
		path = append(path, l.opts.engine)
	}
	path = append(path, os.Getenv("PATH"), "/usr/sbin", "/sbin")
	cmd.Env = append(os.Environ(), "PATH="+strings.Join(path, ":"), "DOCKER_CONFIG="+l.dir, "DOCKER_HOST=unix:///run/docker.sock",
		"container=lab") // keeps the engine from loading an AppArmor profile, which has no namespace
	return cmd
}

// path is where the test finds a file of the host.
func (l *lab) path(onHost string) string { return fmt.Sprintf("/proc/%d/root%s", l.init, onHost) }

// try runs a program on the host and returns what it printed.
func (l *lab) try(args ...string) (string, error) {
	l.t.Helper()
	out, err := l.command(args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	l.t.Logf("host# %s\n%s", strings.Join(args, " "), text)
	return text, err
}

// must is try for a program that must succeed.
func (l *lab) must(args ...string) string {
	l.t.Helper()
	out, err := l.try(args...)
	if err != nil {
		l.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// docker runs the engine's client, which must succeed.
func (l *lab) docker(args ...string) string {
	l.t.Helper()
	return l.must(append([]string{"docker"}, args...)...)
}

// tryDocker runs the engine's client.
func (l *lab) tryDocker(args ...string) (string, error) {
	l.t.Helper()
	return l.try(append([]string{"docker"}, args...)...)
}

// network makes an extip network on the lab's parent, with -o options.
func (l *lab) network(name, subnet string, opts ...string) {
	l.t.Helper()
	args := []string{"network", "create", "-d", "extip", "--subnet", subnet, "-o", "extip.parent=" + l.parent}
	for _, o := range opts {
		args = append(args, "-o", o)
	}
	l.docker(append(args, name)...)
}

// dual makes an extip network of both families.
func (l *lab) dual(name, subnet, subnet6 string, opts ...string) {
	l.t.Helper()
	args := []string{"network", "create", "-d", "extip", "--subnet", subnet, "--ipv6", "--subnet", subnet6, "-o", "extip.parent=" + l.parent}
	for _, o := range opts {
		args = append(args, "-o", o)
	}
	l.docker(append(args, name)...)
}

// run starts a container, with the arguments of `docker run`, that answers on
// the tcp and udp ports 80 and 8080 with its name and whom it sees.
func (l *lab) run(name string, args ...string) *nettest.Node {
	l.t.Helper()
	args = append([]string{"run", "-d", "--name", name, "--hostname", name}, args...)
	l.docker(append(args, probeImage, "/probe", "serve", "80", "8080")...)
	c := l.container(name)
	eventually(l.t, name+" serves", func() bool { return c.Ask("tcp", "127.0.0.1:8080") != "" })
	if c.Command("ip", "link", "show", "dev", "eth0").Run() == nil { // not of --network none
		c.AwaitIPv6("eth0")
	}
	return c
}

// container is a running container as a machine that can ask and answer.
// After a restart it is another one.
func (l *lab) container(name string) *nettest.Node {
	l.t.Helper()
	pid := l.docker("inspect", "-f", "{{.State.Pid}}", name)
	return nettest.Adopt(l.t, name, l.path("/proc/"+pid+"/ns/net"))
}

// inspectIP is a container's address on a network.
func (l *lab) inspectIP(name, network string) string {
	l.t.Helper()
	return l.docker("inspect", "-f", fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", network), name)
}

// long is how long what must happen may take on a busy machine.
const long = time.Minute

// eventually waits until ok, and fails the test if that takes too long.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !within(long, ok) {
		t.Fatalf("still not true: %s", what)
	}
}

// within asks until ok, for as long as patience lasts.
func within(patience time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return true
}

// unchanged fails the test with the difference if the host is not as before.
// The kernel may take a moment to forget an interface.
func (l *lab) unchanged(before string) {
	l.t.Helper()
	var after string
	if within(long, func() bool { after = l.host.Dump(); return after == before }) {
		return
	}
	diff := difference(before, after)
	if diff == "" {
		diff = "the same lines in another order:\n" + after
	}
	l.t.Errorf("the host differs from before (-before +after):\n%s", diff)
}

// sameButOrder is unchanged where an engine that starts again writes its own
// rules in another order.
func (l *lab) sameButOrder(before string) {
	l.t.Helper()
	var diff string
	if !within(long, func() bool { diff = difference(before, l.host.Dump()); return diff == "" }) {
		l.t.Errorf("the host differs from before (-before +after):\n%s", diff)
	}
}

// difference lists the lines that only one of two texts has.
func difference(before, after string) string {
	count := map[string]int{}
	for line := range strings.Lines(before) {
		count[line]++
	}
	var b strings.Builder
	for line := range strings.Lines(after) {
		if count[line]--; count[line] < 0 {
			b.WriteString("+" + line)
		}
	}
	for line := range strings.Lines(before) {
		if count[line] > 0 {
			count[line]--
			b.WriteString("-" + line)
		}
	}
	return b.String()
}
