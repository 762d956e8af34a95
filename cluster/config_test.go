package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"etcd://a,b:23790,192.0.2.7", "[a:2379 b:23790 192.0.2.7:2379] /extip/v1/"},
		{"etcd://[2001:db8::7],[2001:db8::8]:1", "[[2001:db8::7]:2379 [2001:db8::8]:1] /extip/v1/"},
		{"etcd://a.example.org/prod", "[a.example.org:2379] /prod/v1/"},
		{"etcd://a/prod/east/", "[a:2379] /prod/east/v1/"},
		{"a:2379", "it should be etcd://HOST[:PORT],…[/PREFIX]"},
		{"etcd://", `"" is no host`},
		{"etcd://a,,b", `"" is no host`},
		{"etcd://a:x", `"a:x" has no port`},
		{"etcd://http:", `"http:" has no port`},
		{"etcd://a b", `"a b" is no host`},
	} {
		endpoints, prefix, err := Parse(tt.in)
		got := fmt.Sprint(endpoints, " ", prefix)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.in, got, tt.want)
		}
	}
}

func TestCheck(t *testing.T) {
	good := Config{Endpoints: []string{"127.0.0.1:2379"}, Host: "docker1", ID: "x", TTL: DefaultTTL}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Config){
		"no endpoint":          func(c *Config) { c.Endpoints = nil },
		"host's name":          func(c *Config) { c.Host = "a/b" },
		"no id":                func(c *Config) { c.ID = "" },
		"a TTL of 2s":          func(c *Config) { c.TTL = 2 * time.Second },
		"a TTL of 5.5s":        func(c *Config) { c.TTL = 5500 * time.Millisecond },
		"a TTL of 5m1s":        func(c *Config) { c.TTL = MaxTTL + time.Second },
		"\"\" can't be a host": func(c *Config) { c.Host = "" },
	} {
		c := good
		change(&c)
		if err := c.check(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestIdentity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "cluster-id")
	first, err := Identity(path)
	if err != nil || len(first) != 16 {
		t.Fatal(first, err)
	}
	if again, err := Identity(path); again != first || err != nil {
		t.Errorf("again: %s, %v; want %s", again, err, first)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	if other, err := Identity(path + "-2"); other == first || err != nil {
		t.Errorf("another host has the same: %s, %v", other, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Identity(path); err == nil {
		t.Error("what can't be read is made anew")
	}
}
