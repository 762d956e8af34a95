package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"github.com/extip/extip/driver"
	"github.com/extip/extip/internal/admintest"
	"github.com/extip/extip/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

func discard() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

// serve answers for a plugin on a socket of its own, until the test or the
// returned function ends it.
func serve(t *testing.T, p Plugin, access Access) (path string, stop func()) {
	t.Helper()
	dir := t.TempDir()
	path = dir + "/admin/admin.sock"
	l, err := access.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	about := About{Version: "v1.2.3", Backend: "nftables", Started: admintest.Now}
	var done sync.WaitGroup
	done.Go(func() {
		if err := NewServer(p, about, access, discard()).Serve(ctx, l); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		done.Wait()
	})
	t.Cleanup(stop)
	return path, stop
}

// ask makes a request as a program of another language would.
func ask(t *testing.T, socket, method, path, body string) (status int, answer string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	q, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, strings.TrimSpace(string(b))
}

func TestAPI(t *testing.T) {
	plugin := admintest.Example()
	plugin.Has, plugin.Nets = plugin.Has[1:2], plugin.Nets[1:]
	plugin.Left = []string{"nothing"}
	socket, _ := serve(t, plugin, Access{-1})
	for _, tt := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v1/version", "", 200, `{"version":"v1.2.3","api":1,"backend":"nftables","started":"2026-11-24T12:00:00Z"}`},
		{"GET", "/v1/addresses", "", 200, `{"addresses":[{"external":"203.0.113.57","internal":"172.31.0.3","container":"mail","endpoint":"` + admintest.Other +
			`","network":"` + admintest.Web + `","parent":"br-ex","on":"br-ex","state":"withheld","reason":"it is used by 02:42:ac:1f:00:09","reservation":"mail",` +
			`"source":"gateway","egress":"external","ports":"tcp/25,tcp/587","allow":"198.51.100.0/24","refuse":"reject","limit":"connections=20000,rate=500/s","since":"2026-11-24T11:55:00Z","conflicts":{"mac":"02:42:ac:1f:00:09","count":2,"last":"2026-11-24T11:59:20Z"},` +
			`"counters":{"refused":{"packets":7,"bytes":420},"limited_in":345,"limited_out":0,"incoming":12,"outgoing":0,"received":{"packets":0,"bytes":0},"sent":{"packets":0,"bytes":0}}}]}`},
		{"GET", "/v1/networks", "", 200, `{"networks":[{"id":"` + admintest.Shop + `","bridge":"xip-1f1b2c3d4e5","parent":"eth1.100","gateways":null,` +
			`"subnets":["172.30.0.0/16"],"size":0,"free":0,"mtu":1500,"auto":false,"source":"client","egress":"external","dad":"off","alias":"none",` +
			`"conflict":"keep","limit":"none","icc":true,"endpoints":0,"external":0}]}`},
		{"GET", "/v1/reservations", "", 200, `{"reservations":[{"name":"mail","addresses":["203.0.113.57"],"created":"2026-10-05T12:00:00Z"},` +
			`{"name":"spare","addresses":["203.0.113.61","2001:db8::61"],"created":"2026-11-24T11:00:00Z"}]}`},
		{"GET", "/v1/check", "", 200, `{"differences":[]}`},
		{"POST", "/v1/attach", `{"endpoint":"e1","addresses":["203.0.113.60","2001:db8::60"]}`, 200, `{"done":["+ attach [203.0.113.60 2001:db8::60] to e1"],"left":["nothing"]}`},
		{"POST", "/v1/attach", `{"endpoint":"e1","dry_run":true}`, 200, `{"done":["+ attach [] to e1, dry"],"left":["nothing"]}`},
		{"POST", "/v1/detach", `{"address":"203.0.113.60"}`, 200, `{"done":["+ detach 203.0.113.60"],"left":["nothing"]}`},
		{"POST", "/v1/move", `{"address":"203.0.113.60","endpoint":"e2","drain":true}`, 200, `{"done":["+ move 203.0.113.60 to e2, drain true"],"left":["nothing"]}`},
		{"POST", "/v1/reserve", `{"name":"mail","addresses":["203.0.113.60"]}`, 200, `{"done":["+ reserve [203.0.113.60] as mail"],"left":["nothing"]}`},
		{"POST", "/v1/unreserve", `{"name":"mail","dry_run":true}`, 200, `{"done":["+ unreserve mail, dry"],"left":["nothing"]}`},
		{"POST", "/v1/reconcile", `{}`, 200, `{"done":["+ reconcile for operator"],"left":[]}`},
		{"POST", "/v1/reconcile", `{"dry_run":true}`, 200, `{"done":[],"left":[]}`},
		{"POST", "/v1/attach", `{}`, 400, `{"error":{"code":"bad_request","message":"endpoint: it is missing"}}`},
		{"POST", "/v1/filter", `{"endpoint":"e2","ports":"tcp/80","dry_run":true}`, 200, `{"done":["+ filter of e2: ports \"tcp/80\", allow \"\", dry"],"left":["nothing"]}`},
		{"POST", "/v1/limit", `{"endpoint":"e2","limit":"rate=5/s"}`, 200, `{"done":["+ limit of e2: rate=5/s"],"left":["nothing"]}`},
		{"POST", "/v1/limit", `{"endpoint":"e2"}`, 400, `{"error":{"code":"bad_request","message":"endpoint and limit: both are needed"}}`},
		{"POST", "/v1/filter", `{"endpoint":"e2"}`, 400, `{"error":{"code":"bad_request","message":"endpoint, and ports or allow: they are needed"}}`},
		{"POST", "/v1/move", `{"endpoint":"e1"}`, 400, `{"error":{"code":"bad_request","message":"address: it is missing"}}`},
		{"POST", "/v1/reserve", `{"name":"mail"}`, 400, `{"error":{"code":"bad_request","message":"name and addresses: both are needed"}}`},
		{"POST", "/v1/detach", `{"address":"nowhere"}`, 400, `{"error":{"code":"bad_request","message":"the request is not understood: ParseAddr(\"nowhere\"): unable to parse IP"}}`},
		{"POST", "/v1/detach", `{"addr":"203.0.113.60"}`, 400, `{"error":{"code":"bad_request","message":"the request is not understood: json: unknown field \"addr\""}}`},
		{"POST", "/v1/detach", `{"address":"203.0.113.60"} {}`, 400, `{"error":{"code":"bad_request","message":"the request is not understood: more than one value"}}`},
		{"POST", "/v1/detach", ``, 400, `{"error":{"code":"bad_request","message":"the request is not understood: EOF"}}`},
		{"POST", "/v1/unreserve", `{"name":"` + strings.Repeat("x", maxBody) + `"}`, 413, `{"error":{"code":"too_large","message":"the request has more than 65536 bytes"}}`},
		{"GET", "/v1/attach", "", 405, `{"error":{"code":"method_not_allowed","message":"/v1/attach wants POST, not GET"}}`},
		{"GET", "/v2/addresses", "", 404, `{"error":{"code":"not_found","message":"/v2/addresses: no such call in version 1 of the API"}}`},
	} {
		status, answer := ask(t, socket, tt.method, tt.path, tt.body)
		if status != tt.status || answer != tt.want {
			t.Errorf("%s %s %.80s:\n got %d %s\nwant %d %s", tt.method, tt.path, tt.body, status, answer, tt.status, tt.want)
		}
	}
	plugin.Err = errors.New("203.0.113.60: no container has it")
	for _, tt := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/v1/detach", `{"address":"203.0.113.60"}`, 409, `{"error":{"code":"refused","message":"203.0.113.60: no container has it"}}`},
		{"GET", "/v1/check", "", 500, `{"error":{"code":"internal","message":"203.0.113.60: no container has it"}}`},
	} {
		if status, answer := ask(t, socket, tt.method, tt.path, tt.body); status != tt.status || answer != tt.want {
			t.Errorf("%s: got %d %s\nwant %d %s", tt.path, status, answer, tt.status, tt.want)
		}
	}
}

// TestClient: what goes in at one end comes out at the other.
func TestClient(t *testing.T) {
	plugin := admintest.Example()
	socket, stop := serve(t, plugin, Access{-1})
	c, ctx := NewClient(socket), t.Context()
	addrs, err := c.Addresses(ctx)
	if diff := cmp.Diff(plugin.Has[0], addrs[0], cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || err != nil || len(addrs) != 4 {
		t.Errorf("addresses: %v, %d\n%s", err, len(addrs), diff)
	}
	if kept, err := c.Reservations(ctx); err != nil || len(kept) != 2 || kept[1].Addresses[1] != plugin.Kept[1].Addresses[1] {
		t.Errorf("reservations: %v %v", kept, err)
	}
	if r, err := c.Move(ctx, MoveRequest{Address: addrs[0].External, Endpoint: "e", Drain: true}); err != nil || len(r.Done) != 1 {
		t.Errorf("move: %v %v", r, err)
	}
	plugin.Err = errors.New("it is not so")
	refused, unreachable := (*Error)(nil), (*UnreachableError)(nil)
	if _, err := c.Unreserve(ctx, UnreserveRequest{Name: "x"}); !errors.As(err, &refused) || refused.Code != CodeRefused || err.Error() != "it is not so" {
		t.Errorf("refused: %v", err)
	}
	stop()
	if _, err := c.About(ctx); !errors.As(err, &unreachable) || !strings.Contains(err.Error(), "no such file or directory; is `extip serve` running?") {
		t.Errorf("after the end: %v", err)
	}
}

// TestBusy: calls above the limit are told so, and those below it bounded in
// time by their context.
func TestBusy(t *testing.T) {
	plugin := admintest.Example()
	plugin.Gate = make(chan struct{})
	socket, _ := serve(t, plugin, Access{-1})
	var calls sync.WaitGroup
	for range maxCalls {
		calls.Go(func() {
			if status, answer := ask(t, socket, "POST", "/v1/unreserve", `{"name":"x"}`); status != 200 {
				t.Errorf("%d %s", status, answer)
			}
		})
	}
	eventually(t, "all calls are under way", func() bool { return len(plugin.Changes()) == maxCalls })
	if status, answer := ask(t, socket, "GET", "/v1/version", ""); status != 503 || !strings.Contains(answer, `"busy"`) {
		t.Errorf("one too many: %d %s", status, answer)
	}
	close(plugin.Gate)
	calls.Wait()
	if status, answer := ask(t, socket, "GET", "/v1/version", ""); status != 200 {
		t.Errorf("after: %d %s", status, answer)
	}
}

// TestConnections: those above the limit are closed, and others served again
// once some are gone.
func TestConnections(t *testing.T) {
	socket, _ := serve(t, admintest.Example(), Access{-1})
	var conns []net.Conn
	for range maxConns {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one too many: %v", err)
	}
	_ = c.Close()
	for _, c := range conns {
		_ = c.Close()
	}
	eventually(t, "others are served", func() bool {
		_, err := NewClient(socket).About(t.Context())
		return err == nil
	})
}

func TestEvents(t *testing.T) {
	plugin := admintest.Example()
	socket, stop := serve(t, plugin, Access{-1})
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	first := make(chan error, 1)
	go func() {
		first <- NewClient(socket).Events(ctx, func(e driver.Event) error {
			if got = append(got, e.Kind+" "+e.Address.String()); len(got) == 2 {
				cancel()
			}
			return nil
		})
	}()
	second := make(chan error, 1)
	go func() { second <- NewClient(socket).Events(t.Context(), func(driver.Event) error { return nil }) }()
	eventually(t, "both listen", func() bool { return plugin.Listeners() == 2 })
	for _, kind := range []string{driver.EventMoved, driver.EventReleased} {
		plugin.Emit(driver.Event{Time: admintest.Now, Kind: kind, Address: plugin.Has[0].External})
	}
	if err := <-first; err != nil {
		t.Errorf("a reader that goes: %v", err)
	}
	if diff := cmp.Diff([]string{"moved 203.0.113.56", "released 203.0.113.56"}, got); diff != "" {
		t.Error(diff)
	}
	eventually(t, "the subscription ends with its reader", func() bool { return plugin.Listeners() == 1 })
	stop()
	unreachable := (*UnreachableError)(nil)
	if err := <-second; !errors.As(err, &unreachable) {
		t.Errorf("when the plugin goes: %v", err)
	}
	// On the wire it is a line each.
	socket, _ = serve(t, plugin, Access{-1})
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte("GET /v1/events HTTP/1.0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it listens", func() bool { return plugin.Listeners() == 1 })
	plugin.Emit(driver.Event{Time: admintest.Now, Kind: driver.EventReconciled, Text: "1 repair"})
	want := []byte("\r\n\r\n" + `{"time":"2026-11-24T12:00:00Z","kind":"reconciled","text":"1 repair"}` + "\n")
	var read []byte
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	for buf := make([]byte, 4096); !bytes.HasSuffix(read, want); {
		n, err := c.Read(buf)
		if read = append(read, buf[:n]...); err != nil {
			t.Fatalf("%v, after %q", err, read)
		}
	}
	if !json.Valid(want[4:]) {
		t.Error("no JSON")
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not true: %s", what)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
