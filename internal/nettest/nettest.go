// Package nettest builds private networks for tests out of network
// namespaces, so that a test reads like the picture on the whiteboard:
//
//	func TestMain(m *testing.M) { nettest.Main(m) }
//
//	lan := nettest.NewSegment(t)
//	host := lan.Attach("host", "192.0.2.2/24")
//	peer := lan.Attach("peer", "192.0.2.9/24")
//	peer.Serve(80)
//	host.Ask("tcp", "192.0.2.9:80") // "peer saw 192.0.2.2"
//
// Everything lives in a mount and a network namespace of the test binary's
// own; nothing of the machine is touched, and no root is needed where user
// namespaces are allowed.
package nettest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// stateEnv tells a test binary what Main made of it: "ready" inside the
// private namespaces, otherwise the reason why there are none.
const stateEnv = "EXTIP_NETTEST"

const ready = "ready"

// netnsDir is where ip(8) keeps its named namespaces. Main puts a tmpfs below.
const netnsDir = "/run/netns/"

// Main runs the test binary again in private namespaces and exits with its
// status. Where the machine allows none, tests that need them skip with the
// reason, or fail if EXTIP_TEST_REQUIRE=1.
func Main(m *testing.M) {
	if os.Getenv(stateEnv) != "" {
		os.Exit(m.Run())
	}
	failure := isolate() // exits unless it fails
	if err := os.Setenv(stateEnv, failure.Error()); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// isolate runs the binary in new namespaces and exits; it returns only if
// the namespaces can't be made.
func isolate() error {
	// The shell prepares /run for the tools (ip netns, iptables' lock) before the binary starts.
	const prepare = `mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir -p /run/netns /run/lock && ip link set lo up`
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	probe := exec.Command("sh", "-c", prepare)
	probe.SysProcAttr = attr
	if out, err := probe.CombinedOutput(); err != nil {
		return fmt.Errorf("no private namespaces here: %w: %s", err, strings.TrimSpace(string(out)))
	}
	cmd := exec.Command("sh", append([]string{"-c", prepare + ` && exec "$0" "$@"`}, os.Args...)...)
	cmd.SysProcAttr = attr
	cmd.Env = append(os.Environ(), stateEnv+"="+ready)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		return err
	}
	os.Exit(0)
	return nil
}

// Require skips the test with the reason if ok is false, or fails it where
// EXTIP_TEST_REQUIRE=1.
func Require(t testing.TB, ok bool, missing string) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("EXTIP_TEST_REQUIRE") == "1":
		t.Fatalf("EXTIP_TEST_REQUIRE=1, but missing: %s", missing)
	default:
		t.Skipf("missing: %s", missing)
	}
}

// RequireTool is Require for a program on PATH.
func RequireTool(t testing.TB, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	Require(t, err == nil, "the program "+name)
}

// A Node is a machine of the test network: a network namespace with a name.
type Node struct {
	Name string
	// NetNS is the path of its network namespace.
	NetNS string

	t     testing.TB
	turns int // that its questions wait; see patience.go
}

// NewNode makes a machine without interfaces other than lo. It goes with the test.
func NewNode(t testing.TB, name string) *Node {
	t.Helper()
	Require(t, os.Getenv(stateEnv) == ready, "private namespaces ("+os.Getenv(stateEnv)+")")
	// The test's name keeps parallel tests apart.
	ns := strings.NewReplacer("/", ".", " ", "_").Replace(t.Name()) + "." + name
	n := &Node{Name: name, NetNS: netnsDir + ns, t: t, turns: silence}
	command(t, "ip", "netns", "add", ns)
	t.Cleanup(func() { command(t, "ip", "netns", "del", ns) })
	// Without duplicate address detection IPv6 works at once, not a second
	// after an interface comes up.
	n.Sysctl("ipv6.conf.all.accept_dad", "0")
	n.Sysctl("ipv6.conf.default.accept_dad", "0")
	n.Run("ip", "link", "set", "lo", "up")
	return n
}

// command runs a program of the test itself, in its own namespace.
func command(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Command prepares a program to be run on the node.
func (n *Node) Command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + n.NetNS, "--"}, args...)...)
}

// Try runs a program on the node and returns what it printed.
func (n *Node) Try(args ...string) (string, error) {
	n.t.Helper()
	out, err := n.Command(args...).CombinedOutput()
	n.t.Logf("%s# %s\n%s", n.Name, strings.Join(args, " "), out)
	return string(out), err
}

// Run is Try for a program that must succeed.
func (n *Node) Run(args ...string) string {
	n.t.Helper()
	out, err := n.Try(args...)
	if err != nil {
		n.t.Fatalf("%s: %s: %v\n%s", n.Name, strings.Join(args, " "), err, out)
	}
	return out
}

// Do runs fn with the node's network: sockets that it opens and programs that
// it starts are the node's. fn must not hand work to goroutines that open
// sockets of their own.
func (n *Node) Do(fn func() error) error {
	errc := make(chan error, 1)
	go func() {
		defer close(errc)
		// Never unlocked: the thread ends with the goroutine, and no
		// other goroutine finds itself in the wrong namespace.
		runtime.LockOSThread()
		ns, err := os.Open(n.NetNS)
		if err != nil {
			errc <- err
			return
		}
		defer func() { _ = ns.Close() }()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			errc <- fmt.Errorf("enter %s: %w", n.NetNS, err)
			return
		}
		errc <- fn()
	}()
	return <-errc
}

// MustDo is Do for something that must succeed.
func (n *Node) MustDo(fn func() error) {
	n.t.Helper()
	if err := n.Do(fn); err != nil {
		n.t.Fatalf("%s: %v", n.Name, err)
	}
}

// Sysctl sets a network setting of the node: "ipv4.ip_forward", "1".
func (n *Node) Sysctl(key, value string) {
	n.t.Helper()
	n.Run("sh", "-c", "echo "+value+" > /proc/sys/net/"+strings.ReplaceAll(key, ".", "/"))
}
