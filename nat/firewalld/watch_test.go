package firewalld

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/extip/extip/internal/nettest"
)

// patience is how long a hint may take on a busy machine.
const patience = 30 * time.Second

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>custom</type>
  <listen>%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
`

// A bus is a message bus of the test's own.
type bus struct {
	t       *testing.T
	address string
	config  string
	daemon  *exec.Cmd
}

func newBus(t *testing.T) *bus {
	t.Helper()
	nettest.RequireTool(t, "dbus-daemon")
	dir, err := os.MkdirTemp("", "bus") // a socket's path is short: 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &bus{t: t, address: "unix:path=" + filepath.Join(dir, "socket"), config: filepath.Join(dir, "config")}
	if err := os.WriteFile(b.config, fmt.Appendf(nil, busConfig, b.address), 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bus) start() {
	b.t.Helper()
	b.daemon = exec.Command("dbus-daemon", "--nofork", "--nopidfile", "--config-file="+b.config)
	b.daemon.Stderr = b.t.Output()
	if err := b.daemon.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(b.stop)
}

func (b *bus) stop() {
	_ = b.daemon.Process.Kill()
	_ = b.daemon.Wait()
}

// connect waits until the bus is there.
func (b *bus) connect() *dbus.Conn {
	b.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		conn, err := dbus.Connect(b.address)
		if err == nil {
			b.t.Cleanup(func() { _ = conn.Close() })
			return conn
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("no bus: %v", err)
		}
	}
}

// A service stands for firewalld.
type service struct{ *dbus.Conn }

func (b *bus) service() service {
	b.t.Helper()
	s := service{b.connect()}
	if _, err := s.RequestName(firewalldName, dbus.NameFlagDoNotQueue); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// run runs a watcher until the test ends, and returns its hints.
func run(t *testing.T, w *Watcher) (hints chan struct{}, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	hints, done := make(chan struct{}, 1000), make(chan error, 1)
	go func() { done <- w.Run(ctx, func() { hints <- struct{}{} }) }()
	end = func() {
		t.Helper()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
			done <- nil
		case <-time.After(patience):
			t.Fatal("Run goes on after its context")
		}
	}
	t.Cleanup(end)
	return hints, end
}

func await(t *testing.T, hints <-chan struct{}, what string) {
	t.Helper()
	began := time.Now()
	select {
	case <-hints:
		t.Logf("hint after %v: %s", time.Since(began).Round(time.Microsecond), what)
	case <-time.After(patience):
		t.Errorf("no hint after %s", what)
	}
}

func awaitNone(t *testing.T, hints <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-hints:
		t.Errorf("hint after %s", what)
	case <-time.After(100 * time.Millisecond):
	}
}

func emit(t *testing.T, conn *dbus.Conn, name string) {
	t.Helper()
	if err := conn.Emit("/org/fedoraproject/FirewallD1", name); err != nil {
		t.Fatal(err)
	}
}

func TestRun(t *testing.T) {
	b := newBus(t)
	b.start()
	stranger := b.connect()
	hints, _ := run(t, &Watcher{Address: b.address})
	await(t, hints, "connecting")
	firewalld := b.service()
	await(t, hints, "firewalld's start")
	for range 3 {
		emit(t, firewalld.Conn, firewalldName+".Reloaded")
		await(t, hints, "a reload")
	}
	emit(t, firewalld.Conn, firewalldName+".LogDeniedChanged")
	awaitNone(t, hints, "another signal")
	emit(t, stranger, firewalldName+".Reloaded")
	awaitNone(t, hints, "a stranger's signal")
	if _, err := stranger.RequestName("org.example.Other", dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	awaitNone(t, hints, "a stranger's start")
	if _, err := firewalld.ReleaseName(firewalldName); err != nil {
		t.Fatal(err)
	}
	await(t, hints, "firewalld's end")
	awaitNone(t, hints, "all that")
}

// The bus may come late, go and come back.
func TestRunConnectsAgain(t *testing.T) {
	b := newBus(t)
	hints, _ := run(t, &Watcher{Address: b.address, MinWait: time.Millisecond, MaxWait: 20 * time.Millisecond})
	awaitNone(t, hints, "a start without a bus")
	for range 3 {
		b.start()
		await(t, hints, "the bus's start")
		firewalld := b.service()
		await(t, hints, "firewalld's start")
		emit(t, firewalld.Conn, firewalldName+".Reloaded")
		await(t, hints, "a reload")
		b.stop()
		awaitNone(t, hints, "the bus's end")
	}
}

// A bus that turns everybody away isn't asked all the time.
func TestRunBacksOff(t *testing.T) {
	b := newBus(t)
	l, err := net.Listen("unix", b.address[len("unix:path="):])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var attempts atomic.Int32
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			attempts.Add(1)
			_ = c.Close()
		}
	}()
	began := time.Now()
	hints, end := run(t, &Watcher{Address: b.address, MinWait: 5 * time.Millisecond, MaxWait: 40 * time.Millisecond})
	for attempts.Load() < 8 && time.Since(began) < patience {
		time.Sleep(time.Millisecond)
	}
	took := time.Since(began)
	end()
	// Seven waits: 5, 10, 20 and four times 40 ms.
	if took < 195*time.Millisecond || attempts.Load() < 8 {
		t.Errorf("%d attempts in %v", attempts.Load(), took)
	}
	awaitNone(t, hints, "being turned away")
}

func TestRunLeavesNothing(t *testing.T) {
	b := newBus(t)
	b.start()
	_ = b.connect().Close()
	before := runtime.NumGoroutine()
	for range 10 {
		hints, end := run(t, &Watcher{Address: b.address})
		await(t, hints, "connecting")
		end()
	}
	// A bus that doesn't answer.
	silent := newBus(t)
	l, err := net.Listen("unix", silent.address[len("unix:path="):])
	if err != nil {
		t.Fatal(err)
	}
	_, end := run(t, &Watcher{Address: silent.address})
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	end()
	_, _ = c.Close(), l.Close()
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > before && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, were %d", n, before)
	}
}
