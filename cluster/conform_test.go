package cluster_test

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extip/extip/cluster"
	"github.com/extip/extip/internal/etcdtest"
	"github.com/extip/extip/internal/ledgertest"
	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
)

// TestConform: what each store must do, with its claims in a real etcd.
func TestConform(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(1)...)
	type place struct {
		t    *testing.T
		host string
	}
	members := map[place]*cluster.Member{}
	ledgertest.Conform(t, func(t *testing.T, host, path string) *store.Store {
		t.Helper()
		m := members[place{t, host}]
		if m == nil {
			c := config(t, nodes, host)
			c.Prefix = "/" + strings.ReplaceAll(t.Name(), " ", "_") + "/v1/"
			m, _ = join(t, c)
			members[place{t, host}] = m
		}
		s, err := store.OpenShared(path, m)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// A counted ledger counts what is asked of it.
type counted struct {
	store.Ledger
	commits, stale atomic.Int64
}

func (c *counted) Commit(read map[string]int64, writes []store.Write) error {
	err := c.Ledger.Commit(read, writes)
	c.commits.Add(1)
	if errors.Is(err, store.ErrStale) {
		c.stale.Add(1)
	}
	return err
}

// TestCrowd: three hosts take ten thousand addresses of one pool, all at the same
// time, and each address has one owner.
func TestCrowd(t *testing.T) {
	const size, hosts, workers = 10000, 3, 8
	addresses := size
	if testing.Short() {
		addresses = 500
	}
	nodes := etcdtest.Start(t, etcdtest.Local(3)...)
	p, err := pool.Parse(fmt.Sprintf("198.18.0.1-%s", netip.AddrFrom4([4]byte{198, 18, byte(addresses >> 8), byte(addresses)})))
	if err != nil || p.Size() != uint64(addresses) {
		t.Fatal(p, err)
	}
	var ledgers []*counted
	var stores []*store.Store
	for i := range hosts {
		m, _ := join(t, config(t, nodes, fmt.Sprint("docker", i+1)))
		l := &counted{Ledger: m}
		s, err := store.OpenShared(filepath.Join(t.TempDir(), "extip.db"), l)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		ledgers, stores = append(ledgers, l), append(stores, s)
	}
	var left atomic.Int64
	left.Store(int64(addresses))
	var wait sync.WaitGroup
	had := make([]map[netip.Addr]string, hosts*workers)
	began := time.Now()
	for w := range hosts * workers {
		had[w] = map[netip.Addr]string{}
		wait.Go(func() {
			s := stores[w%hosts]
			for i := 0; left.Add(-1) >= 0; i++ {
				id := fmt.Sprintf("e%d-%d", w, i)
				inside := netip.AddrFrom4([4]byte{10, byte(w), byte(i >> 8), byte(i)})
				e, err := s.CreateEndpoint(store.Endpoint{ID: id, Network: "n", Addresses: []netip.Prefix{netip.PrefixFrom(inside, 8)}}, store.Want{Pools: []pool.Pool{p}})
				if err != nil {
					t.Errorf("%s: %v", id, err)
					return
				}
				had[w][e.External[0]] = id
			}
		})
	}
	wait.Wait()
	took := time.Since(began)
	owners := map[netip.Addr]string{}
	for _, m := range had {
		for a, id := range m {
			if owners[a] != "" {
				t.Errorf("%s is had by %s and %s", a, owners[a], id)
			}
			owners[a] = id
		}
	}
	if len(owners) != addresses {
		t.Errorf("%d addresses are had, want %d", len(owners), addresses)
	}
	t.Logf("%d addresses claimed by %d hosts in %s: %.0f a second", addresses, hosts, took.Round(time.Millisecond), float64(addresses)/took.Seconds())
	for i, l := range ledgers {
		t.Logf("docker%d: %d commits, %d too late", i+1, l.commits.Load(), l.stale.Load())
	}
	// One more is one too many, and every host knows why.
	for i, s := range stores {
		_, err := s.CreateEndpoint(store.Endpoint{ID: "late", Network: "n"}, store.Want{Pools: []pool.Pool{p}})
		if full := (*store.ExhaustedError)(nil); !errors.As(err, &full) {
			t.Errorf("docker%d: one too many: %v", i+1, err)
		}
		for a, id := range owners {
			if c, ok := s.Holder(a); !ok || c.Endpoint != id {
				t.Errorf("docker%d thinks that %s has %s, not %s", i+1, c.Endpoint, a, id)
				break
			}
		}
	}
}
