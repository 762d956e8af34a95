package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// errDamaged is what a file is that bbolt can't make sense of.
var errDamaged = errors.New("the file is damaged")

// schema is the version of the file's layout that this program writes.
// A migration from an older one belongs into prepare.
const schema = "1"

// open opens a file that exists or not, and looks whether it is whole.
func open(path string, l Ledger) (_ *Store, err error) {
	db, err := openBolt(path)
	if err != nil {
		return nil, fmt.Errorf("store: open %s: %w", path, err)
	}
	s := &Store{db: db, given: map[Claim]time.Time{}, unsure: map[netip.Addr]int{}, works: works{keys: map[string]bool{}, ended: make(chan struct{})}}
	for _, check := range []func() error{s.complete, s.readable, s.consistent, func() error { return s.prepare(l) }, s.recallTaken, s.recallUnsure} {
		if err := check(); err != nil {
			return nil, errors.Join(fmt.Errorf("store: open %s: %w", path, err), db.Close())
		}
	}
	s.ledger = l
	return s, nil
}

func openBolt(path string) (db *bolt.DB, err error) {
	defer recoverDamage(&err)()
	info, err := os.Stat(path)
	existed := err == nil && info.Size() > 0
	if err := sound(path); err != nil {
		return nil, err
	}
	db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, ErrLocked
	case existed && errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch),
		errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrInvalidMapping):
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	case existed && !errors.Is(err, os.ErrPermission) && isShort(err):
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	default:
		return nil, err
	}
}

// isShort knows bbolt's word for a file that ends too early, which has no
// error value of its own.
func isShort(err error) bool { return strings.HasPrefix(err.Error(), "file size too small") }

// complete tells whether the file has all the pages that it should: touching
// one that was cut off would end the program.
func (s *Store) complete() error {
	info, err := os.Stat(s.db.Path())
	if err != nil {
		return err
	}
	return s.db.View(func(tx *bolt.Tx) error {
		if info.Size() < tx.Size() {
			return fmt.Errorf("%w: %d of %d bytes are there", errDamaged, info.Size(), tx.Size())
		}
		return nil
	})
}

// readable tells whether all records can be read.
func (s *Store) readable() (err error) {
	defer recoverDamage(&err)()
	_, err = s.Networks()
	_, err2 := s.Endpoints()
	_, err3 := s.Claims()
	_, err4 := s.byAddress(reservedBucket)
	_, err5 := all[Reservation](s, namesBucket)
	_, err6 := s.byAddress(unsureBucket)
	if err := errors.Join(err, err2, err3, err4, err5, err6); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return nil
}

// recallTaken fills the memory of taken addresses.
func (s *Store) recallTaken() error {
	for _, bucket := range [][]byte{claimsBucket, reservedBucket} {
		m, err := s.byAddress(bucket)
		if err != nil {
			return err
		}
		for a := range m {
			s.taken.Add(a)
		}
	}
	return nil
}

// recallUnsure fills the memory of what was being handed over.
func (s *Store) recallUnsure() error {
	m, err := s.byAddress(unsureBucket)
	for a := range m {
		s.handing++
		s.unsure[a] = s.handing
	}
	return err
}

// consistent looks at the pages that hold no records, too: they would fail at
// some later write.
func (s *Store) consistent() (err error) {
	return s.db.View(func(tx *bolt.Tx) error {
		var first error
		for err := range tx.Check() {
			if first == nil {
				first = fmt.Errorf("%w: %w", errDamaged, err)
			}
		}
		return first
	})
}

// recoverDamage makes an error of a panic or of a fault in the mapped file,
// which is how bbolt meets pages that make no sense.
func recoverDamage(err *error) func() {
	faults := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(faults)
		if p := recover(); p != nil {
			*err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}
}

// prepare makes what a new file lacks, and refuses one of a later program.
func (s *Store) prepare(l Ledger) error {
	return s.write(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{
			metaBucket, networksBucket, endpointsBucket, claimsBucket, reservedBucket, namesBucket, recentBucket, cursorsBucket, unsureBucket,
		} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(metaBucket)
		switch v := string(meta.Get(schemaKey)); v {
		case "":
			if err := meta.Put(schemaKey, []byte(schema)); err != nil {
				return err
			}
		case schema:
		default:
			return fmt.Errorf("its schema is %s, of another extip; this one writes %s", v, schema)
		}
		return changeMedium(tx, l)
	})
}

// changeMedium notes in the file whether claims are shared. If they are no longer,
// the reservations that are in use here are in the file again; the others are
// left to the hosts that go on.
func changeMedium(btx *bolt.Tx, l Ledger) error {
	meta := btx.Bucket(metaBucket)
	if l != nil {
		return meta.Put(sharedKey, []byte(l.Host()))
	}
	if meta.Get(sharedKey) == nil {
		return nil
	}
	tx := fileTransaction(btx)
	err := forEach(btx, endpointsBucket, func(_, value []byte) error {
		var e Endpoint
		if err := json.Unmarshal(value, &e); err != nil || e.Reservation == "" || e.State != Published {
			return err
		}
		if err := reserve(tx, e); err != nil {
			if _, kept := errors.AsType[*ReservedError](err); !kept {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, meta.Delete(sharedKey))
}
