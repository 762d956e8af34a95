// Package ledgertest is a store.Ledger in memory, which simulated hosts share
// whose leases end, which are cut off, hear late and get no answers; and what
// each Store must do, whatever its claims are in.
package ledgertest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/extip/extip/store"
)

// A Ledger is what hosts share. Its methods, and those of its hosts, may be
// called concurrently.
type Ledger struct {
	mu       sync.Mutex
	revision int64
	entries  map[string]entry
	log      []string // keys, in the order in which they changed
	hosts    map[string]*Host
}

type entry struct {
	value   []byte
	version int64
	lease   string // the host with whose lease it ends
}

// New is an empty ledger.
func New() *Ledger { return &Ledger{entries: map[string]entry{}, hosts: map[string]*Host{}} }

// Host is the host of a name, which is made alive at first.
func (l *Ledger) Host(name string) *Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hosts[name]
	if h == nil {
		h = &Host{ledger: l, name: name, alive: true, known: map[string]entry{}}
		h.hear()
		l.hosts[name] = h
	}
	return h
}

// Alive tells whether a host's lease holds.
func (l *Ledger) Alive(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hosts[name]
	return h != nil && h.alive
}

// String lists keys, values and whose lease they end with.
func (l *Ledger) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(l.entries)) {
		fmt.Fprintf(&b, "%s %s", key, l.entries[key].value)
		if lease := l.entries[key].lease; lease != "" {
			fmt.Fprintf(&b, " (ends with %s)", lease)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Value is what a key has in truth, nil for nothing.
func (l *Ledger) Value(key string) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries[key].value
}

// put changes an entry; mu is held.
func (l *Ledger) put(w store.Write) {
	l.log = append(l.log, w.Key)
	if w.Value == nil {
		delete(l.entries, w.Key)
		return
	}
	l.entries[w.Key] = entry{value: bytes.Clone(w.Value), version: l.revision, lease: w.Host}
}

// spread lets all hosts hear that do, and returns whom to tell of what; mu is held.
func (l *Ledger) spread() (tell []func()) {
	for _, h := range l.hosts {
		if !h.apart && !h.late {
			tell = append(tell, h.told(h.hear())...)
		}
	}
	return tell
}

// An Answer is what becomes of a Commit.
type Answer int

// Answers.
const (
	Right      Answer = iota // what is right
	Stale                    // ErrStale, whatever is so
	NotMade                  // ErrApart, and nothing is written
	Unanswered               // ErrApart, though it is made if it can be
)

// A Host is one host's view of a Ledger. It is a store.Ledger.
type Host struct {
	ledger *Ledger
	name   string
	// All that follows is guarded by the ledger's mu.
	alive, apart, late bool
	known              map[string]entry
	heard              int // how much of the log
	notify             []func([]string)
	answer             func([]store.Write) Answer
}

// Host is its name.
func (h *Host) Host() string { return h.name }

// Get is a value as the host knows it.
func (h *Host) Get(key string) ([]byte, int64) {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	return bytes.Clone(h.known[key].value), h.known[key].version
}

// Scan calls fn for the keys with a prefix, as the host knows them.
func (h *Host) Scan(prefix string, fn func(string, []byte) error) error {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(h.known)) {
		if strings.HasPrefix(key, prefix) {
			if err := fn(key, h.known[key].value); err != nil {
				return err
			}
		}
	}
	return nil
}

// Notify has fn called after each change that the host hears of.
func (h *Host) Notify(fn func([]string)) {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	h.notify = append(h.notify, fn)
}

// Commit makes writes if what was read is so still. A host that is cut off, or
// has no lease, gets no answer.
func (h *Host) Commit(read map[string]int64, writes []store.Write) error {
	tell, err := h.commit(read, writes)
	for _, fn := range tell {
		fn()
	}
	return err
}

func (h *Host) commit(read map[string]int64, writes []store.Write) (tell []func(), err error) {
	l := h.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	answer := Right
	if h.answer != nil {
		answer = h.answer(writes)
	}
	var changed []string
	for key, version := range read {
		if l.entries[key].version != version {
			changed = append(changed, key)
		}
	}
	noAnswer := fmt.Errorf("the ledger can't be reached: %w", store.ErrApart)
	switch {
	case h.apart || !h.alive || answer == NotMade:
		return nil, noAnswer
	case len(read) > mostKeys || len(writes) > mostKeys:
		return nil, fmt.Errorf("too many keys: %d read, %d written", len(read), len(writes))
	case answer == Unanswered && len(changed) > 0:
		return nil, noAnswer
	case answer == Stale || len(changed) > 0:
		return h.learn(changed), fmt.Errorf("%d keys: %w", len(changed), store.ErrStale)
	}
	for _, w := range writes {
		if w.Host != "" && (l.hosts[w.Host] == nil || !l.hosts[w.Host].alive) {
			return nil, fmt.Errorf("host %s is not alive", w.Host)
		}
	}
	if len(writes) > 0 {
		l.revision++
	}
	var keys []string
	for _, w := range writes {
		l.put(w)
		keys = append(keys, w.Key)
	}
	if answer == Unanswered {
		return l.spread(), noAnswer
	}
	return append(h.learn(keys), l.spread()...), nil
}

// mostKeys is what etcd takes in one transaction.
const mostKeys = 128

// learn has the host know some keys as they are, however late it hears otherwise.
func (h *Host) learn(keys []string) []func() {
	for _, key := range keys {
		h.know(key)
	}
	return h.told(keys)
}

func (h *Host) know(key string) {
	if e, ok := h.ledger.entries[key]; ok {
		h.known[key] = e
	} else {
		delete(h.known, key)
	}
}

// hear has the host know all there is, and returns what has changed for it.
func (h *Host) hear() (keys []string) {
	for _, key := range h.ledger.log[h.heard:] {
		if h.known[key].version != h.ledger.entries[key].version {
			h.know(key)
			keys = append(keys, key)
		}
	}
	h.heard = len(h.ledger.log)
	return keys
}

// told are the calls that tell of keys, to be made without mu.
func (h *Host) told(keys []string) (tell []func()) {
	if len(keys) == 0 {
		return nil
	}
	for _, fn := range h.notify {
		tell = append(tell, func() { fn(keys) })
	}
	return tell
}

// Answers has fn say what becomes of each Commit; nil: what is right. It must not
// call methods of the ledger.
func (h *Host) Answers(fn func([]store.Write) Answer) {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	h.answer = fn
}

// Cut takes the host from the ledger: it hears nothing and gets no answer, while
// its lease goes on until End. Join ends that.
func (h *Host) Cut() { h.set(func() { h.apart = true }) }

// Late has the host hear what others do only when it gets in its way, until Join.
func (h *Host) Late() { h.set(func() { h.late = true }) }

// End ends the host's lease, and all that hangs on it. Join gives it another.
func (h *Host) End() {
	h.set(func() {
		h.alive = false
		h.ledger.revision++
		for _, key := range slices.Sorted(maps.Keys(h.ledger.entries)) {
			if h.ledger.entries[key].lease == h.name {
				h.ledger.put(store.Write{Key: key})
			}
		}
	})
}

// Join connects the host, with a lease and all that there is.
func (h *Host) Join() { h.set(func() { h.apart, h.late, h.alive = false, false, true }) }

// set changes something, and lets hosts hear.
func (h *Host) set(change func()) {
	h.ledger.mu.Lock()
	change()
	tell := h.ledger.spread()
	h.ledger.mu.Unlock()
	for _, fn := range tell {
		fn()
	}
}
