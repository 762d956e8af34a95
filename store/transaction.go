package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	bolt "go.etcd.io/bbolt"
)

// A transaction is one write of the file, and of the ledger if claims are
// shared. What is decided about claims and reservations is decided on it, wherever
// they are.
type transaction struct {
	*bolt.Tx
	// view has the reservations.
	view entries
	// touched are the addresses about which it may change whether they are
	// taken.
	touched []netip.Addr
	// plan is what is to be done once the ledger agrees; nil if claims are not
	// shared.
	plan *plan
}

func (s *Store) update(what string, fn func(*transaction) error) (err error) {
	if s.ledger != nil {
		err = s.share(what, fn, false)
	} else {
		err = s.updateFile(what, fn)
	}
	if err != nil {
		return fmt.Errorf("store: %s: %w", what, err)
	}
	return nil
}

// updateFile makes a write that only the file is concerned with.
func (s *Store) updateFile(what string, fn func(*transaction) error) error {
	if err := s.intercept(what); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	free := map[netip.Addr]bool{}
	err := s.write(func(btx *bolt.Tx) error {
		tx := fileTransaction(btx)
		if err := fn(tx); err != nil {
			return err
		}
		for _, a := range tx.touched {
			free[a] = tx.isFree(a, "")
		}
		return nil
	})
	if err != nil {
		return err
	}
	for a, isFree := range free {
		s.setTaken(a, !isFree)
	}
	return nil
}

func (s *Store) intercept(what string) error {
	if s.Intercept == nil {
		return nil
	}
	return s.Intercept(what)
}

func (s *Store) setTaken(a netip.Addr, taken bool) {
	if taken {
		s.taken.Add(a)
	} else {
		s.taken.Remove(a)
	}
}

// rehearse calls fn in a transaction that changes nothing in the end.
func (s *Store) rehearse(fn func(*transaction) error) (err error) {
	if s.ledger != nil {
		err = s.share("rehearse", fn, true)
	} else {
		s.mu.Lock()
		defer s.mu.Unlock()
		var tx *bolt.Tx
		if tx, err = s.db.Begin(true); err == nil {
			err = errors.Join(fn(fileTransaction(tx)), tx.Rollback())
		}
	}
	if err != nil {
		return fmt.Errorf("store: rehearse: %w", err)
	}
	return nil
}

func fileTransaction(btx *bolt.Tx) *transaction {
	tx := &transaction{Tx: btx}
	tx.view = fileEntries{tx}
	return tx
}

// write is bbolt's Update; damage that it meets is an error.
func (s *Store) write(fn func(*bolt.Tx) error) (err error) {
	defer recoverDamage(&err)()
	return s.db.Update(fn)
}

// write puts a value into the file, or deletes the key if it is nil.
func (tx *transaction) write(bucket []byte, key string, value []byte) error {
	if tx.plan != nil {
		tx.plan.changes = append(tx.plan.changes, change{bucket, key, value})
	}
	return change{bucket, key, value}.write(tx.Tx)
}

// A change is a write of the file.
type change struct {
	bucket []byte
	key    string
	value  []byte
}

func (c change) write(tx *bolt.Tx) error {
	if c.value == nil {
		return tx.Bucket(c.bucket).Delete([]byte(c.key))
	}
	return tx.Bucket(c.bucket).Put([]byte(c.key), c.value)
}

func (tx *transaction) put(bucket []byte, id string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.write(bucket, id, b)
}

// read is a value of the file, nil if there is none.
func (tx *transaction) read(bucket []byte, key string) []byte {
	if tx.plan != nil {
		tx.plan.saw = append(tx.plan.saw, string(bucket)+"/"+key)
	}
	return tx.Bucket(bucket).Get([]byte(key))
}

// get reads a record of the file into v; an absent one leaves v alone.
func (tx *transaction) get(bucket []byte, id string, v any) error {
	b := tx.read(bucket, id)
	if b == nil {
		return nil
	}
	return json.Unmarshal(b, v)
}

// forEach reads a bucket, which a file that was just begun doesn't have.
func forEach(tx *bolt.Tx, bucket []byte, fn func(k, v []byte) error) error {
	if b := tx.Bucket(bucket); b != nil {
		return b.ForEach(fn)
	}
	return nil
}

func all[T any](s *Store, bucket []byte) ([]T, error) {
	var list []T
	err := s.db.View(func(tx *bolt.Tx) error {
		return forEach(tx, bucket, func(k, b []byte) error { return appendJSON(&list, string(k), b) })
	})
	if err != nil {
		return nil, fmt.Errorf("store: read %s: %w", bucket, err)
	}
	return list, nil
}

func appendJSON[T any](list *[]T, key string, value []byte) error {
	var v T
	if err := json.Unmarshal(value, &v); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	*list = append(*list, v)
	return nil
}
