package cluster

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/extip/extip/internal/ledgertest"
)

// simTrouble is how long things befall the hosts of a simulation; simCalm is how long they
// have then to agree: a claim that was handed over is left alone for a minute from the
// next comparison on (store.Reclaim), and dropped by the one after that.
const (
	simTrouble = 60 * time.Second
	simCalm    = time.Minute + 2*simReclaimInterval + 5*time.Second
)

func newSim(t *testing.T, dir string, seed uint64, p plant) *sim {
	s := &sim{
		t: t, seed: seed, rand: rand.New(rand.NewPCG(seed, 0)), start: time.Now(), plant: p, dir: dir, check: newChecks(),
		pool: ledgertest.Parse(t, "203.0.113.64/28"), ttl: DefaultTTL,
	}
	s.etcd = newSimEtcd(s)
	return s
}

// simulate runs a seed, and returns what was looked at.
func simulate(t *testing.T, dir string, seed uint64, p plant) (s *sim) {
	synctest.Test(t, func(t *testing.T) {
		s = newSim(t, dir, seed, p)
		s.ttl = []time.Duration{3 * time.Second, 5 * time.Second, 10 * time.Second}[s.rand.IntN(3)]
		for i := range 3 + s.rand.IntN(3) {
			h := newSimHost(s, i)
			if s.odds(0.5) {
				h.pace = 0.9 + 0.2*s.rand.Float64()
			}
			s.hosts = append(s.hosts, h)
		}
		for i := range 4 + s.rand.IntN(8) {
			c := &container{sim: s, name: fmt.Sprintf("c%d", i), inside: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, 0, byte(2 + i)}), 16)}
			switch s.rand.IntN(3) {
			case 0:
				c.reservation = c.name
			case 1:
				c.addresses = []netip.Addr{s.pool.At(uint64(s.rand.IntN(4)))}
			}
			s.containers = append(s.containers, c)
		}
		s.note("seed %d: %d hosts, %d containers, TTL %s", seed, len(s.hosts), len(s.containers), s.ttl)
		for _, h := range s.hosts {
			h.start()
		}
		s.work(simTrouble)
		s.run(simTrouble)
		s.heal()
		if p != "" {
			s.run(simTrouble + bound) // what is planted shows by then, or in another history
		} else if s.run(simTrouble + simCalm); !s.failed {
			s.atLast()
		}
		s.end()
	})
	return s
}

// end ends all programs, and removes their files.
func (s *sim) end() {
	for _, h := range s.hosts {
		h.crash()
		_ = os.Remove(filepath.Join(s.dir, h.name+".db"))
	}
}

// failure is what is wrong, with what came before it, and how to see it again.
func (s *sim) failure() string {
	lines := s.trace[max(0, len(s.trace)-traced):]
	return fmt.Sprintf("seed %d is wrong (EXTIP_SIM_SEED=%d go test ./cluster -run TestSimulation$):\n%s", s.seed, s.seed, strings.Join(lines, "\n"))
}

// quiet has the collector run less often: a simulation makes much and keeps little.
func quiet(t *testing.T) {
	percent := debug.SetGCPercent(400)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
}

// simDir is a folder in memory, if there is one: nothing then waits for a disk.
func simDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "extip-sim-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// inTime tells whether there is time left for another history.
func inTime(t *testing.T) bool {
	deadline, ok := t.Deadline()
	return !ok || time.Until(deadline) > 10*time.Second
}

// simSeeds is how many histories are looked at. EXTIP_SIM_SEEDS is another number.
const simSeeds = 2000

// TestSimulation: hosts that are cut off, paused, killed and started again, with an
// etcd that loses its leader and a segment that falls apart, never claim an address
// twice, answer for one twice no longer than is allowed, lose no claim, and agree in the
// end. EXTIP_SIM_SEED repeats one history.
func TestSimulation(t *testing.T) {
	quiet(t)
	first, n := uint64(1), simSeeds
	if slow {
		n = 50
	}
	if text := os.Getenv("EXTIP_SIM_SEEDS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	if text := os.Getenv("EXTIP_SIM_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, n = seed, 1
	}
	var mu sync.Mutex
	all := newChecks()
	var next atomic.Uint64
	next.Store(first)
	var failed atomic.Int64
	began, done := time.Now(), 0
	t.Run("seeds", func(t *testing.T) {
		worker := func(t *testing.T) {
			t.Parallel()
			dir := simDir(t)
			for failed.Load() < 3 && inTime(t) {
				seed := next.Add(1) - 1
				if seed >= first+uint64(n) {
					return
				}
				s := simulate(t, dir, seed, "")
				mu.Lock()
				done++
				if s.failed {
					failed.Add(1)
					t.Error(s.failure())
				} else if n == 1 {
					t.Logf("history %x:\n%s", s.hash, strings.Join(s.trace, "\n"))
				}
				for cause, d := range s.check.longest {
					all.longest[cause] = max(all.longest[cause], d)
				}
				all.slowest = max(all.slowest, s.check.slowest)
				for what, k := range s.check.did {
					all.did[what] += k
				}
				mu.Unlock()
			}
		}
		t.Run("a", worker)
		t.Run("b", worker)
	})
	t.Logf("%d histories in %s: %v", done, time.Since(began).Round(time.Millisecond), all.did)
	for _, cause := range slices.Sorted(maps.Keys(all.longest)) {
		t.Logf("answered for twice at most: %s, after: %s", all.longest[cause].Round(time.Millisecond), cause)
	}
	t.Logf("a reservation on another host after a death: at most its TTL and %s", all.slowest.Round(time.Millisecond))
}

// TestSimulationRepeats: one seed is one history.
func TestSimulationRepeats(t *testing.T) {
	dir := simDir(t)
	for seed := range uint64(10) {
		a, b := simulate(t, dir, seed, ""), simulate(t, dir, seed, "")
		if a.hash != b.hash {
			t.Errorf("seed %d: %x and %x", seed, a.hash, b.hash)
		}
		if c := simulate(t, dir, seed+1, ""); c.hash == a.hash {
			t.Errorf("seeds %d and %d: both %x", seed, seed+1, a.hash)
		}
	}
}

// TestSimulationFinds: faults are found within the seeds that TestSimulation looks at.
func TestSimulationFinds(t *testing.T) {
	quiet(t)
	plants := []plant{alwaysDefends, assumesMade, noMargin, blindRelease, blindRetry, oldNews, neverConfirms, believes}
	if slow {
		plants = plants[:2]
	}
	for _, p := range plants {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			dir := simDir(t)
			for seed := uint64(1); seed <= simSeeds; seed++ {
				if s := simulate(t, dir, seed, p); s.failed {
					t.Logf("seed %d: %s", seed, s.found())
					return
				}
			}
			t.Error("not found")
		})
	}
}

// found is the line of the trace that says what is wrong.
func (s *sim) found() string {
	i := slices.IndexFunc(s.trace, func(line string) bool { return strings.Contains(line, "WRONG") })
	return s.trace[max(0, i)]
}
