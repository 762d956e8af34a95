package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	api "github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"
)

// serveLab serves a lab's driver on a unix socket, as the program does, and
// returns a way to post to it.
func serveLab(t *testing.T, d api.Driver) (post func(path, body string) (int, string)) {
	t.Helper()
	_, path, stop, done := guarded(t, d)
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	t.Cleanup(client.CloseIdleConnections)
	return func(path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://plugin.moby.localhost"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "application/vnd.docker.plugins.v1.2+json")
		res, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, strings.TrimSpace(string(b))
	}
}

// guarded serves a driver behind a Guard, until stop; done then has the result.
func guarded(t *testing.T, d api.Driver) (guard *Guard, path string, stop func(), done <-chan error) {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	path = filepath.Join(t.TempDir(), "extip.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	guard = NewGuard(d, log)
	served := make(chan error, 1)
	go func() { served <- guard.Serve(ctx, l) }()
	return guard, path, stop, served
}

// TestRecordedMessages replays what engines send for one container's life,
// message by message, and compares every answer. Each line of a recording is
// a call: its path, its body, the answer, and its status unless that is 200.
func TestRecordedMessages(t *testing.T) {
	recordings, err := filepath.Glob("testdata/docker-*.jsonl")
	if err != nil || len(recordings) < 3 {
		t.Fatalf("recordings %v, %v", recordings, err)
	}
	for _, file := range recordings {
		t.Run(filepath.Base(file), func(t *testing.T) {
			l := newLab(t)
			post := serveLab(t, l)
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			calls := 0
			for line := range bytes.Lines(content) {
				var call struct {
					Path   string
					Body   json.RawMessage
					Status int
					Answer json.RawMessage
				}
				if err := json.Unmarshal(line, &call); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				calls++
				if call.Status == 0 {
					call.Status = http.StatusOK
				}
				status, got := post(call.Path, string(call.Body))
				if status != call.Status || !sameJSON(t, got, string(call.Answer)) {
					t.Errorf("%s: status %d\n got %s\nwant %s", call.Path, status, got, call.Answer)
				}
			}
			t.Logf("%d messages", calls)
			l.clean()
		})
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var va, vb any
	if err := json.Unmarshal([]byte(a), &va); err != nil {
		t.Errorf("%q is no JSON: %v", a, err)
	}
	if err := json.Unmarshal([]byte(b), &vb); err != nil {
		t.Errorf("%q is no JSON: %v", b, err)
	}
	return fmt.Sprint(va) == fmt.Sprint(vb)
}

var methods = []string{
	"CreateNetwork", "DeleteNetwork", "AllocateNetwork", "FreeNetwork", "CreateEndpoint", "DeleteEndpoint",
	"EndpointOperInfo", "Join", "Leave", "ProgramExternalConnectivity", "RevokeExternalConnectivity",
}

// TestBadBodies: the engine's retry after a lost connection has an empty body.
// Nothing may be taken for a request that isn't one, and nothing may crash.
func TestBadBodies(t *testing.T) {
	l := newLab(t)
	l.network()
	before := l.host.String() + l.recorded()
	post := serveLab(t, l)
	for _, method := range methods {
		for _, body := range []string{"", "nonsense", "null", "{}", `{"NetworkID":""}`, `{"NetworkID":17}`, `[]`, `{"NetworkID":"n","EndpointID":"`} {
			status, answer := post("/NetworkDriver."+method, body)
			if status < 400 {
				t.Errorf("%s %q: status %d, %s", method, body, status, answer)
			}
		}
	}
	if after := l.host.String() + l.recorded(); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
	// Short ids are ids too.
	for _, method := range methods {
		_, _ = post("/NetworkDriver."+method, `{"NetworkID":"n","EndpointID":"e"}`)
	}
	if status, answer := post("/Plugin.Activate", ""); status != 200 || !strings.Contains(answer, "NetworkDriver") {
		t.Errorf("still serving? status %d, %s", status, answer)
	}
}

// panicking is a driver with a fault.
type panicking struct{ api.Driver }

func (panicking) Join(*api.JoinRequest) (*api.JoinResponse, error) { panic("fault") }

func TestPanicIsAnError(t *testing.T) {
	post := serveLab(t, panicking{newLab(t)})
	for range 2 {
		status, answer := post("/NetworkDriver.Join", `{"NetworkID":"n","EndpointID":"e"}`)
		if status != http.StatusInternalServerError || !strings.Contains(answer, "internal error: fault") {
			t.Errorf("status %d, %s", status, answer)
		}
	}
}

// blocking is a driver whose Join waits.
type blocking struct {
	api.Driver
	entered, leave chan struct{}
}

func (b blocking) Join(*api.JoinRequest) (*api.JoinResponse, error) {
	close(b.entered)
	<-b.leave
	return &api.JoinResponse{}, nil
}

// TestStopLetsCallsEnd: a call under way when the plugin is stopped ends.
func TestStopLetsCallsEnd(t *testing.T) {
	b := blocking{newLab(t), make(chan struct{}), make(chan struct{})}
	guard, _, stop, served := guarded(t, b)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = guard.Join(&api.JoinRequest{NetworkID: "n", EndpointID: "e"}) })
	<-b.entered
	stop()
	select {
	case err := <-served:
		t.Fatalf("stopped with a call under way: %v", err)
	default:
	}
	close(b.leave)
	if err := <-served; err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugins", "extip.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another plugin") {
		t.Errorf("a second listener: %v", err)
	}
	// A crash leaves the file behind.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = Listen(path)
	if err != nil {
		t.Fatalf("with a left-over socket: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
