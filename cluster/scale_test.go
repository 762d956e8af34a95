package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/extip/extip/internal/etcdtest"
	"github.com/extip/extip/internal/ledgertest"
	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/encoding"
)

// A meter counts what is asked of a simulated etcd. nil counts nothing.
type meter struct {
	requests map[string]int
	bytes    int
	// told are the changes that each watch is told of, and their bytes.
	told, toldBytes int
}

func (m *meter) count(kind string, request, answer any) {
	if m != nil {
		m.requests[kind]++
		m.bytes += size(request) + size(answer)
	}
}

func (m *meter) tell(changes []*clientv3.Event) {
	if m == nil {
		return
	}
	m.told += len(changes)
	for _, c := range changes {
		m.toldBytes += size(c.Kv) + 6 // and its frame in the answer
	}
}

// kindOf tells whether a transaction writes.
func kindOf(r *etcdserverpb.TxnRequest) string {
	if slices.ContainsFunc(r.Success, func(op *etcdserverpb.RequestOp) bool { return op.GetRequestRange() == nil }) {
		return "writes"
	}
	return "reads"
}

// size is how many bytes a message is, without those of HTTP.
func size(message any) int {
	if message == nil {
		return 0
	}
	buffers, err := encoding.GetCodecV2("proto").Marshal(message)
	if err != nil {
		return 32 // of a lease: a number or two
	}
	return buffers.Len()
}

// A figures is one table of docs/scale.md.
type figures struct {
	name string
	rows []string
}

func (f *figures) add(cells ...any) {
	var row strings.Builder
	for _, c := range cells {
		fmt.Fprintf(&row, "| %v ", c)
	}
	f.rows = append(f.rows, row.String()+"|")
}

// write puts the table where docs/scale.md has its place.
func (f *figures) write(t *testing.T) {
	t.Logf("%s:\n%s", f.name, strings.Join(f.rows, "\n"))
	if os.Getenv("EXTIP_SCALE") == "" {
		return
	}
	path := filepath.Join("..", "docs", "scale.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), "<!-- "+f.name+" -->\n")
	_, after, ok2 := strings.Cut(rest, "<!-- end -->\n")
	if !ok || !ok2 {
		t.Fatalf("docs/scale.md has no place for %q", f.name)
	}
	text = []byte(before + "<!-- " + f.name + " -->\n" + strings.Join(f.rows, "\n") + "\n<!-- end -->\n" + after)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// scaleHosts and scaleClaims are what docs/scale.md speaks of; without EXTIP_SCALE
// there are a tenth.
func scaleOf() (hosts, claims int) {
	if os.Getenv("EXTIP_SCALE") != "" {
		return 1000, 100_000
	}
	return 100, 10_000
}

// TestScale measures what many hosts cost. EXTIP_SCALE=1 writes it into docs/scale.md,
// for a thousand hosts.
func TestScale(t *testing.T) {
	t.Run("events", scaleEvents)
	t.Run("mirror", scaleMirror)
	t.Run("etcd", scaleEtcd)
}

// scaleEvents has each thing happen once, with the program's own requests.
func scaleEvents(t *testing.T) {
	f := &figures{name: "events"}
	f.add("what happens", "reads", "writes", "bytes", "changes told", "bytes to each host")
	f.add("---", "--:", "--:", "--:", "--:", "--:")
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, simDir(t), 1, "")
		s.suffix = strings.Repeat("0", 60)
		s.pool = ledgertest.Parse(t, "203.0.113.0/24")
		for i := range 3 {
			s.hosts = append(s.hosts, newSimHost(s, i))
			s.hosts[i].start()
		}
		var list []*container
		for i := range 110 {
			list = append(list, &container{sim: s, name: fmt.Sprintf("app-%d", i), inside: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, 0, byte(2 + i)}), 16)})
		}
		s.containers = list
		one, two := list[0], list[1]
		one.reservation, two.reservation = "mail", "web"
		list[2].addresses = []netip.Addr{s.pool.At(200)}
		happens := func(what string, long time.Duration, do func()) {
			// Between what each host does anyway, which is twice a minute.
			until := s.now().Truncate(simReclaimInterval) + simReclaimInterval + 2*time.Second
			s.run(until)
			s.etcd.meter = &meter{requests: map[string]int{}}
			do()
			s.run(s.now() + long)
			m := s.etcd.meter
			s.etcd.meter = nil
			f.add(what, m.requests["reads"], m.requests["writes"], m.bytes, m.told, m.toldBytes)
			if s.failed {
				t.Fatal(s.failure())
			}
		}
		happens("a container starts, with an address of the pool", 2*time.Second, func() { list[3].start(s.hosts[0]) })
		happens("... with a reservation's, for the first time", 2*time.Second, func() { one.start(s.hosts[0]) })
		happens("... and again", 3*time.Second, func() {
			one.stop()
			s.after(time.Second, func() { one.start(s.hosts[0]) })
		})
		happens("a container stops", 2*time.Second, func() { list[3].stop() })
		two.start(s.hosts[1])
		happens("an address moves to another host", 2*time.Second, func() { one.give(two) })
		for _, c := range list[4:104] {
			c.start(s.hosts[2])
		}
		happens("a host with 100 addresses loses its lease, and is back with a new one", 25*time.Second, func() {
			s.hosts[2].setCut(true)
			s.after(20*time.Second, func() { s.hosts[2].setCut(false) })
		})
		happens("its program starts again in time", 5*time.Second, func() {
			s.hosts[2].crash()
			s.hosts[2].start()
		})
		happens("it dies", 15*time.Second, func() { s.hosts[2].die() })
		s.end()
	})
	f.write(t)
}

// scaleClaim is claim number i of so many hosts'.
func scaleClaim(i, hosts int) (key string, value []byte) {
	a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
	if i >= 1<<16 {
		a = netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})
	}
	value, err := json.Marshal(store.Claim{
		Host: fmt.Sprintf("docker%d", i%hosts), Endpoint: fmt.Sprintf("%064x", i), Network: fmt.Sprintf("%064x", i%7),
		Container: fmt.Sprintf("app-%d", i), Since: time.Date(2026, 1, 31, 9, 12, 44, 123456789, time.UTC),
	})
	if err != nil {
		panic(err)
	}
	return claimsPrefix + a.String(), value
}

func heapNow() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// An agreeing ledger is a member's mirror that agrees to whatever it is asked.
type agreeing struct{ *Member }

func (agreeing) Commit(map[string]int64, []store.Write) error { return nil }

// scaleMirror measures a member that knows all claims.
func scaleMirror(t *testing.T) {
	hosts, claims := scaleOf()
	f := &figures{name: "mirror"}
	f.add(fmt.Sprintf("a host that knows of %d claims, of %d hosts", claims, hosts), "")
	f.add("---", "--:")
	m := newMember(Config{Host: "docker1"}, nil)
	before := heapNow()
	var all []change
	bytes := 0
	for i := range claims {
		key, value := scaleClaim(i, hosts)
		all = append(all, change{key, entry{value: value, version: int64(i + 2), lease: int64(i % hosts)}})
		bytes += len(key) + len(value)
	}
	for i := range hosts {
		all = append(all, change{fmt.Sprintf("%sdocker%d", hostsPrefix, i), entry{value: []byte(`{"macs":["02:00:00:00:00:01"]}`), version: int64(claims + i + 2)}})
	}
	took := timed(func() { m.learn(func(mirror *mirror) []string { return mirror.reload(0, int64(claims+hosts+2), all) }) })
	m.news, all = nil, nil
	f.add("keys and values", fmt.Sprintf("%.1f MB", float64(bytes)/1e6))
	f.add("memory of the mirror", fmt.Sprintf("%.1f MB", float64(heapNow()-before)/1e6))
	f.add("taking them in, once read", took)
	before = heapNow()
	var s *store.Store
	f.add("telling the store", timed(func() {
		var err error
		if s, err = store.OpenShared(filepath.Join(simDir(t), "x.db"), agreeing{m}); err != nil {
			t.Fatal(err)
		}
	}))
	f.add("memory of the store", fmt.Sprintf("%.1f MB", float64(heapNow()-before)/1e6))
	key, value := scaleClaim(1, hosts)
	f.add("a change", timed(func() {
		for i := range 1000 {
			m.learn(func(mirror *mirror) []string {
				return mirror.watched(int64(1e9+i), change{key, entry{value: value, version: int64(1e9 + i)}})
			})
		}
	})/1000)
	f.add("a claim that is chosen of a pool of a million", timed(func() {
		_, err := s.CreateEndpoint(store.Endpoint{ID: "e", Network: "n"}, store.Want{Pools: []pool.Pool{ledgertest.Parse(t, "198.16.0.0/12")}})
		if err != nil {
			t.Fatal(err)
		}
	}))
	f.add("comparing records and ledger, twice a minute", timed(func() {
		if _, err := s.Reclaim(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Given(); err != nil {
			t.Fatal(err)
		}
	}))
	m.macs = nil
	f.add("whose a MAC is, after a host has written its record", timed(func() { m.Member([]byte{2, 0, 0, 0, 0, 1}) }))
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	f.write(t)
}

func timed(fn func()) time.Duration {
	began := time.Now()
	fn()
	return rounded(time.Since(began))
}

// rounded is a time in two digits.
func rounded(took time.Duration) time.Duration {
	digits := math.Pow10(int(math.Log10(float64(max(1, took)))) - 1)
	return time.Duration(math.Round(float64(took)/digits) * digits)
}

// scaleEtcd measures a real etcd that has all claims.
func scaleEtcd(t *testing.T) {
	hosts, claims := scaleOf()
	nodes := etcdtest.Start(t, etcdtest.Local(1)...)
	endpoints, prefix, err := Parse(nodes.URL())
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(Config{Endpoints: endpoints, Prefix: prefix, Host: "docker0", ID: "id", TTL: MaxTTL})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	f := &figures{name: "etcd"}
	f.add(fmt.Sprintf("an etcd of one node with %d claims", claims), "")
	f.add("---", "--:")
	took := timed(func() {
		for i := 0; i < claims; i += 100 {
			var writes []store.Write
			for k := i; k < i+100; k++ {
				key, value := scaleClaim(k, hosts)
				writes = append(writes, store.Write{Key: key, Value: value, Host: "docker0"})
			}
			if err := m.Commit(nil, writes); err != nil {
				t.Fatal(err)
			}
		}
	})
	f.add("a transaction of 100 claims", rounded(took*100/time.Duration(claims)))
	f.add("a transaction of one", timed(func() {
		for i := range 100 {
			key, value := scaleClaim(claims+i, hosts)
			if err := m.Commit(map[string]int64{key: 0}, []store.Write{{Key: key, Value: value, Host: "docker0"}}); err != nil {
				t.Fatal(err)
			}
		}
	})/100)
	f.add("a renewal", timed(func() {
		for range 100 {
			if err := m.renew(context.Background(), m.lease); err != nil {
				t.Fatal(err)
			}
		}
	})/100)
	f.add("reading all", timed(func() {
		if _, err := m.load(context.Background()); err != nil {
			t.Fatal(err)
		}
	}))
	if got := len(m.mirror.keys(claimsPrefix)); got != claims+100 {
		t.Errorf("%d claims of %d are read", got, claims+100)
	}
	c, _, _, err := m.door.client(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	status, err := c.Status(context.Background(), c.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	f.add("telling a watch of a change: processor time of etcd", fanOut(t, c, hosts))
	f.add("its database", fmt.Sprintf("%.0f MB", float64(status.DbSizeInUse)/1e6))
	f.write(t)
}

// fanOut is the processor time that etcd takes to tell one of so many watches of one
// change.
func fanOut(t *testing.T, c *clientv3.Client, watches int) time.Duration {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var done sync.WaitGroup
	const changes = 50
	for range watches {
		w := clientv3.NewWatcher(c)
		defer func() { _ = w.Close() }()
		// Each is created when it is told so.
		events := w.Watch(ctx, "/fan-out/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		<-events
		done.Go(func() {
			for told := 0; told < changes; {
				response, ok := <-events
				if !ok || response.Err() != nil {
					t.Errorf("watch: %v", response.Err())
					return
				}
				told += len(response.Events)
			}
		})
	}
	before := processorTime(t, c)
	_, value := scaleClaim(1, watches)
	for i := range changes {
		if _, err := c.Put(ctx, fmt.Sprintf("/fan-out/%d", i), string(value)); err != nil {
			t.Fatal(err)
		}
	}
	done.Wait()
	return rounded((processorTime(t, c) - before) / changes / time.Duration(watches))
}

// processorTime is what etcd has taken since its start.
func processorTime(t *testing.T, c *clientv3.Client) time.Duration {
	t.Helper()
	response, err := http.Get(c.Endpoints()[0] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "process_cpu_seconds_total "); ok {
			seconds, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatal(err)
			}
			return time.Duration(seconds * float64(time.Second))
		}
	}
	t.Fatal("etcd doesn't tell its processor time")
	return 0
}
