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

// An address changes hosts in one transaction of the ledger: before, the one has
// it, and after, the other. Each of them has it on record a moment longer or later;
// if one of them ends in between, Reclaim finds out.

// HandOver gives an address of an endpoint of this host to one of another host,
// and records the endpoint as it is given, which is without the address. The
// reservations of both follow. It returns a *TakenError or *ReservedError if
// somebody else has the address, and what Ledger.Commit says if the other host is
// not alive. After ErrApart it may have been handed over, now or later: until Reclaim
// finds it lost, or claims it once more, this host is not its Holder.
func (s *Store) HandOver(e Endpoint, a netip.Addr, to Claim) error {
	if s.ledger == nil {
		return errNotShared
	}
	// Noted before, as this program may end before there is an answer.
	if err := s.setUnsure(a, true); err != nil {
		return err
	}
	err := s.update(fmt.Sprintf("hand %s over to host %s", a, to.Host), func(tx *transaction) error {
		c, ok, err := tx.claimed(a)
		switch {
		case err != nil:
			return err
		case ok && (c.Host != tx.plan.host || c.Endpoint != e.ID):
			return tx.takenBy(a, c)
		case !ok:
			return fmt.Errorf("%s is not claimed at the moment", a)
		}
		if err := tx.dropClaim(e.ID, a); err != nil {
			return err
		}
		if err := amend(tx, e, []netip.Addr{a}, nil); err != nil {
			return err
		}
		if name := tx.keeper(a); name != "" && name != to.Reservation {
			return &ReservedError{Address: a, Name: name}
		}
		given := to
		given.From, given.Since = tx.plan.host, time.Now().UTC()
		if err := tx.setClaim(a, given); err != nil {
			return err
		}
		if err := amend(tx, Endpoint{Reservation: to.Reservation, Created: given.Since}, nil, []netip.Addr{a}); err != nil {
			return err
		}
		return tx.put(endpointsBucket, e.ID, e)
	})
	if err != nil && !errors.Is(err, ErrApart) {
		s.nowSure(a)
	}
	return err
}

// setUnsure notes that an address may be another host's by now, or not any more.
func (s *Store) setUnsure(a netip.Addr, unsure bool) error {
	what := fmt.Sprintf("note whether %s is handed over", a)
	if err := s.intercept(what); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := change{bucket: unsureBucket, key: a.String()}
	if unsure {
		c.value = []byte{}
	}
	if err := s.write(c.write); err != nil {
		return fmt.Errorf("store: %s: %w", what, err)
	}
	if unsure {
		s.handing++
		s.unsure[a] = s.handing
	} else {
		delete(s.unsure, a)
	}
	return nil
}

// nowSure is for what is known of an address again. What can't be noted is claimed
// once more for nothing.
func (s *Store) nowSure(a netip.Addr) {
	if s.isUnsure(a) {
		_ = s.setUnsure(a, false)
	}
}

// writtenAnew takes in that the ledger has made a plan's writes: what it was asked for
// before about the same claims it can't make any more.
func (s *Store) writtenAnew(p *plan) {
	for key := range p.writes {
		if a, ok := addressOf(key); ok && strings.HasPrefix(key, claimsPrefix) {
			s.nowSure(a)
		}
	}
}

// isUnsure tells whether an address was handed over without an answer. What is known
// of it then may be from before, and even what the ledger says: it may be about to
// make what it was asked for. Only once it has made another write of the claim it can't.
func (s *Store) isUnsure(a netip.Addr) bool { return s.handedOverAs(a) != 0 }

// handedOverAs is the number of the hand-over that is not known to be made, 0 if
// there is none.
func (s *Store) handedOverAs(a netip.Addr) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unsure[a]
}

// TakeOver records an endpoint as it is given, which is with an address that
// HandOver gave to it, as Given says. It returns a *TakenError or *ReservedError if the
// address is no longer, or not only, the endpoint's. While the ledger gives no answer, what is
// known of it has to do. It is recorded first, and then the ledger says no longer
// that it was handed over: a crash in between is for Reclaim.
func (s *Store) TakeOver(e Endpoint, a netip.Addr) error {
	if s.ledger == nil {
		return errNotShared
	}
	if !slices.Contains(e.External, a) {
		e.External = append(slices.Clone(e.External), a)
	}
	err := s.update(fmt.Sprintf("take %s over", a), func(tx *transaction) error {
		c, ok, err := tx.claimed(a)
		switch {
		case err != nil:
			return err
		case ok && (c.Host != tx.plan.host || c.Endpoint != e.ID):
			return tx.takenBy(a, c)
		case !ok:
			return fmt.Errorf("%s is not claimed at the moment", a)
		}
		if id := string(tx.read(claimsBucket, a.String())); id != "" && id != e.ID {
			return tx.takenBy(a, Claim{Host: tx.plan.host, Endpoint: id})
		}
		if name := tx.keeper(a); name != "" && name != e.Reservation {
			return &ReservedError{Address: a, Name: name}
		}
		tx.touched = append(tx.touched, a)
		if err := tx.write(claimsBucket, a.String(), []byte(e.ID)); err != nil {
			return err
		}
		return tx.put(endpointsBucket, e.ID, e)
	})
	if err != nil {
		return err
	}
	// Reclaim does it otherwise.
	_ = s.update("have taken over", func(tx *transaction) error {
		_, err := s.reclaim(tx, a, false)
		return err
	})
	return nil
}

// Given returns what other hosts have handed over to endpoints of this host and
// TakeOver has not recorded yet, as far as is known. Reclaim leaves it to them
// for a minute.
func (s *Store) Given() (map[netip.Addr]Claim, error) {
	given := map[netip.Addr]Claim{}
	if s.ledger == nil {
		return given, nil
	}
	err := s.ledger.Scan(claimsPrefix, func(key string, value []byte) error {
		if !mayBeOf(value, s.ledger.Host()) {
			return nil
		}
		c, _, err := parseClaim(value)
		if a, ok := addressOf(key); ok && c.Host == s.ledger.Host() && c.From != "" {
			given[a] = c
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store: read the ledger: %w", err)
	}
	err = s.db.View(func(btx *bolt.Tx) error {
		tx := fileTransaction(btx)
		for a, c := range given {
			if tx.read(claimsBucket, a.String()) != nil || !tx.isGiven(c) {
				delete(given, a)
			}
		}
		return nil
	})
	return given, err
}

// isGiven tells whether a claim of this host was handed over, to an endpoint that
// is still there, and with the reservation that it was then.
func (tx *transaction) isGiven(c Claim) bool {
	if c.From == "" {
		return false
	}
	e := Endpoint{State: Retired}
	return tx.get(endpointsBucket, c.Endpoint, &e) == nil && e.State != Retired && e.Reservation == c.Reservation
}
