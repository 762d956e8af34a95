package store

import (
	"fmt"
	"maps"
	"net/netip"
	"time"

	bolt "go.etcd.io/bbolt"
)

// givenGrace is how long Reclaim leaves what was handed over to whoever is about
// to record it.
const givenGrace = time.Minute

// Reclaim makes ledger and file agree: claims of this host's endpoints that are
// missing are made again, those under this host's name that no endpoint has are
// dropped. It has to be called after the ledger was reached again, after this
// host's lease was lost, and now and then. Lost are addresses that another host
// has now, by its name, or that a reservation of another name keeps, as
// `reserved as "name"`. Their endpoints keep them on record: what is lost comes
// back when it is free, but for the addresses to leave: those are not claimed yet.
// Reservations that a file had before it was shared are taken along, once; of them,
// too, what others have is lost.
//
// It returns ErrApart if the ledger gave no answer, and does nothing if claims
// are not shared.
func (s *Store) Reclaim(leave ...netip.Addr) (lost map[netip.Addr]string, err error) {
	if s.ledger == nil {
		return nil, nil
	}
	lost = map[netip.Addr]string{}
	if err := s.takeAlong(lost); err != nil {
		return nil, err
	}
	rest, err := s.differing()
	if err != nil {
		return nil, fmt.Errorf("store: reclaim: %w", err)
	}
	left := map[netip.Addr]bool{}
	for _, a := range leave {
		left[a] = true
	}
	// Even if they agree, as far as is known, the ledger has to say so.
	for confirmed := false; !confirmed || len(rest) > 0; confirmed = true {
		batch := rest[:min(len(rest), most/2)] // two keys are read for each
		rest = rest[len(batch):]
		var lostOf map[netip.Addr]string
		var resolved map[netip.Addr]int
		err := s.update("reclaim", func(tx *transaction) error {
			lostOf, resolved = map[netip.Addr]string{}, map[netip.Addr]int{}
			tx.plan.confirm = true
			for _, a := range batch {
				if n := s.unsure[a]; n != 0 {
					resolved[a] = n
				}
				why, err := s.reclaim(tx, a, left[a])
				if err != nil {
					return err
				}
				if why != "" {
					lostOf[a] = why
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		for a, n := range resolved {
			if s.handedOverAs(a) == n {
				s.nowSure(a)
			}
		}
		maps.Copy(lost, lostOf)
	}
	return lost, nil
}

// differing are the addresses of which ledger and file say different things, or of
// which it is not known what the ledger says.
func (s *Store) differing() (list []netip.Addr, err error) {
	recorded, err := s.Claims()
	if err != nil {
		return nil, err
	}
	given := map[Claim]bool{}
	mine := map[netip.Addr]Claim{}
	err = s.ledger.Scan(claimsPrefix, func(key string, value []byte) error {
		if !mayBeOf(value, s.ledger.Host()) {
			return nil
		}
		c, _, err := parseClaim(value)
		a, ok := addressOf(key)
		if err != nil || !ok || c.Host != s.ledger.Host() {
			return err
		}
		mine[a], given[c] = c, true
		if recorded[a] == "" {
			list = append(list, a)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	maps.DeleteFunc(s.given, func(c Claim, _ time.Time) bool { return !given[c] })
	unsure := maps.Clone(s.unsure)
	s.mu.Unlock()
	err = s.db.View(func(btx *bolt.Tx) error {
		tx := fileTransaction(btx)
		for a, id := range recorded {
			var e Endpoint
			if err := tx.get(endpointsBucket, id, &e); err != nil {
				return err
			}
			if !mine[a].isOf(s.ledger.Host(), e) || unsure[a] != 0 {
				list = append(list, a)
			}
		}
		return nil
	})
	return list, err
}

// isOf tells whether a claim says all that it should of an endpoint.
func (c Claim) isOf(host string, e Endpoint) bool {
	should := claimOf(host, e)
	should.Since = c.Since
	return c == should
}

// reclaim makes ledger and file agree about one address, or returns who has it. One
// to leave stays free if it is. mu is held.
func (s *Store) reclaim(tx *transaction, a netip.Addr, leave bool) (lostTo string, err error) {
	id := string(tx.read(claimsBucket, a.String()))
	c, ok, err := tx.claimed(a)
	if err != nil {
		return "", err
	}
	own := ok && c.Host == tx.plan.host
	if id == "" {
		if !own || s.isAwaited(tx, c) {
			return "", nil
		}
		return "", tx.unclaim(a)
	}
	if ok && !own {
		return c.Host, nil
	}
	var e Endpoint
	if err := tx.get(endpointsBucket, id, &e); err != nil || c.isOf(tx.plan.host, e) && s.unsure[a] == 0 {
		return "", err
	}
	if name := tx.keeper(a); name != "" && name != e.Reservation {
		if own && c.From == "" && c.Reservation == name {
			err = undo(tx, c, e, a)
		} else if lostTo = reservedAs(name); own && !s.isAwaited(tx, c) {
			err = tx.unclaim(a)
		}
		if err != nil || lostTo != "" {
			return lostTo, err
		}
	}
	if leave && !ok {
		return "", nil
	}
	should := claimOf(tx.plan.host, e)
	if c.Endpoint == id {
		should.Since = c.Since
	}
	return "", tx.setClaim(a, should)
}

// undo takes an address, which the ledger gave to another endpoint of this host and
// the file didn't, back from the reservation of that one.
func undo(tx *transaction, c Claim, e Endpoint, a netip.Addr) error {
	if err := amend(tx, c.owner(), []netip.Addr{a}, nil); err != nil || e.State != Published {
		return err
	}
	return amend(tx, e, nil, []netip.Addr{a})
}

func reservedAs(name string) string { return fmt.Sprintf("reserved as %q", name) }

// isAwaited tells whether a claim was handed over that its endpoint is yet to
// record, and may; mu is held.
func (s *Store) isAwaited(tx *transaction, c Claim) bool {
	if !tx.isGiven(c) {
		return false
	}
	now := time.Now()
	if _, seen := s.given[c]; !seen {
		s.given[c] = now
	}
	return now.Sub(s.given[c]) < givenGrace
}

// takeAlong brings the reservations of the file into the ledger, where that knows
// none of the name.
func (s *Store) takeAlong(lost map[netip.Addr]string) error {
	list, err := all[Reservation](s, namesBucket)
	if err != nil {
		return err
	}
	for _, r := range list {
		var lostOf map[netip.Addr]string
		err := s.update("take reservation "+r.Name+" along", func(tx *transaction) (err error) {
			lostOf = map[netip.Addr]string{}
			var known Reservation
			if err := tx.reservation(r.Name, &known); err != nil {
				return err
			}
			if known.Name == "" {
				if lostOf, err = bring(tx, r); err != nil {
					return err
				}
			}
			for _, a := range r.Addresses {
				if err := tx.write(reservedBucket, a.String(), nil); err != nil {
					return err
				}
			}
			return tx.write(namesBucket, r.Name, nil)
		})
		if err != nil {
			return err
		}
		maps.Copy(lost, lostOf)
	}
	return nil
}

// bring writes a reservation into the ledger, with what nobody else has.
func bring(tx *transaction, r Reservation) (lost map[netip.Addr]string, err error) {
	lost = map[netip.Addr]string{}
	var kept []netip.Addr
	for _, a := range r.Addresses {
		c, ok, err := tx.claimed(a)
		if err != nil {
			return nil, err
		}
		switch name := tx.keeper(a); {
		case name != "":
			lost[a] = reservedAs(name)
		case ok && c.Host != tx.plan.host && c.Reservation != r.Name:
			lost[a] = c.Host
		default:
			kept = append(kept, a)
		}
	}
	r.Addresses = kept
	return lost, changeReservation(tx, Reservation{}, r)
}
