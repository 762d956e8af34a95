package doctor

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

// listen serves on a socket.
func listen(t *testing.T, answer http.HandlerFunc) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: answer}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return socket
}

func TestEngine(t *testing.T) {
	says := func(version string, skew time.Duration) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(skew).UTC().Format(http.TimeFormat))
			_, _ = fmt.Fprintf(w, `{"Version":%q}`, version)
		}
	}
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   string // level and part of what is seen; "" if all is well
	}{
		{"well", says("28.5.2", 0), ""},
		{"of a distribution", says("20.10.24+dfsg1", 2*time.Second), ""},
		{"development", says("dev", 0), ""},
		{"old", says("19.03.15", 0), "warn: version 19.03.15"},
		{"late", says("29.0.1", -3*time.Minute), "warn: differs from this one by 3m"},
		{"unwell", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, "fail: 500"},
		{"other", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }, "fail: answers 200"},
		{"absent", nil, "fail: doesn't answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "nobody")
			if tt.answer != nil {
				socket = listen(t, tt.answer)
			}
			x := &exam{Doctor: &Doctor{Engine: socket}, ctx: context.Background()}
			expect(t, x.engine(), tt.want)
		})
	}
	expect(t, (&exam{Doctor: &Doctor{}}).engine(), "")
}

func expect(t *testing.T, found []Finding, want string) {
	t.Helper()
	if want == "" && len(found) == 0 {
		return
	}
	level, seen, _ := strings.Cut(want, ": ")
	if len(found) != 1 || found[0].Level != Level(level) || !strings.Contains(found[0].Seen, seen) || found[0].Remedy == "" {
		t.Errorf("want %q, got\n%s", want, Report(found))
	}
}

func TestPluginSocket(t *testing.T) {
	x := &exam{Doctor: &Doctor{Plugin: filepath.Join(t.TempDir(), "nobody")}, ctx: context.Background()}
	expect(t, x.plugin(), "fail: nobody listens")
	x.Plugin = listen(t, func(http.ResponseWriter, *http.Request) {})
	expect(t, x.plugin(), "")
}

func TestKernel(t *testing.T) {
	x := &exam{Doctor: &Doctor{Nftables: func() error { return fmt.Errorf("operation not supported") }}}
	expect(t, x.kernel(), "fail: operation not supported")
	x.Backend = "iptables"
	expect(t, x.kernel(), "warn: operation not supported")
	x.Nftables = func() error { return nil }
	expect(t, x.kernel(), "")
}

func TestReport(t *testing.T) {
	text := Report([]Finding{
		{Level: OK, Check: "forwarding", Seen: "the host forwards"},
		{Level: Fail, Check: "filter", Seen: strings.Repeat("word ", 30), Why: "so", Remedy: strings.Repeat("long ", 30)},
	})
	if !strings.HasPrefix(text, "ok   forwarding the host forwards\nfail filter     word") {
		t.Errorf("got\n%s", text)
	}
	for line := range strings.Lines(text) {
		if len(line) > columns+1 && !strings.Contains(line, "long") {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
}

// TestBoot: is the plugin started when the host boots, and before the engine?
func TestBoot(t *testing.T) {
	nettest.NewNode(t, "host") // /run is the test's own
	if err := os.MkdirAll("/run/systemd/system", 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll("/run/systemd") })
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	x := &exam{Doctor: &Doctor{Plugin: listen(t, func(http.ResponseWriter, *http.Request) {})}, ctx: context.Background()}
	for _, tt := range []struct{ name, loaded, enabled, before, want string }{
		{"well", "loaded", "enabled", "docker.service shutdown.target", ""},
		{"no unit", "not-found", "", "", ""},
		{"not at boot", "loaded", "disabled", "docker.service", "warn: extip.service is disabled"},
		{"too late", "loaded", "enabled", "shutdown.target", "warn: isn't started before docker.service"},
	} {
		script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *LoadState*) echo %s;; *is-enabled*) echo %s; test %s = enabled;; *Before*) echo %s;; esac\n",
			tt.loaded, tt.enabled, "x"+tt.enabled, tt.before)
		if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Run(tt.name, func(t *testing.T) { expect(t, x.plugin(), tt.want) })
	}
	x.Plugin = filepath.Join(bin, "nobody")
	if found := x.plugin(); len(found) == 0 || found[0].Remedy != "systemctl start extip" {
		t.Errorf("without a plugin: %s", Report(found))
	}
}
