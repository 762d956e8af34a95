package e2e

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// A daemon is a program of the host that can be started, stopped, killed, and
// started again. Its output is shown if the test fails.
type daemon struct {
	lab  *lab
	name string
	args []string
	// socket is where it listens once it is ready; "" if it doesn't.
	socket string

	cmd   *exec.Cmd // nil while it isn't running
	ended chan error
}

func (l *lab) newDaemon(name, socket string, args ...string) *daemon {
	d := &daemon{lab: l, name: name, socket: socket, args: args}
	l.t.Cleanup(func() {
		if out, err := os.ReadFile(d.log()); err == nil && l.t.Failed() {
			l.t.Logf("output of %s:\n%s", name, tail(string(out), 60))
		}
	})
	return d
}

func (d *daemon) log() string { return filepath.Join(d.lab.dir, d.name+".log") }

// start returns when the daemon listens.
func (d *daemon) start() {
	t := d.lab.t
	t.Helper()
	if d.cmd != nil {
		t.Fatalf("%s is running already", d.name)
	}
	log, err := os.OpenFile(d.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	// nsenter forks, so the shell notes the daemon's own process id.
	cmd := d.lab.command(append([]string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, "/run/" + d.name + ".e2e-pid"}, d.args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", d.name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	d.cmd, d.ended = cmd, ended
	if d.socket == "" {
		return
	}
	eventually(t, d.name+" listens", func() bool {
		select {
		case err := <-ended:
			d.cmd = nil
			t.Fatalf("%s ended instead of listening: %v", d.name, err)
		default:
		}
		c, err := net.Dial("unix", d.lab.path(d.socket))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// signal sends a signal and waits for the daemon to end.
func (d *daemon) signal(name string) {
	t := d.lab.t
	t.Helper()
	if d.cmd == nil {
		t.Fatalf("%s is not running", d.name)
	}
	pid, err := os.ReadFile(d.lab.path("/run/" + d.name + ".e2e-pid"))
	if err != nil {
		t.Fatal(err)
	}
	d.lab.must("sh", "-c", `kill -"$0" "$1"`, name, strings.TrimSpace(string(pid)))
	select {
	case <-d.ended:
		d.cmd = nil
	case <-time.After(long):
		t.Fatalf("%s does not end after SIG%s", d.name, name)
	}
}

func (l *lab) newEngine() *daemon {
	l.t.Helper()
	config := filepath.Join(l.dir, "daemon.json")
	content := l.opts.daemon
	if content == "" {
		content = "{}"
	}
	if err := os.WriteFile(config, []byte(content), 0o644); err != nil {
		l.t.Fatal(err)
	}
	return l.newDaemon("dockerd", "/run/docker.sock", "dockerd",
		"--config-file", config, "--data-root", filepath.Join(l.dir, "data"),
		"--host", "unix:///run/docker.sock", "--cgroup-parent", "/"+l.cgroup())
}

func (l *lab) newPlugin() *daemon {
	backend := cmp.Or(l.opts.backend, os.Getenv("EXTIP_TEST_BACKEND"), "auto")
	args := []string{filepath.Join(l.dir, "bin", "extip"), "serve", "--backend", backend,
		"--plugin-socket", pluginSocket, "--state", filepath.Join(l.dir, "extip.db"), "--log-level", "debug"}
	return l.newDaemon("extip", pluginSocket, append(args, l.opts.plugin...)...)
}

const pluginSocket = "/run/docker/plugins/extip.sock"

// startEngine returns when the engine answers, with the probe's image loaded.
func (l *lab) startEngine() {
	l.t.Helper()
	l.engine.start()
	l.docker("version", "-f", "engine {{.Server.Version}}") // for the log; it also waits until the engine answers
	if l.docker("images", "-q", probeImage) == "" {
		l.importProbe()
	}
}

// stopEngine ends the engine as a shutdown does: containers stop too, unless
// live-restore is on.
func (l *lab) stopEngine() { l.t.Helper(); l.engine.signal("TERM") }

// killEngine ends the engine without a chance to tidy up.
func (l *lab) killEngine() { l.t.Helper(); l.engine.signal("KILL") }

// startPlugin returns when the plugin's socket can be dialled.
func (l *lab) startPlugin() {
	l.t.Helper()
	if program := l.plugin.args[0]; !exists(program) {
		install(l.t, extipBinary(l.t), program)
	}
	l.plugin.start()
}

// stopPlugin ends the plugin as a service manager does.
func (l *lab) stopPlugin() { l.t.Helper(); l.plugin.signal("TERM") }

// killPlugin ends the plugin without a chance to tidy up.
func (l *lab) killPlugin() { l.t.Helper(); l.plugin.signal("KILL") }

// pluginLog is what the plugin has logged.
func (l *lab) pluginLog() string {
	l.t.Helper()
	out, err := os.ReadFile(l.plugin.log())
	if err != nil {
		l.t.Fatal(err)
	}
	return string(out)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// noise is what the engine says about its own parts at every start.
var noise = regexp.MustCompile(`loading plugin|msg="?\[core\]|msg=serving|\|(ofproto|dpif)_`)

// tail is the last n lines of a text that are not noise.
func tail(s string, n int) string {
	lines := slices.DeleteFunc(strings.SplitAfter(s, "\n"), noise.MatchString)
	if cut := len(lines) - n; cut > 0 {
		lines = append([]string{fmt.Sprintf("… %d lines before …\n", cut)}, lines[cut:]...)
	}
	return strings.Join(lines, "")
}

// install writes a program.
func install(t testing.TB, program []byte, path string) {
	t.Helper()
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
}
