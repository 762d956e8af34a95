package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"github.com/extip/extip/admin"
	"github.com/extip/extip/driver"
	"github.com/extip/extip/internal/admintest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) {
	time.Local = time.UTC
	flag.Parse()
	os.Exit(m.Run())
}

// fakeEngine has the example's networks, and containers.
type fakeEngine struct{ down bool }

var errDown = errors.New("nobody answers")

func (e fakeEngine) Networks(context.Context) (map[string]string, error) {
	if e.down {
		return nil, errDown
	}
	return map[string]string{admintest.Web: "web-network", admintest.Shop: "shop", "f00": "bridge"}, nil
}

// containers are those of the engine, by their ids.
func containers() map[string]container {
	return map[string]container{
		"c0ffee000001": {"web", map[string]string{admintest.Web: admintest.Endpoint, "f00": "ba4"}},
		"c0ffee000002": {"both", map[string]string{admintest.Web: admintest.Other, admintest.Shop: admintest.Third}},
		"c0ffee000003": {"stopped", nil},
		"c0ffee000004": {"plain", map[string]string{"f00": "ba4"}},
	}
}

func (e fakeEngine) Containers(context.Context) ([]container, error) {
	if e.down {
		return nil, errDown
	}
	c := containers()
	return []container{c["c0ffee000002"], c["c0ffee000004"], c["c0ffee000001"]}, nil
}

func (e fakeEngine) Container(_ context.Context, name string) (container, error) {
	if e.down {
		return container{}, errDown
	}
	for id, c := range containers() {
		if name == c.name || strings.HasPrefix(id, name) {
			return c, nil
		}
	}
	return container{}, errors.New("the engine has no such container")
}

// start serves a plugin and returns the path of its socket.
func start(t *testing.T, p admin.Plugin) string {
	t.Helper()
	access := admin.Access{Group: -1}
	path := t.TempDir() + "/admin.sock"
	l, err := access.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	about := admin.About{Version: "v1.2.3", Backend: "nftables", Started: admintest.Now.Add(-3 * time.Hour)}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := admin.NewServer(p, about, access, log).Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(done.Wait)
	t.Cleanup(cancel)
	return path
}

// run is one call of the program: what it prints, errors too, and its exit code
// unless that is 0.
func run(t *testing.T, a *app, args ...string) string {
	t.Helper()
	a.version, a.now, a.patience = "v1.2.4", func() time.Time { return admintest.Now }, time.Minute
	var out bytes.Buffer
	cmd := newCommand(a)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	if err != nil && err.Error() != "" {
		_, _ = fmt.Fprintln(&out, "extip:", err)
	}
	if code := ExitCode(err); code != 0 {
		_, _ = fmt.Fprintln(&out, "exit code", code)
	}
	return out.String()
}

// golden compares a text with a file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

// transcript runs commands, and shows each before what it printed.
func transcript(t *testing.T, with func() *app, commands ...string) string {
	t.Helper()
	var b strings.Builder
	for _, c := range commands {
		_, _ = fmt.Fprintf(&b, "$ extip %s\n%s\n", c, run(t, with(), strings.Fields(c)...))
	}
	return b.String()
}

func TestLooks(t *testing.T) {
	plugin := admintest.Example()
	socket := start(t, plugin)
	with := func() *app { return &app{plugin: admin.NewClient(socket), engine: fakeEngine{}} }
	golden(t, "looks.txt", transcript(t, with,
		"status", "show 203.0.113.57", "show web", "show 2e1b2c3d4e5f", "show c0ffee000001", "show 203.0.113.99", "show nobody",
		"networks", "reservations", "hosts", "check", "doctor", "trace 203.0.113.56:80", "trace [2001:db8::56]:53/udp --from 2001:db8::9 --json", "export", "version", "--version"))
	plugin.Has[0].Container = ""
	if got := run(t, with(), "show", "web"); !strings.Contains(got, "container    web\n") {
		t.Errorf("a name that the plugin doesn't know:\n%s", got)
	}
	plugin.Has[0].Container = "web"
	golden(t, "looks.json.txt", transcript(t, with,
		"status --json", "show mail --json", "networks --json", "reservations --json", "hosts --json", "check --json", "version --json"))
	plugin.Differs = []string{"alias 203.0.113.56 is missing on br-ex", "the rules of container web are missing"}
	golden(t, "check.txt", transcript(t, with, "check", "check --json"))
	plugin.Has[1].Reason, plugin.Has[1].HeldBy = "it is held by host docker2", "docker2"
	plugin.Hosts[0].ApartSince, plugin.Hosts[1].Alive = admintest.Now.Add(-90*time.Second), true
	golden(t, "apart.txt", transcript(t, with, "status", "show mail", "hosts"))
	plugin.Has, plugin.Nets, plugin.Kept, plugin.Hosts = nil, nil, nil, nil
	golden(t, "empty.txt", transcript(t, with, "status", "status --json", "networks", "networks --json", "reservations", "reservations --json", "hosts", "hosts --json"))
}

// TestWithoutEngine: addresses can be looked at without it, networks by their
// ids.
func TestWithoutEngine(t *testing.T) {
	socket := start(t, admintest.Example())
	with := func() *app { return &app{plugin: admin.NewClient(socket), engine: fakeEngine{down: true}} }
	golden(t, "without-engine.txt", transcript(t, with,
		"status", "show web", "networks", "detach 203.0.113.56", "move 203.0.113.56 web", "attach web"))
}

// TestNarrow: tables fit the terminal, with the same words in colour.
func TestNarrow(t *testing.T) {
	socket := start(t, admintest.Example())
	var b strings.Builder
	for _, width := range []int{120, 80, 60, 40} {
		for _, verb := range []string{"status", "networks", "reservations"} {
			got := run(t, &app{plugin: admin.NewClient(socket), engine: fakeEngine{}, width: width}, verb)
			for line := range strings.Lines(got) {
				if n := utf8.RuneCountInString(strings.TrimSpace(line)); n > width && width >= 60 && !strings.Contains(line, " is ") {
					t.Errorf("%s in %d columns has a line of %d: %s", verb, width, n, line)
				}
			}
			_, _ = fmt.Fprintf(&b, "%s in %d columns\n%s\n", verb, width, got)
		}
	}
	golden(t, "narrow.txt", b.String())
	colored := run(t, &app{plugin: admin.NewClient(socket), engine: fakeEngine{}, width: 80, color: true}, "status")
	for _, want := range []string{"\x1b[32mpublished\x1b[0m", "\x1b[31mwithheld\x1b[0m"} {
		if !strings.Contains(colored, want) {
			t.Errorf("no %q in %q", want, colored)
		}
	}
	plain := strings.NewReplacer("\x1b[32m", "", "\x1b[31m", "", "\x1b[0m", "").Replace(colored)
	if want := run(t, &app{plugin: admin.NewClient(socket), engine: fakeEngine{}, width: 80}, "status"); plain != want {
		t.Errorf("in colour:\n%s\nwithout:\n%s", plain, want)
	}
}

func TestChanges(t *testing.T) {
	plugin := admintest.Example()
	socket := start(t, plugin)
	with := func() *app { return &app{plugin: admin.NewClient(socket), engine: fakeEngine{}} }
	golden(t, "changes.txt", transcript(t, with,
		"attach web", "attach c0ffee000001 203.0.113.60 2001:db8::60", "attach web --dry-run", "attach both 203.0.113.60",
		"attach both 203.0.113.60 --network shop", "attach both --network 0a1b2c3d4e5f", "attach web --network shop",
		"attach stopped", "attach plain", "attach nobody",
		"detach 203.0.113.60", "detach ::ffff:203.0.113.60 --dry-run --json", "move 203.0.113.56 web", "move 203.0.113.56 both --network web-network --drain", "move 203.0.113.56 docker2/web", "move 203.0.113.56 docker2/web --dry-run",
		"adopt --dry-run", "ports web tcp/80,icmp", "allow web 192.0.2.0/24 --dry-run", "allow web",
		"limit web rate=50/s --dry-run", "limit 203.0.113.56 connections=20000,rate=500/s", "limit 203.0.113.99 none", "limit web",
		"reserve mail 203.0.113.60 203.0.113.61", "unreserve mail --quiet", "unreserve mail --json", "reconcile", "reconcile --dry-run"))
	plugin.Left = []string{"172.31.0.2 keeps its reservation"}
	plugin.Differs = []string{"alias 203.0.113.56 is missing on br-ex"}
	golden(t, "changes-left.txt", transcript(t, with, "detach 203.0.113.56", "reconcile --dry-run"))
	plugin.Err = errors.New("203.0.113.60 is taken by container \"mail\"")
	golden(t, "changes-refused.txt", transcript(t, with, "attach web 203.0.113.60", "unreserve mail -q"))
}

func TestUsage(t *testing.T) {
	with := func() *app {
		return &app{plugin: admin.NewClient(t.TempDir() + "/none"), engine: fakeEngine{}}
	}
	text := transcript(t, with, "stats", "fly", "trace x", "trace 203.0.113.56/tcp", "trace 203.0.113.56:80/foo", "export --format xml", "show", "show a b", "move 203.0.113.56", "detach web", "attach web fe80::1%eth0", "reserve mail", "status --color", "status --watch --interval 1ms")
	golden(t, "usage.txt", text)
	got := run(t, with(), "status")
	if !strings.Contains(got, "is `extip serve` running?") || !strings.HasSuffix(got, "exit code 3\n") {
		t.Errorf("without a plugin: %s", got)
	}
}

// TestHelp: every verb has a line, a text without long lines, and an example.
func TestHelp(t *testing.T) {
	root := New("v1")
	for _, cmd := range root.Commands() {
		if cmd.Short == "" || cmd.Example == "" || cmd.Args == nil || cmd.ValidArgsFunction == nil || cmd.GroupID == "" {
			t.Errorf("%s has no short help, example, arguments, completion or group", cmd.Name())
		}
		for line := range strings.Lines(cmd.Long + "\n" + cmd.Example) {
			if utf8.RuneCountInString(line) > 90 {
				t.Errorf("%s: a long line: %s", cmd.Name(), line)
			}
		}
	}
	golden(t, "help.txt", run(t, &app{}, "help"))
}

func TestCompletion(t *testing.T) {
	socket := start(t, admintest.Example())
	with := func() *app { return &app{plugin: admin.NewClient(socket), engine: fakeEngine{}} }
	for _, tt := range []struct{ args, want string }{
		{"detach|", "203.0.113.56\tweb 203.0.113.57\tmail 203.0.113.58\tproduction_frontend_reverse-proxy_1 2001:db8:0:ffff:203:113:56:58\tproduction_frontend_reverse-proxy_1"},
		{"detach|203.0.113.56|", ""},
		{"attach|", "both web"},
		{"attach|web|", ""},
		{"move|203.0.113.56|", "both web docker2/\ta container of that host"},
		{"move|203.0.113.56|web|", ""},
		{"unreserve|", "mail spare"},
		{"attach|web|--network|", "web-network shop"},
		{"status|", ""},
	} {
		args := append([]string{"__complete"}, strings.Split(tt.args, "|")...)
		got, _, _ := strings.Cut(run(t, with(), args...), ":4\n")
		if got := strings.TrimSpace(strings.ReplaceAll(got, "\n", " ")); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.args, got, tt.want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if got := run(t, with(), "completion", shell); !strings.Contains(got, "__complete") {
			t.Errorf("%s: %.200s", shell, got)
		}
	}
}

// TestEvents follows a stream until the plugin goes.
func TestEvents(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"events", "2026-11-24 12:00:00 moved 203.0.113.56 container web: from container old\n2026-11-24 12:00:00 network-created network 0a1b2c3d4e5f\n"},
		{"events --json", `{"time":"2026-11-24T12:00:00Z","kind":"moved","address":"203.0.113.56","endpoint":"e","container":"web","text":"from container old"}` + "\n" +
			`{"time":"2026-11-24T12:00:00Z","kind":"network-created","network":"` + admintest.Web + `"}` + "\n"},
	} {
		plugin := admintest.Example()
		socket := start(t, plugin)
		ctx, cancel := context.WithCancel(t.Context())
		var out lockedBuffer
		cmd := newCommand(&app{plugin: admin.NewClient(socket), engine: fakeEngine{}, now: time.Now, patience: time.Minute})
		cmd.SetOut(&out)
		cmd.SetArgs(strings.Fields(tt.args))
		ended := make(chan error, 1)
		go func() { ended <- cmd.ExecuteContext(ctx) }()
		eventually(t, "it listens", func() bool { return plugin.Listeners() == 1 })
		plugin.Emit(driver.Event{Time: admintest.Now, Kind: driver.EventMoved, Address: plugin.Has[0].External, Endpoint: "e", Container: "web", Text: "from container old"})
		plugin.Emit(driver.Event{Time: admintest.Now, Kind: driver.EventNetworkCreated, Network: admintest.Web})
		eventually(t, "both are printed", func() bool { return strings.Count(out.String(), "\n") == 2 })
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("when interrupted: %v", err)
		}
		if diff := cmp.Diff(tt.want, out.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.args, diff)
		}
	}
}

// TestLive follows packets until it is interrupted, or its time is over.
func TestLive(t *testing.T) {
	plugin := admintest.Example()
	socket := start(t, plugin)
	var text strings.Builder
	for _, tt := range []struct {
		args         string
		width, lines int
	}{{"trace --live 203.0.113.56:443", 0, 6}, {"trace --live 203.0.113.56:443", 80, 6}, {"trace --live 203.0.113.56:443 --json", 80, 4}} {
		ctx, cancel := context.WithCancel(t.Context())
		var out lockedBuffer
		cmd := newCommand(&app{plugin: admin.NewClient(socket), engine: fakeEngine{}, now: time.Now, width: tt.width})
		cmd.SetOut(&out)
		cmd.SetArgs(strings.Fields(tt.args))
		ended := make(chan error, 1)
		go func() { ended <- cmd.ExecuteContext(ctx) }()
		eventually(t, "all is printed", func() bool { return strings.Count(out.String(), "\n") == tt.lines })
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("when interrupted: %v", err)
		}
		_, _ = fmt.Fprintf(&text, "$ extip %s (in %d columns)\n%s\n", tt.args, tt.width, out.String())
	}
	with := func() *app { return &app{plugin: admin.NewClient(socket), engine: fakeEngine{}} }
	if got := run(t, with(), "trace", "--live", "203.0.113.56", "--for", "1ms"); strings.Contains(got, "exit code") {
		t.Errorf("when its time is over: %s", got)
	}
	plugin.Err = errors.New("203.0.113.99 is no external address of a container")
	golden(t, "live.txt", text.String()+transcript(t, with, "trace --live 203.0.113.99", "trace --live 203.0.113.56 --from 198.51.100.1", "trace 203.0.113.56 --for 1s"))
}

// TestWatch looks again and again, in place on a terminal.
func TestWatch(t *testing.T) {
	plugin := admintest.Example()
	plugin.Has = plugin.Has[:1]
	socket := start(t, plugin)
	ctx, cancel := context.WithCancel(t.Context())
	var out lockedBuffer
	cmd := newCommand(&app{plugin: admin.NewClient(socket), engine: fakeEngine{}, now: time.Now, patience: time.Minute, width: 80})
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"status", "--watch", "--interval", "100ms"})
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	eventually(t, "it has looked three times", func() bool { return strings.Count(out.String(), "\x1b[H\x1b[2JEXTERNAL") >= 3 })
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("when interrupted: %v", err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not true: %s", what)
		}
	}
}
