package cluster_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/cluster"
	"github.com/extip/extip/internal/etcdtest"
	"github.com/extip/extip/store"
)

// gaps commits again and again until stop is closed, and returns how long it took
// from one success to the next, at most, and how many were refused.
func gaps(t *testing.T, m *cluster.Member, stop <-chan struct{}) (longest time.Duration, refused int) {
	last := time.Now()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return longest, refused
		default:
		}
		began := time.Now()
		err := claim(m, fmt.Sprintf("claims/203.0.113.%d", i%200), fmt.Sprint(i))
		switch {
		case err == nil:
			longest, last = max(longest, time.Since(last)), time.Now()
		case errors.Is(err, store.ErrApart):
			refused++
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("a refusal took %s", took)
			}
		case !errors.Is(err, store.ErrStale):
			t.Errorf("commit: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestFailover: of three etcds one may be gone, hung or on its way back.
func TestFailover(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(3)...)
	c := config(t, nodes, "docker1")
	one, _ := join(t, c)
	two, _ := join(t, config(t, nodes, "docker2"))
	if err := claim(one, "claims/203.0.113.255", own); err != nil {
		t.Fatal(err)
	}
	for _, blow := range []struct {
		what         string
		strike, mend func(*etcdtest.Node)
	}{
		{"killed", (*etcdtest.Node).Kill, (*etcdtest.Node).Start},
		{"hung", (*etcdtest.Node).Stop, (*etcdtest.Node).Continue},
	} {
		for i, n := range nodes {
			stop := make(chan struct{})
			type result struct {
				longest time.Duration
				refused int
			}
			results := make(chan result, 1)
			go func() {
				longest, refused := gaps(t, one, stop)
				results <- result{longest, refused}
			}()
			blow.strike(n)
			eventually(t, "claims go on", func() bool { return claim(two, fmt.Sprintf("claims/198.51.100.%d", i), blow.what) == nil })
			time.Sleep(3 * time.Second)
			blow.mend(n)
			n.Await()
			close(stop)
			r := <-results
			t.Logf("etcd %d %s: longest wait between two commits %s, %d refused", i, blow.what, r.longest, r.refused)
			if _, apart := one.Apart(); apart {
				t.Error("the host is apart")
			}
			// What one writes the other hears of, by whatever endpoint it listens.
			value := fmt.Sprint(blow.what, i)
			eventually(t, "it is written", func() bool { return claim(two, "names/x", value) == nil })
			eventually(t, "the other hears", func() bool { return has(one, "names/x", value) })
		}
	}
	if !has(two, "claims/203.0.113.255", own) {
		t.Error("a claim got lost")
	}
}

// TestOutage: without etcd nothing new is claimed, nothing is forgotten, and all
// goes on after.
func TestOutage(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(3)...)
	c := config(t, nodes, "docker1")
	one, _ := join(t, c)
	heard := &follower{}
	one.Follow(heard)
	if err := claim(one, key, own); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.Kill()
	}
	began := time.Now()
	var waits []time.Duration
	for time.Since(began) < 15*time.Second {
		since := time.Now()
		err := claim(one, "claims/203.0.113.57", own)
		waits = append(waits, time.Since(since))
		if !errors.Is(err, store.ErrApart) || err.Error() != "etcd can't be reached: nothing new is claimed until it can (claims that are held are kept)" {
			t.Fatalf("without etcd: %v", err)
		}
		if !has(one, key, own) {
			t.Fatal("what was known is forgotten")
		}
		before := time.Since(began)
		_, apart := one.Apart()
		if after := time.Since(began); apart && after < cluster.DefaultTTL/2 || !apart && before > cluster.DefaultTTL {
			t.Errorf("apart after %s to %s: %v", before, after, apart)
		}
		time.Sleep(500 * time.Millisecond)
	}
	since, _ := one.Apart()
	t.Logf("apart %s after etcd was gone; %d claims refused, each in %s at most, the last in %s",
		since.Sub(began), len(waits), slices.Max(waits), waits[len(waits)-1])
	if slowest := slices.Max(waits); slowest > 10*time.Second {
		t.Errorf("a refusal took %s", slowest)
	}
	joined := heard.count()
	for _, n := range nodes {
		n.Start()
	}
	for _, n := range nodes {
		n.Await()
	}
	back := time.Now()
	eventually(t, "it has joined again", func() bool {
		_, apart := one.Apart()
		return !apart && heard.count() > joined
	})
	t.Logf("joined %s after etcd serves", time.Since(back))
	// The etcd that was down had nobody whose leases it could have ended.
	if !has(one, key, own) || !one.MayDefend(address) {
		t.Error("the claim is lost")
	}
	eventually(t, "claims go on", func() bool { return claim(one, "claims/203.0.113.57", own) == nil })
}

// TestMinority: an etcd that has lost the others knows nothing for certain, and
// what is only looked at isn't confirmed by it.
func TestMinority(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(3)...)
	one, _ := join(t, config(t, nodes[:1], "docker1"))
	if err := claim(one, key, own); err != nil {
		t.Fatal(err)
	}
	_, version := one.Get(key)
	nodes[1].Stop()
	nodes[2].Stop()
	for _, read := range []map[string]int64{{key: version}, nil} {
		if err := one.Commit(read, nil); !errors.Is(err, store.ErrApart) {
			t.Errorf("%v is confirmed: %v", read, err)
		}
	}
	nodes[1].Continue()
	nodes[2].Continue()
	eventually(t, "it is confirmed", func() bool { return one.Commit(map[string]int64{key: version}, nil) == nil })
}

// TestStartApart: a host starts without etcd, and joins when that is there.
func TestStartApart(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(1)...)
	c := config(t, nodes, "docker1")
	nodes[0].Kill()
	began := time.Now()
	one, _ := join(t, c)
	t.Logf("opened in %s without etcd", time.Since(began))
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("opened in %s", took)
	}
	if _, apart := one.Apart(); !apart {
		t.Error("not apart")
	}
	began = time.Now()
	if err := claim(one, key, own); !errors.Is(err, store.ErrApart) {
		t.Errorf("a claim: %v", err)
	}
	t.Logf("refused in %s", time.Since(began))
	nodes[0].Start()
	eventually(t, "it has joined", func() bool { return claim(one, key, own) == nil })
	// A namesake is found out later, too, and does nothing.
	nodes[0].Stop()
	began = time.Now()
	namesake, _ := join(t, config(t, nodes, "docker1"))
	t.Logf("opened in %s with an etcd that hangs", time.Since(began))
	nodes[0].Continue()
	eventually(t, "a namesake is told", func() bool {
		err := claim(namesake, "claims/203.0.113.57", own)
		return errors.Is(err, store.ErrApart) && strings.Contains(err.Error(), `another host is "docker1"`)
	})
	if _, apart := namesake.Apart(); !apart {
		t.Error("a namesake isn't apart")
	}
}

// TestBackup: etcd is put back to what it was some time ago, while hosts run.
func TestBackup(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(1)...)
	one, _ := join(t, config(t, nodes, "docker1"))
	heard := &follower{}
	one.Follow(heard)
	if err := claim(one, key, own); err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(t.TempDir(), "backup")
	nodes[0].Save(backup)
	if err := claim(one, key, `{"host":"docker1","endpoint":"e2"}`); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := claim(one, fmt.Sprint("claims/198.51.100.", i), own); err != nil {
			t.Fatal(err)
		}
	}
	nodes[0].Kill()
	nodes[0].PutBack(backup)
	joined := heard.count()
	nodes[0].Start()
	nodes[0].Await()
	eventually(t, "what is so again is known", func() bool {
		return has(one, key, own) && has(one, "claims/198.51.100.1", "") && heard.count() > joined
	})
	if err := claim(one, "claims/198.51.100.1", own); err != nil {
		t.Errorf("what was claimed since: %v", err)
	}
	if _, apart := one.Apart(); apart {
		t.Error("it is apart")
	}
}
