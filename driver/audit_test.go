package driver

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// engine is one in memory: its networks, with their endpoints and names.
type engine map[string]map[string]string

func (e engine) Networks(context.Context) ([]string, error) {
	if e == nil {
		return nil, errors.New("not reachable")
	}
	var ids []string
	for id := range e {
		ids = append(ids, id)
	}
	return ids, nil
}

func (e engine) Endpoints(_ context.Context, network string) (map[string]string, error) {
	return e[network], nil
}

// audited runs fn beside a driver that is audited; times in fn are not real.
func audited(t *testing.T, l *lab, e Engine, fn func()) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l.joined = make(chan struct{}, 1) // of this bubble, whose time is another
		for _, e := range l.endpoints {
			e.changed = time.Now()
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Audit(ctx, e) }()
		fn()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestOwnerHasItsContainersName: whoever asks for a taken address reads which
// container has it.
func TestOwnerHasItsContainersName(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex")
	audited(t, l, engine{netID: {epID: "mail", "e2": "web"}}, func() {
		if err := l.run(epID, "172.31.0.2/16", "extip.address", "203.0.113.60"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * auditDelay)
		err := l.run("e2", "172.31.0.3/16", "extip.address", "203.0.113.60")
		if err == nil || !strings.Contains(err.Error(), `extip.address=203.0.113.60: 203.0.113.60 is taken by container "mail"`) {
			t.Errorf("error %v", err)
		}
	})
	l.restart()
	if got := l.endpoints[epID].rec.Name; got != "mail" {
		t.Errorf("name %q after a restart", got)
	}
}

func TestAudit(t *testing.T) {
	const other = "another network"
	for name, tt := range map[string]struct {
		engine engine
		taken  bool // the container's end is in its namespace
		gone   bool // the endpoint, in the end
	}{
		"known":                       {engine{netID: {epID: "mail"}}, false, false},
		"forgotten":                   {engine{netID: {}}, false, true},
		"forgotten, in use":           {engine{netID: {}}, true, false},
		"another engine":              {engine{other: {}}, false, false},
		"engine can't be reached":     {nil, false, false},
		"another engine's, too":       {engine{other: {}, netID: {epID: "mail"}}, false, false},
		"forgotten among others":      {engine{other: {}, netID: {"e9": "x"}}, false, true},
		"network unknown, with a use": {engine{}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56")
			if err := l.run(epID, "172.31.0.2/16"); err != nil {
				t.Fatal(err)
			}
			if tt.taken {
				l.host.Take(vethName)
			}
			audited(t, l, tt.engine, func() {
				time.Sleep(auditGrace)
				l.check(running) // too early for anything
				time.Sleep(3 * auditInterval)
			})
			if gone := l.endpoints[epID] == nil; gone != tt.gone {
				t.Errorf("gone: %v", gone)
			}
		})
	}
}

func TestAuditRemovesForgottenNetwork(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex")
	if err := l.CreateNetwork(createNetwork("n2", 32, "extip.parent", "br-ex")); err != nil {
		t.Fatal(err)
	}
	audited(t, l, engine{netID: {}}, func() { time.Sleep(4 * auditInterval) })
	l.check(`
link xip-02b1c3d4e5f of ` + netID + ` mtu 1450 [172.31.0.1/16]
nat network 02b1c3d4e5f6: xip-02b1c3d4e5f [172.31.0.0/16] by br-ex,eth0`)
}

// TestEngineSocket reads the parts of the engine's answers that are needed,
// in the form that engines 20.10 to 29 give them.
func TestEngineSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker.sock")
	socket := NewEngineSocket(path)
	if _, err := socket.Networks(t.Context()); err == nil {
		t.Error("an answer without an engine")
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	answer := func(path string, v any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) })
	}
	answer("/networks", []any{map[string]any{"Name": "bridge", "Id": "n0", "Driver": "bridge"}, map[string]any{"Name": "web", "Id": netID}})
	answer("/networks/"+netID, map[string]any{"Id": netID, "Containers": map[string]any{
		"c1": map[string]any{"Name": "mail", "EndpointID": epID, "IPv4Address": "172.31.0.2/16"},
	}})
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	if got, err := socket.Networks(t.Context()); err != nil || strings.Join(got, " ") != "n0 "+netID {
		t.Errorf("networks %v, %v", got, err)
	}
	if got, err := socket.Endpoints(t.Context(), netID); err != nil || len(got) != 1 || got[epID] != "mail" {
		t.Errorf("endpoints %v, %v", got, err)
	}
	if _, err := socket.Endpoints(t.Context(), "unknown"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("an unknown network: %v", err)
	}
}
