package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func put(key, value string, version int64) change {
	return change{key, entry{value: []byte(value), version: version}}
}

func gone(key string, version int64) change { return change{key, entry{version: version}} }

func (m *mirror) String() string {
	var parts []string
	for _, key := range m.keys("") {
		parts = append(parts, fmt.Sprintf("%s=%s@%d", key, m.get(key).value, m.get(key).version))
	}
	return strings.Join(parts, " ")
}

func TestMirror(t *testing.T) {
	type step struct {
		do      func(m *mirror) []string
		changed string
		want    string
	}
	load := func(revision int64, all ...change) func(*mirror) []string {
		return func(m *mirror) []string { return m.reload(m.latest, revision, all) }
	}
	// meanwhile is load while own requests were answered.
	meanwhile := func(revision int64, all ...change) func(*mirror) []string {
		return func(m *mirror) []string { return m.reload(revision, revision, all) }
	}
	watch := func(revision int64, changes ...change) func(*mirror) []string {
		return func(m *mirror) []string { return m.watched(revision, changes...) }
	}
	answer := func(changes ...change) func(*mirror) []string {
		return func(m *mirror) []string { return m.apply(changes...) }
	}
	for name, steps := range map[string][]step{
		"the watch is late": {
			{load(5, put("a", "1", 3)), "a", "a=1@3"},
			{answer(put("a", "2", 7)), "a", "a=2@7"},
			{watch(6, put("a", "other", 6)), "", "a=2@7"},
			{watch(7, put("a", "2", 7)), "", "a=2@7"},
		},
		"the answer is late": {
			{load(5), "", ""},
			{watch(8, put("a", "1", 7), gone("a", 8)), "a a", ""},
			{answer(put("a", "1", 7)), "", ""},
		},
		"a deletion is not undone by what came before it": {
			{load(5, put("a", "1", 3)), "a", "a=1@3"},
			{answer(gone("a", 9)), "a", ""},
			{watch(7, put("a", "2", 7)), "", ""},
			{answer(put("a", "2", 7)), "", ""},
			{watch(9, gone("a", 9)), "", ""},
			{watch(10, put("a", "3", 10)), "a", "a=3@10"},
		},
		"a reading keeps what is later": {
			{load(5, put("a", "1", 3), put("b", "1", 4)), "a b", "a=1@3 b=1@4"},
			{answer(put("c", "1", 8), gone("b", 9)), "c b", "a=1@3 c=1@8"},
			{meanwhile(7, put("b", "1", 4), put("d", "1", 7)), "a d", "c=1@8 d=1@7"},
			{load(9, put("c", "1", 8), put("d", "1", 7)), "", "c=1@8 d=1@7"},
		},
		"a backup was put back": {
			{load(50, put("a", "1", 40), put("b", "1", 45)), "a b", "a=1@40 b=1@45"},
			{answer(put("b", "2", 51)), "b", "b=2@51 a=1@40"},
			{load(30, put("a", "0", 20)), "a b", "a=0@20"},
			{watch(31, put("b", "3", 31)), "b", "a=0@20 b=3@31"},
		},
		"a backup was put back before the watch came to what is gone": {
			{load(4, put("a", "1", 4)), "a", "a=1@4"},
			{answer(put("a", "2", 9), gone("b", 10)), "a", "a=2@9"},
			{load(4, put("a", "1", 4)), "a", "a=1@4"},
			{watch(5, put("b", "1", 5)), "b", "a=1@4 b=1@5"},
		},
		"an empty value is one": {
			{load(5), "", ""},
			{answer(put("a", "", 6)), "a", "a=@6"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := &mirror{}
			for i, s := range steps {
				changed := strings.Join(s.do(m), " ")
				want := strings.Join(slices.Sorted(slices.Values(strings.Fields(s.want))), " ")
				if changed != s.changed || m.String() != want {
					t.Errorf("step %d: changed %q, have %q; want %q, %q", i, changed, m, s.changed, want)
				}
			}
		})
	}
}

// FuzzMirror: whatever of a ledger's history is told early, late, twice or not
// at all until it is read anew, in the end the mirror is what the ledger is, and
// no key ever goes back.
func FuzzMirror(f *testing.F) {
	for seed := range uint64(50) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		var history []change // of revision i+1 at i
		now := func(revision int64) *mirror {
			m := &mirror{}
			for _, c := range history[:revision] {
				if c.value == nil {
					delete(m.entries, c.key)
				} else {
					m.apply(c)
				}
			}
			return m
		}
		listed := func(m *mirror) (all []change) {
			for _, key := range m.keys("") {
				all = append(all, change{key, m.get(key)})
			}
			return all
		}
		m, heard := &mirror{}, map[string]int64{}
		for range 200 {
			switch revision := int64(len(history)); r.IntN(5) {
			case 0, 1: // somebody writes
				c := change{fmt.Sprint("k", r.IntN(4)), entry{version: revision + 1}}
				if r.IntN(3) > 0 {
					c.value = fmt.Append(nil, revision+1)
				}
				history = append(history, c)
			case 2: // the watch comes some way
				to := min(revision, m.seen+r.Int64N(4))
				m.watched(to, history[m.seen:to]...)
			case 3: // an own request is answered
				if revision > 0 {
					c := history[revision-1-r.Int64N(min(revision, 6))]
					m.apply(c)
				}
			case 4: // it is read anew
				if r.IntN(8) == 0 {
					at := max(m.seen, revision-r.Int64N(3))
					m.reload(at, at, listed(now(at)))
				}
			}
			for _, key := range m.keys("") {
				if e := m.get(key); e.version < heard[key] {
					t.Fatalf("seed %d: %s went back from %d to %d", seed, key, heard[key], e.version)
				} else {
					heard[key] = e.version
				}
			}
		}
		m.watched(int64(len(history)), history[m.seen:]...)
		if want := now(int64(len(history))); m.String() != want.String() {
			t.Fatalf("seed %d: have %s, want %s", seed, m, want)
		}
		if len(m.gone) > 0 {
			t.Fatalf("seed %d: deletions are remembered for ever: %v", seed, m.gone)
		}
	})
}
