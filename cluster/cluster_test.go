package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extip/extip/cluster"
	"github.com/extip/extip/internal/etcdtest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/store"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// patience is how long something may take that has no figure of its own.
const patience = 30 * time.Second

// config is that of a host.
func config(t testing.TB, nodes etcdtest.Nodes, host string) cluster.Config {
	t.Helper()
	endpoints, prefix, err := cluster.Parse(nodes.URL())
	if err != nil {
		t.Fatal(err)
	}
	id, err := cluster.Identity(filepath.Join(t.TempDir(), "id"))
	if err != nil {
		t.Fatal(err)
	}
	return cluster.Config{
		Endpoints: endpoints, Prefix: prefix, Host: host, ID: id, Version: "test", TTL: cluster.DefaultTTL,
		Trouble: func(err error) { t.Logf("%s: %s: %v", time.Now().Format("15:04:05.000"), host, err) },
	}
}

// join opens a member and runs it until the test ends, or until leave is called.
func join(t testing.TB, c cluster.Config) (m *cluster.Member, leave func()) {
	t.Helper()
	m, err := cluster.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return m, run(t, m)
}

func run(t testing.TB, m *cluster.Member) (leave func()) {
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- m.Run(ctx) }()
	leave = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-stopped, m.Close()); err != nil {
			t.Errorf("%s: %v", m.Host(), err)
		}
	})
	t.Cleanup(leave)
	return leave
}

// eventually returns when ok does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("in %s not: %s", patience, what)
}

// awaitHost returns when a member knows that another host lives.
func awaitHost(t testing.TB, m *cluster.Member, host string) {
	t.Helper()
	eventually(t, m.Host()+" knows "+host, func() bool {
		return slices.ContainsFunc(m.Hosts(), func(h store.HostInfo) bool { return h.Name == host && h.Alive })
	})
}

// claim writes a value if there is none, hanging on the member's lease.
func claim(m *cluster.Member, key, value string) error {
	_, version := m.Get(key)
	return m.Commit(map[string]int64{key: version}, []store.Write{{Key: key, Value: []byte(value), Host: m.Host()}})
}

func has(m *cluster.Member, key, value string) bool {
	v, _ := m.Get(key)
	return string(v) == value
}

func TestLedger(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(1)...)
	one, _ := join(t, config(t, nodes, "docker1"))
	two, _ := join(t, config(t, nodes, "docker2"))
	if err := claim(one, "claims/203.0.113.56", "one"); err != nil {
		t.Fatal(err)
	}
	if !has(one, "claims/203.0.113.56", "one") {
		t.Error("what was written isn't known to who wrote it")
	}
	// What another host has seen doesn't matter: it is refused, and knows why.
	read := map[string]int64{"claims/203.0.113.56": 0}
	if err := two.Commit(read, []store.Write{{Key: "claims/203.0.113.56", Value: []byte("two"), Host: "docker2"}}); !errors.Is(err, store.ErrStale) {
		t.Errorf("a claim that is another host's: %v", err)
	}
	value, version := two.Get("claims/203.0.113.56")
	if string(value) != "one" || version == 0 {
		t.Errorf("after that it knows %q %d", value, version)
	}
	awaitHost(t, one, "docker2")
	// Handed over, onto the other's lease, and something that stays beside it.
	err := one.Commit(map[string]int64{"claims/203.0.113.56": version}, []store.Write{
		{Key: "claims/203.0.113.56", Value: []byte("two"), Host: "docker2"}, {Key: "names/mail/in", Value: []byte("{}")},
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other host knows", func() bool { return has(two, "claims/203.0.113.56", "two") && has(two, "names/mail/in", "{}") })
	err = one.Commit(nil, []store.Write{{Key: "claims/203.0.113.57", Value: []byte("three"), Host: "docker3"}})
	if err == nil || errors.Is(err, store.ErrApart) || !strings.Contains(err.Error(), "host docker3 is not alive") {
		t.Errorf("for a host that there isn't: %v", err)
	}
	// Without writes it is only looked whether all is as it was.
	_, version = one.Get("claims/203.0.113.56")
	if err := one.Commit(map[string]int64{"claims/203.0.113.56": version, "claims/203.0.113.57": 0}, nil); err != nil {
		t.Errorf("what is so: %v", err)
	}
	if err := one.Commit(map[string]int64{"claims/203.0.113.56": version - 1}, nil); !errors.Is(err, store.ErrStale) {
		t.Errorf("what isn't so: %v", err)
	}
	if err := one.Commit(nil, nil); err != nil {
		t.Errorf("nothing: %v", err)
	}
	var keys []string
	if err := two.Scan("claims/", func(key string, value []byte) error {
		keys = append(keys, fmt.Sprintf("%s=%s", key, value))
		return nil
	}); err != nil || fmt.Sprint(keys) != "[claims/203.0.113.56=two]" {
		t.Errorf("scan: %v %v", keys, err)
	}
	if err := two.Commit(nil, []store.Write{{Key: "claims/203.0.113.56"}}); err != nil {
		t.Fatal(err)
	}
	if _, version := two.Get("claims/203.0.113.56"); version != 0 {
		t.Error("what was deleted is known still")
	}
	eventually(t, "the other host knows of the deletion", func() bool { return has(one, "claims/203.0.113.56", "") })
	nodes[0].Ctl("get", "--prefix", "/extip/v1/")
}
