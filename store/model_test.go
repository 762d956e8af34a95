package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/extip/extip/internal/ledgertest"
	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
)

// TestModel: three hosts, with two of their calls at a time, claim, release, move and
// reserve at random, while they are cut off, die, hear late, get no answers, can't
// write and restart. Each time that calm returns, what is on record, what is claimed
// and what is reserved fit. EXTIP_TEST_SEED repeats a run.
func TestModel(t *testing.T) {
	seeds := []uint64{1, 2, 3, uint64(time.Now().UnixNano())}
	if text := os.Getenv("EXTIP_TEST_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	did := map[string]int{}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			l := ledgertest.New()
			var hosts []*host
			for i := range 3 {
				hosts = append(hosts, newHost(t, l, fmt.Sprint("docker", i+1)))
			}
			m := &model{t: t, ledger: l, hosts: hosts, pool: ledgertest.Parse(t, "203.0.113.64/28"), did: map[string]int{}}
			for round := range 25 {
				m.round(seed, uint64(round))
				m.calm()
				if t.Failed() {
					t.Fatalf("round %d of seed %d:\n%s", round, seed, l)
				}
			}
			t.Logf("seed %d: %v", seed, m.did)
			for what, n := range m.did {
				did[what] += n
			}
		})
	}
	for _, what := range []string{"claimed", "refused", "apart", "given", "taken over", "lost", "no disk"} {
		if did[what] == 0 {
			t.Errorf("it never came to %q", what)
		}
	}
}

type model struct {
	t      *testing.T
	ledger *ledgertest.Ledger
	hosts  []*host
	pool   pool.Pool
	mu     sync.Mutex
	did    map[string]int
}

// note counts what has become of an operation. Errors must be such as it may have.
func (m *model) note(what string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, taken := errors.AsType[*store.TakenError](err)
	_, reserved := errors.AsType[*store.ReservedError](err)
	_, full := errors.AsType[*store.ExhaustedError](err)
	switch {
	case err == nil:
		m.did[what]++
	case taken || reserved || full:
		m.did["refused"]++
	case errors.Is(err, store.ErrApart):
		m.did["apart"]++
	case errors.Is(err, errDisk):
		m.did["no disk"]++
	default:
		m.did["other errors"]++
	}
}

// round has faults befall the hosts, and operations go on meanwhile.
func (m *model) round(seed, round uint64) {
	faults := rand.New(rand.NewPCG(seed, round<<8))
	for _, h := range m.hosts {
		var mu sync.Mutex
		answers := rand.New(rand.NewPCG(seed, round<<8+uint64(faults.IntN(256))))
		odds := []int{0, 0, 20}[faults.IntN(3)]
		random := func(n int) int { mu.Lock(); defer mu.Unlock(); return answers.IntN(n) }
		h.Answers(func([]store.Write) ledgertest.Answer {
			if random(100) < odds {
				return ledgertest.Answer(1 + random(3))
			}
			return ledgertest.Right
		})
		h.Intercept = func(string) error {
			if random(100) < odds/2 {
				return errDisk
			}
			return nil
		}
		if faults.IntN(3) == 0 {
			h.Late()
		}
	}
	var wg sync.WaitGroup
	for i, h := range m.hosts {
		for n := range 2 {
			w := &caller{model: m, host: h, name: fmt.Sprintf("%s-%d", h.Host.Host(), n), Rand: rand.New(rand.NewPCG(seed, round<<8+uint64(i*2+n)))}
			wg.Go(func() {
				for range 12 {
					w.step()
				}
			})
		}
	}
	wg.Go(func() {
		switch h := m.hosts[faults.IntN(3)]; faults.IntN(4) {
		case 0:
			h.Cut()
		case 1:
			h.End()
		case 2:
			h.Cut()
			h.End()
		}
	})
	wg.Wait()
	h := m.hosts[faults.IntN(3)]
	h.Answers(nil)
	h.Intercept = nil
	h.restart(m.t)
}

// calm ends all faults, has the hosts agree, and looks whether they do.
func (m *model) calm() {
	lost := make([]map[netip.Addr]string, 3)
	for range 2 {
		for i, h := range m.hosts {
			h.Intercept = nil
			h.Answers(nil)
			h.Join()
			var err error
			if lost[i], err = h.Reclaim(); err != nil {
				m.t.Errorf("%s: reclaim: %v", h.Host.Host(), err)
			}
			m.note("taken over at last", h.takeOver())
		}
	}
	holders := map[netip.Addr]string{} // what the ledger says
	for a := m.pool.At(0); m.pool.Contains(a); a = a.Next() {
		if c, ok := m.hosts[0].Holder(a); ok {
			holders[a] = c.Host + "/" + c.Endpoint
		}
	}
	for i, h := range m.hosts {
		name := h.Host.Host()
		claims, err := h.Claims()
		if err != nil {
			m.t.Fatal(err)
		}
		for a, id := range claims {
			if holders[a] == name+"/"+id {
				delete(holders, a)
			} else if lost[i][a] == "" {
				m.t.Errorf("%s has %s on record for %s, which is claimed by %q, and not lost", name, a, id, holders[a])
			} else {
				m.did["lost"]++
			}
		}
		ledgertest.Check(m.t, name, h.Store)
	}
	if len(holders) > 0 {
		m.t.Errorf("claimed, and on nobody's record: %v", holders)
	}
	m.reservations()
}

// reservations must be one thing under both of their keys, and nobody may have what
// another name keeps.
func (m *model) reservations() {
	list, err := m.hosts[1].Reservations()
	if err != nil {
		m.t.Fatal(err)
	}
	kept := map[string]string{}
	for _, r := range list {
		for _, a := range r.Addresses {
			kept[a.String()] = r.Name
			if c, ok := m.hosts[2].Holder(a); ok && c.Reservation != r.Name {
				m.t.Errorf("%s is kept as %q and claimed by %+v", a, r.Name, c)
			}
		}
	}
	for a := m.pool.At(0); m.pool.Contains(a); a = a.Next() {
		if got := string(m.ledger.Value("reserved/" + a.String())); got != kept[a.String()] {
			m.t.Errorf("%s is reserved as %q, and of %q", a, got, kept[a.String()])
		}
	}
}

// A caller is one of the calls that a host has at a time. It has endpoints of its
// own, as the driver has locks on them.
type caller struct {
	*model
	*rand.Rand
	host *host
	name string
}

func (w *caller) step() {
	h := w.host
	id := fmt.Sprintf("%s-%d", w.name, w.IntN(3))
	addr := w.pool.At(w.Uint64N(w.pool.Size()))
	reservation := []string{"", "", "", "mail", "web"}[w.IntN(5)]
	rec, known := w.record(id)
	switch w.IntN(10) {
	case 0, 1, 2:
		want := store.Want{Reservation: reservation, Pools: []pool.Pool{w.pool}}
		if w.IntN(2) == 0 {
			want.Addresses, want.Pools = []netip.Addr{addr}, nil
		}
		e, err := h.CreateEndpoint(store.Endpoint{ID: id, Network: "n", State: store.Plumbed}, want)
		w.note("claimed", err)
		if err == nil {
			e.State = store.Published
			w.note("published", h.PutEndpoint(e))
		}
	case 3:
		if known && rec.State == store.Published {
			_, err := h.AddClaims(rec, store.Want{Addresses: []netip.Addr{addr}}, w.IntN(2) == 0)
			w.note("added", err)
		}
	case 4:
		if known {
			w.note("retired", h.RetireEndpoint(rec))
		}
	case 5:
		w.note("deleted", h.DeleteEndpoints(id))
	case 6:
		_, err := h.Reserve("db", []netip.Addr{addr}, w.IntN(4) == 0)
		w.note("reserved", err)
	case 7:
		w.note("unreserved", h.Unreserve([]string{"db", "mail"}[w.IntN(2)]))
	case 8:
		other, ok := w.record(fmt.Sprintf("%s-%d", w.name, w.IntN(3)))
		if known && ok && other.ID != id && len(rec.External) > 0 && rec.State == store.Published && other.State == store.Published {
			a := rec.External[0]
			other.External = append(slices.Clone(other.External), a)
			w.note("moved", h.ChangeClaims(without(rec, a.String()), other))
		}
	default:
		w.handOver(rec)
	}
}

// handOver takes over what is given, or else gives something away.
func (w *caller) handOver(rec store.Endpoint) {
	given, err := w.host.Given()
	if err != nil {
		w.t.Error(err)
	}
	for a, c := range given {
		for i := range 3 {
			if e, ok := w.record(fmt.Sprintf("%s-%d", w.name, i)); ok && e.ID == c.Endpoint {
				w.note("taken over", w.host.TakeOver(e, a))
				return
			}
		}
	}
	to := w.hosts[w.IntN(3)]
	if to == w.host || len(rec.External) == 0 {
		return
	}
	endpoints, err := to.Endpoints()
	if err != nil {
		w.t.Error(err)
	}
	if len(endpoints) > 0 {
		e, a := endpoints[w.IntN(len(endpoints))], rec.External[0]
		c := store.Claim{Host: to.Host.Host(), Endpoint: e.ID, Network: e.Network, Reservation: e.Reservation}
		w.note("given", w.host.HandOver(without(rec, a.String()), a, c))
	}
}

// record is an endpoint that the host has on record.
func (w *caller) record(id string) (store.Endpoint, bool) {
	endpoints, err := w.host.Endpoints()
	if err != nil {
		w.t.Error(err)
	}
	for _, e := range endpoints {
		if e.ID == id {
			return e, true
		}
	}
	return store.Endpoint{}, false
}
