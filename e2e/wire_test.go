package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestWire compares what the engine sends, for a few containers' lives, with
// what is recorded of this version of it in driver/testdata, which the driver's
// tests replay. EXTIP_UPDATE=1 records it anew.
func TestWire(t *testing.T) {
	t.Parallel()
	const behind = "/run/docker/behind.sock"
	lab := newLab(t, options{bare: true, plugin: []string{"--plugin-socket", behind}})
	lab.plugin.socket = behind
	lab.startEngine()
	lab.startPlugin()
	r := intercept(t, lab.path(pluginSocket), lab.path(behind))

	lab.docker("network", "create", "-d", "extip", "--subnet", "10.91.0.0/24", "-o", "extip.parent="+lab.parent,
		"-o", "extip.pool=203.0.113.56-203.0.113.62", "-o", "com.docker.network.driver.mtu=1400", "web")
	serve := []string{probeImage, "/probe", "serve", "80"}
	lab.docker(append([]string{"run", "-d", "--name", "ports", "--network", "name=web,driver-opt=extip.address=203.0.113.60",
		"-p", "8080:80", "--expose", "53/udp"}, serve...)...)
	lab.docker("restart", "-t", "0", "ports")
	lab.docker(append([]string{"run", "-d", "--name", "second", "-p", "9090:80"}, serve...)...)
	lab.docker("network", "connect", "web", "second")
	lab.docker("network", "disconnect", "bridge", "second")
	lab.docker("rm", "-f", "second")
	lab.tryDocker(append([]string{"run", "-d", "--name", "refused", "--network", "name=web,driver-opt=extip.address=203.0.113.60"}, serve...)...)
	lab.docker("rm", "-f", "refused", "ports")
	lab.docker("network", "rm", "web")

	version := regexp.MustCompile(`^\d+\.\d+`).FindString(lab.docker("version", "-f", "{{.Server.Version}}"))
	file := "../driver/testdata/docker-" + version + ".jsonl"
	got := r.text()
	if os.Getenv("EXTIP_UPDATE") == "1" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		t.Logf("nothing is recorded of engine %s; what it sends:\n%s", version, got)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := difference(string(want), got); diff != "" {
		t.Errorf("engine %s sends other messages than recorded (-recorded +sent):\n%s", version, diff)
	}
}

// A recorder stands between engine and plugin and keeps what passes.
type recorder struct {
	t     *testing.T
	mu    sync.Mutex
	calls []call
}

// A call is a line of a recording.
type call struct {
	Path   string
	Body   json.RawMessage
	Status int `json:",omitempty"` // 200 if absent
	Answer json.RawMessage
}

func intercept(t *testing.T, front, behind string) *recorder {
	t.Helper()
	r := &recorder{t: t}
	l, err := net.Listen("unix", front)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "plugin"})
	proxy.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", behind)
	}}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		answer := &tee{ResponseWriter: w, status: http.StatusOK}
		proxy.ServeHTTP(answer, req)
		c := call{Path: req.URL.Path, Body: bytes.TrimSpace(body), Answer: bytes.TrimSpace(answer.body.Bytes())}
		if len(c.Body) == 0 {
			c.Body = json.RawMessage("null")
		}
		if answer.status != http.StatusOK {
			c.Status = answer.status
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.calls = append(r.calls, c)
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return r
}

// tee keeps an answer while it is given.
type tee struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (t *tee) WriteHeader(status int) {
	t.status = status
	t.ResponseWriter.WriteHeader(status)
}

func (t *tee) Write(b []byte) (int, error) {
	t.body.Write(b)
	return t.ResponseWriter.Write(b)
}

var (
	// owner has the container's name in it as soon as the engine was asked.
	owner   = regexp.MustCompile(`container \\+"\w+\\+" \((endpoint [0-9a-f]+)\)`)
	fullID  = regexp.MustCompile(`\b[0-9a-f]{64}\b`)
	sandbox = regexp.MustCompile(`netns/[0-9a-f]{12}`)
)

// text is the recording, with ids that are always the same ones: what the
// engine draws at random is replaced in order of appearance.
func (r *recorder) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines []string
	for _, c := range r.calls {
		for _, part := range []*json.RawMessage{&c.Body, &c.Answer} {
			*part = canonical(r.t, *part)
		}
		line, err := json.Marshal(c)
		if err != nil {
			r.t.Fatal(err)
		}
		lines = append(lines, string(line)+"\n")
	}
	text := sandbox.ReplaceAllString(strings.Join(lines, ""), "netns/2f0544bbcf69")
	text = owner.ReplaceAllString(text, "$1")
	for i, id := range unique(fullID.FindAllString(text, -1)) {
		// Names and messages have the first 11 or 12 characters.
		fixed := strings.Repeat(string("0123456789abcdef"[(i+1)%16]), 64)
		for _, n := range []int{64, 12, 11} {
			text = strings.ReplaceAll(text, id[:n], fixed[:n])
		}
	}
	return text
}

func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// canonical sorts what the engine sends in the order of a Go map.
func canonical(t *testing.T, raw json.RawMessage) json.RawMessage {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	sortLists(v)
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func sortLists(v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			sortLists(e)
		}
	case []any:
		slices.SortFunc(v, func(a, b any) int {
			x, _ := json.Marshal(a)
			y, _ := json.Marshal(b)
			return cmp.Compare(string(x), string(y))
		})
	}
}
