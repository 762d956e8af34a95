package iptables

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
	"golang.org/x/sys/unix"
)

// patience is how long a hint may take on a busy machine; the time it does
// take is logged.
const patience = 30 * time.Second

// watched is a backend on a node, with a watcher that runs.
type watched struct {
	on
	t      testing.TB
	hints  chan time.Time
	cancel context.CancelFunc
	done   chan error
}

func watching(t testing.TB, flavour string, interval time.Duration) *watched {
	t.Helper()
	return startWatch(t, open(t, nettest.NewNode(t, "host"), flavour).(on), interval)
}

func startWatch(t testing.TB, o on, interval time.Duration) *watched {
	t.Helper()
	w := &watched{on: o, t: t, hints: make(chan time.Time, 10000), done: make(chan error, 1)}
	var watcher *Watcher
	w.node.MustDo(func() (err error) {
		watcher, err = w.backend().Watch()
		return err
	})
	watcher.Interval = interval
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	t.Cleanup(cancel)
	go func() { w.done <- watcher.Run(ctx, func() { w.hints <- time.Now() }) }()
	return w
}

func (w *watched) backend() *Backend { return w.b.(*Backend) }

// quiet is how many hints there are until all that has happened is told. The
// watcher's interval is to be much shorter. It waits for turns of the process,
// as a machine that stands still keeps the watcher waiting, too.
func (w *watched) quiet() (hints int) {
	for turns := 0; turns < 10; turns++ {
		select {
		case <-w.hints:
			hints++
			turns = 0
		case <-time.After(10 * time.Millisecond):
		}
	}
	return hints
}

// await returns when a hint comes after what began.
func (w *watched) await(began time.Time, what string) {
	w.t.Helper()
	select {
	case at := <-w.hints:
		w.t.Logf("hint within %v: %s", at.Sub(began).Round(100*time.Microsecond), what)
	case <-time.After(patience):
		w.t.Errorf("no hint after %s", what)
	}
}

func (w *watched) end() {
	w.t.Helper()
	w.cancel()
	select {
	case err := <-w.done:
		if err != nil {
			w.t.Errorf("Run: %v", err)
		}
	case <-time.After(patience):
		w.t.Fatal("Run goes on after its context")
	}
}

func example() nat.State {
	return nat.State{
		Networks: []nat.Network{nattest.Net(1), nattest.Net(2)},
		Mappings: []nat.Mapping{nattest.Map4(1, 1), nattest.Map6(1, 1), nattest.Map4(2, 20)},
	}
}

// What the backend writes itself gives no hint.
func TestWatchIgnoresOwnWrites(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		w := watching(t, flavour, 10*time.Millisecond)
		step := func(what string, fn func() error) {
			t.Helper()
			if err := fn(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if hints := w.quiet(); hints != 0 {
				t.Errorf("%s: %d hints", what, hints)
			}
		}
		sync := func(s nat.State) func() error {
			return func() error {
				_, err := w.Sync(s)
				return err
			}
		}
		step("first sync", sync(example()))
		step("second sync", sync(example()))
		step("add", func() error { return w.Add(nattest.Map4(1, 7), nattest.Map6(1, 7)) })
		step("move", func() error {
			m := nattest.Map4(1, 8)
			m.External = nattest.Map4(1, 7).External
			return w.Add(m)
		})
		step("add again", func() error { return w.Add(nattest.Map4(1, 8)) })
		step("remove", func() error { return w.Remove(nattest.Map4(1, 8), nattest.Map6(1, 7)) })
		step("remove network", func() error { return w.RemoveNetwork(nattest.Net(2)) })
		step("empty", sync(nat.State{}))
		step("add network", func() error { return w.AddNetwork(nattest.Net(1)) })
		step("burst", func() error {
			var errs []error
			for i := range 50 {
				errs = append(errs, w.Add(nattest.Map4(1, 1+i)))
			}
			return errors.Join(errs...)
		})
		w.end()
	})
}

// Whatever others do to our rules, or to what is before them, gives a hint,
// and what the hint leads to gives none.
func TestWatchNoticesOthers(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		w := watching(t, flavour, 20*time.Millisecond)
		if _, err := w.Sync(example()); err != nil {
			t.Fatal(err)
		}
		ipt, ipt6 := "iptables-"+flavour, "ip6tables-"+flavour
		leaf := leafRule(t, w.node.Run(ipt+"-save", "-t", "nat"))
		for _, cmd := range []string{
			ipt + " -t nat -F",
			ipt + " -t mangle -F",
			ipt + " -F",
			ipt6 + " -t nat -F",
			ipt + " -t nat -I PREROUTING 1 -j ACCEPT",
			ipt + " -t nat -D PREROUTING -j XIP-PRE -m comment --comment extip",
			ipt + " -t nat -D " + leaf,
			ipt + " -I FORWARD 1 -j REJECT",
			"nft flush ruleset",
			"nft delete table ip6 nat",
		} {
			if strings.HasPrefix(cmd, "nft") && flavour != "nft" {
				continue
			}
			began := time.Now()
			w.node.Run("sh", "-c", cmd)
			w.await(began, cmd)
			w.quiet()
			repaired, err := w.Repair()
			if err != nil || len(repaired) == 0 {
				t.Errorf("%s: repaired %q, %v", cmd, repaired, err)
			}
			if hints := w.quiet(); hints != 0 {
				t.Errorf("%s: %d hints of the repair", cmd, hints)
			}
		}
		w.end()
	})
}

// leafRule is one of our rules for a single address.
func leafRule(t testing.TB, save string) string {
	t.Helper()
	for line := range strings.Lines(save) {
		if strings.Contains(line, "DNAT --to-destination") {
			return strings.TrimPrefix(strings.TrimSpace(line), "-A ")
		}
	}
	t.Fatal("no leaf rule in\n" + save)
	return ""
}

// A foreign change between two of our own writes, or during one, isn't taken
// for ours.
func TestWatchTellsForeignFromOwn(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		w := watching(t, flavour, 10*time.Millisecond)
		if _, err := w.Sync(example()); err != nil {
			t.Fatal(err)
		}
		w.quiet()
		for _, when := range []string{"before", "after"} {
			for _, s := range w.backend().sides {
				s.tool.run = func(stdin, path string, args ...string) (string, error) {
					foreign := func(point string) error {
						if stdin == "" || point != when {
							return nil
						}
						_, err := run("", "iptables-"+flavour, "-t", "nat", "-D", "POSTROUTING", "-j", chainPost, "-m", "comment", "--comment", mark)
						return err
					}
					if err := foreign("before"); err != nil {
						return "", err
					}
					out, err := run(stdin, path, args...)
					return out, errors.Join(err, foreign("after"))
				}
			}
			began := time.Now()
			if err := w.Add(nattest.Map4(1, 9)); err != nil {
				t.Fatal(err)
			}
			w.await(began, "a change just "+when+" our own write")
			for _, s := range w.backend().sides {
				s.tool.run = run
			}
			if _, err := w.Sync(example()); err != nil {
				t.Fatal(err)
			}
			w.quiet()
		}
		w.end()
	})
}

// Changes that can't concern us give no hint where the kernel says what changed.
func TestWatchLeavesOutTheRest(t *testing.T) {
	w := watching(t, "nft", 0)
	if _, err := w.Sync(example()); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []string{
		"nft add table inet other",
		"nft add chain inet other PREROUTING '{ type nat hook prerouting priority -5; }'",
		"nft add rule inet other PREROUTING counter",
		"nft delete table inet other",
		"iptables-nft -t nat -N DOCKER",
		"iptables-nft -t nat -A DOCKER -j RETURN",
		"iptables-nft -t nat -F DOCKER",
		"iptables-nft -P FORWARD DROP",
	} {
		w.node.Run("sh", "-c", cmd)
		if hints := w.quiet(); hints != 0 {
			t.Errorf("%s: %d hints", cmd, hints)
		}
	}
	began := time.Now()
	w.node.Run("iptables-nft", "-t", "nat", "-F")
	w.await(began, "a flush after all that")
	w.end()
}

// More events than the kernel keeps for us are a hint of their own, and what
// comes after them is heard.
func TestWatchOverrun(t *testing.T) {
	w := watching(t, "nft", 0)
	if _, err := w.Sync(example()); err != nil {
		t.Fatal(err)
	}
	w.quiet()
	conn, err := w.backend().sides[0].tool.ledger.(*events).heard.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var serr error
	shrink := func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10) }
	if err := errors.Join(conn.Control(shrink), serr); err != nil {
		t.Fatal(err)
	}
	rules := "*nat\n:OTHER - [0:0]\n" + strings.Repeat("-A OTHER -j RETURN\n", 500) + "COMMIT\n"
	file := t.TempDir() + "/rules"
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	// Run waits for the lock when it has heard of the first change.
	w.backend().writing.Lock()
	w.node.Run("iptables-nft", "-t", "nat", "-I", "PREROUTING", "-j", "ACCEPT")
	for deadline := time.Now().Add(patience); waiting(t, conn); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the first change isn't heard")
		}
	}
	began := time.Now()
	w.node.Run("iptables-nft-restore", "--noflush", file)
	w.backend().writing.Unlock()
	w.await(began, "a change")
	w.await(began, "an overrun")
	w.quiet()
	began = time.Now()
	w.node.Run("iptables-nft", "-t", "nat", "-D", "PREROUTING", "1")
	w.await(began, "a change after the overrun")
	w.end()
}

// waiting tells whether a socket has something to read.
func waiting(t *testing.T, conn syscall.RawConn) bool {
	t.Helper()
	var rerr error
	look := func(fd uintptr) {
		_, _, rerr = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	}
	if err := conn.Control(look); err != nil {
		t.Fatal(err)
	}
	return !errors.Is(rerr, unix.EAGAIN)
}

// A watcher that comes late knows what is there.
func TestWatchAfterSync(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		node := nettest.NewNode(t, "host")
		b := open(t, node, flavour)
		if _, err := b.Sync(example()); err != nil {
			t.Fatal(err)
		}
		w := startWatch(t, b.(on), 0) // with the default interval
		began := time.Now()
		node.Run("ip6tables-"+flavour, "-t", "nat", "-F")
		w.await(began, "a flush")
		w.end()
	})
}

// Watching doesn't bring tables into the kernel.
func TestWatchLoadsNoTable(t *testing.T) {
	nettest.RequireTool(t, "iptables-legacy")
	w := watching(t, "legacy", time.Millisecond)
	tables := func() string {
		return w.node.Run("cat", "/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names")
	}
	before := tables()
	w.quiet()
	if after := tables(); after != before {
		t.Errorf("tables %q, were %q", after, before)
	}
	w.end()
}

func TestWatchEnds(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		node := nettest.NewNode(t, "host")
		b := open(t, node, flavour).(on).b.(*Backend)
		const rounds = 10
		goroutines, files := 0, 0
		for round := range rounds + 1 {
			if round == 1 { // after the first, there is what the process opens once
				goroutines, files = runtime.NumGoroutine(), openFiles(t)
			}
			var w *Watcher
			node.MustDo(func() (err error) {
				w, err = b.Watch()
				if _, err := b.Watch(); !errors.Is(err, errWatched) {
					t.Errorf("second watcher: %v", err)
				}
				return err
			})
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error)
			go func() { done <- w.Run(ctx, func() {}) }()
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			// The context may have ended before.
			node.MustDo(func() (err error) {
				w, err = b.Watch()
				return err
			})
			if err := w.Run(ctx, func() {}); err != nil {
				t.Error(err)
			}
		}
		// What else the process has may come and go meanwhile, but not
		// every second round.
		ended := func() bool {
			return runtime.NumGoroutine() < goroutines+rounds/2 && openFiles(t) < files+rounds/2
		}
		for deadline := time.Now().Add(patience); !ended() && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		if !ended() {
			t.Errorf("after %d rounds %d goroutines, were %d; %d open files, were %d",
				rounds, runtime.NumGoroutine(), goroutines, openFiles(t), files)
		}
	})
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func BenchmarkWatch(b *testing.B) {
	b.Run("generation", func(b *testing.B) {
		w := watching(b, "nft", 0)
		for b.Loop() {
			if _, err := w.backend().sides[0].tool.ledger.(*events).generation(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("sizes", func(b *testing.B) {
		w := watching(b, "legacy", time.Hour)
		if _, err := w.Sync(example()); err != nil {
			b.Fatal(err)
		}
		z := w.backend().sides[0].tool.ledger.(*sizes)
		if len(z.known) != 6 || slices.ContainsFunc([]place{{family{}, tableNat}, {family{v6: true}, tableNat}}, func(p place) bool { return z.known[p].entries == 0 }) {
			b.Fatalf("watches %v", z.known)
		}
		for b.Loop() {
			if z.look() {
				b.Fatal("differs")
			}
		}
	})
}
