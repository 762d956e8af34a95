package store

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

// OpenShared opens a file like Open, for a host that shares its claims and
// reservations with others: they are in the ledger, and in the file is what
// only this host has to know.
//
// Methods that claim, reserve or change that then ask the ledger, wait for its
// answer, and return an error that is ErrApart if there is none. What only gives
// up claims is done all the same: Reclaim finishes it in the ledger. An address
// that another host has is a *TakenError with that host.
func OpenShared(path string, l Ledger) (*Store, error) {
	s, err := openSound(path, l)
	if err == nil {
		l.Notify(s.heard)
		err = s.recallShared()
	}
	return s, err
}

// patience is how long a write is tried that others are always ahead of.
const patience = 10 * time.Second

// A plan is what a transaction has decided: it is written once the ledger
// agrees.
type plan struct {
	draft
	// host is this host's name, under is what other writes are about to change.
	host  string
	under map[string]bool
	// saw are the keys of the file that were read, changes what is written
	// there.
	saw     []string
	changes []change
	touched []netip.Addr
	// waits: what is under way decides.
	waits bool
	// confirm: the ledger has to agree though nothing is written.
	confirm bool
	// refusal is why nothing is written.
	refusal error
}

// works are the keys that are about to be written, of the ledger and of the file.
type works struct {
	keys map[string]bool
	// ended is closed when some of them have been, or will not be.
	ended chan struct{}
}

// share makes a write in three steps: it is planned on what is known; the ledger
// makes it, if all that it depends on is so still; then it goes into the file.
// Between the steps no lock is held. A rehearsal ends with the ledger's agreement.
func (s *Store) share(what string, fn func(*transaction) error, rehearsal bool) error {
	deadline := time.Now().Add(patience)
	for {
		p, ended, err := s.plan(fn, rehearsal)
		switch {
		case err != nil:
			return err
		case ended != nil:
			select {
			case <-ended:
				continue
			case <-time.After(time.Until(deadline)):
				return ErrStale
			}
		}
		err = s.carryOut(what, p)
		if !errors.Is(err, ErrStale) || time.Now().After(deadline) {
			return err
		}
	}
}

// plan finds out what a write would be. If that depends on another one that is
// under way, it returns when to ask again instead.
func (s *Store) plan(fn func(*transaction) error, rehearsal bool) (p *plan, ended chan struct{}, err error) {
	defer recoverDamage(&err)()
	s.mu.Lock()
	defer s.mu.Unlock()
	p = &plan{
		draft: draft{ledger: s.ledger, looked: map[string]entry{}, read: map[string]int64{}, writes: map[string]Write{}},
		host:  s.ledger.Host(), under: s.works.keys, confirm: rehearsal,
	}
	btx, err := s.db.Begin(true)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, btx.Rollback()) }()
	tx := &transaction{Tx: btx, view: p, plan: p}
	p.refusal = fn(tx)
	p.touched = tx.touched
	if p.waits || slices.ContainsFunc(p.keys(), func(key string) bool { return s.works.keys[key] }) {
		return nil, s.works.ended, nil
	}
	if p.refusal != nil || rehearsal {
		p.writes, p.changes, p.touched = nil, nil, nil
	}
	for _, key := range p.written() {
		s.works.keys[key] = true
	}
	for _, a := range p.touched {
		s.taken.Add(a)
	}
	return p, nil, nil
}

// keys are those that the plan depends on or changes.
func (p *plan) keys() []string {
	keys := append(p.written(), p.saw...)
	for key := range p.read {
		keys = append(keys, key)
	}
	return keys
}

// written are the keys that the plan changes. Cursors don't count: the last one
// to write it is right.
func (p *plan) written() (keys []string) {
	for key := range p.writes {
		keys = append(keys, key)
	}
	for _, c := range p.changes {
		if bucket := string(c.bucket); bucket != string(cursorsBucket) {
			keys = append(keys, bucket+"/"+c.key)
		}
	}
	return keys
}

// isUnder tells whether another write is about to change whose an address is.
func (tx *transaction) isUnder(a netip.Addr) bool {
	return tx.plan != nil && (tx.plan.under[claimsPrefix+a.String()] || tx.plan.under[reservedPrefix+a.String()])
}

// carryOut asks the ledger, and then writes the file.
func (s *Store) carryOut(what string, p *plan) error {
	defer s.end(p)
	if err := p.commit(); err == nil {
		s.writtenAnew(p)
	} else if !(errors.Is(err, ErrApart) && !p.confirm && p.givesUp()) {
		return err
	}
	if p.refusal != nil || len(p.changes) == 0 {
		return p.refusal
	}
	if err := s.intercept(what); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write(func(tx *bolt.Tx) error {
		for _, c := range p.changes {
			if err := c.write(tx); err != nil {
				return err
			}
		}
		return nil
	})
}

// givesUp tells whether the plan only gives up claims.
func (p *plan) givesUp() bool {
	for _, w := range p.writes {
		if w.Value != nil || !strings.HasPrefix(w.Key, claimsPrefix) {
			return false
		}
	}
	return len(p.writes) > 0
}

// most is how many keys one transaction of the ledger has at most: etcd allows 128
// (--max-txn-ops).
const most = 100

// commit has the ledger make the plan's writes. A refusal is given only if what it
// is based on is so.
func (p *plan) commit() error {
	writes := p.sorted()
	switch {
	case len(writes) == 0 && !p.confirm && (p.refusal == nil || len(p.read) == 0):
		return nil
	case len(writes) > most && p.givesUp():
		// One by one they are as good.
		for batch := range slices.Chunk(writes, most) {
			read := map[string]int64{}
			for _, w := range batch {
				read[w.Key] = p.read[w.Key]
			}
			if err := p.ledger.Commit(read, batch); err != nil {
				return err
			}
		}
		return nil
	}
	return p.ledger.Commit(p.read, writes)
}

// end forgets what was under way.
func (s *Store) end(p *plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range p.written() {
		delete(s.works.keys, key)
	}
	for _, a := range p.touched {
		s.setTaken(a, s.isTaken(a))
	}
	close(s.works.ended)
	s.works.ended = make(chan struct{})
}

// isTaken tells whether an address is claimed or reserved, as far as is known, or
// about to change; mu is held.
func (s *Store) isTaken(a netip.Addr) bool {
	text := a.String()
	for _, key := range []string{claimsPrefix + text, reservedPrefix + text} {
		if value, _ := s.ledger.Get(key); value != nil || s.works.keys[key] {
			return true
		}
	}
	id, err := s.recorded(a)
	return id != "" || err != nil
}

// recorded is the endpoint of this host that has an address in the file.
func (s *Store) recorded(a netip.Addr) (id string, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		id = string(tx.Bucket(claimsBucket).Get(key(a)))
		return nil
	})
	return id, err
}

// heard takes what has changed in the ledger.
func (s *Store) heard(keys []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		if a, ok := addressOf(key); ok {
			s.setTaken(a, s.isTaken(a))
		}
	}
}

// addressOf is the address that a key of the ledger says something of.
func addressOf(key string) (a netip.Addr, ok bool) {
	prefix, text, _ := strings.Cut(key, "/")
	if prefix+"/" == claimsPrefix || prefix+"/" == reservedPrefix {
		var err error
		a, err = netip.ParseAddr(text)
		ok = err == nil
	}
	return a, ok
}

// recallShared adds to the memory of taken addresses those of the ledger.
func (s *Store) recallShared() error {
	var keys []string
	for _, prefix := range []string{claimsPrefix, reservedPrefix} {
		err := s.ledger.Scan(prefix, func(key string, _ []byte) error {
			keys = append(keys, key)
			return nil
		})
		if err != nil {
			return fmt.Errorf("store: read the ledger: %w", err)
		}
	}
	s.heard(keys)
	return nil
}

// errNotShared is the answer to what needs other hosts.
var errNotShared = errors.New("this host's claims are not shared: give --cluster")

// Holder is who claims an address, as far as is known; ok is false if nobody
// does. It doesn't wait.
func (s *Store) Holder(a netip.Addr) (c Claim, ok bool) {
	if s.ledger != nil {
		value, _ := s.ledger.Get(claimsPrefix + a.String())
		c, ok, err := parseClaim(value)
		if err != nil || c.Host == s.ledger.Host() && s.isUnsure(a) {
			return Claim{}, false
		}
		return c, ok
	}
	_ = s.db.View(func(btx *bolt.Tx) error {
		tx := fileTransaction(btx)
		var e Endpoint
		id := tx.read(claimsBucket, a.String())
		if ok = id != nil; ok && tx.get(endpointsBucket, string(id), &e) == nil {
			c = claimOf("", e)
			c.Since = e.Created
			if since, later := e.Since[a]; later {
				c.Since = since
			}
		}
		return nil
	})
	return c, ok
}
