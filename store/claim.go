package store

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"github.com/extip/extip/pool"
	bolt "go.etcd.io/bbolt"
)

// Want is the external addresses that a new endpoint is to have.
type Want struct {
	// Addresses were asked for by name.
	Addresses []netip.Addr
	// Reservation, unless empty, is a name. If nothing is asked for, what is
	// reserved by it is given; whatever the endpoint gets is reserved by it
	// once it is published.
	Reservation string
	// Pools are to give one address each, unless a reservation does: the one
	// that the container's address had last, or else the first free one of
	// Prefer, or the one after that which was handed out last.
	Pools  []pool.Pool
	Prefer []netip.Addr
	// Fits says why a reserved address can't be given here, nil if it can;
	// fromPool tells whether the container that reserved it may have had it of
	// a pool. Unusable says why this host can't use an address of a pool, "" if it can.
	Fits     func(a netip.Addr, fromPool bool) error
	Unusable func(netip.Addr) string
}

// CreateEndpoint claims what is wanted and records the endpoint with it, both
// or nothing; a record of the same endpoint, and its claims, give way. It
// returns the endpoint with its External addresses filled in, or a *TakenError,
// *ReservedError, *ExhaustedError or what Want.Fits says.
func (s *Store) CreateEndpoint(e Endpoint, want Want) (Endpoint, error) {
	given := e
	err := s.update("create endpoint "+short(e.ID), func(tx *transaction) error {
		e = given
		if err := release(tx, e.ID); err != nil {
			return err
		}
		e.External, e.Reservation = nil, want.Reservation
		want, err := recall(tx, want)
		if err != nil {
			return err
		}
		if e.Filter, err = recallFilter(tx, e); err != nil {
			return err
		}
		if err := s.claimAll(tx, &e, want); err != nil {
			return err
		}
		if len(want.Pools) > 0 {
			if err := tx.write(recentBucket, inside(e), texts(e.External)); err != nil {
				return err
			}
		}
		return putEndpoint(tx, e)
	})
	return e, err
}

// claimAll makes what is wanted the endpoint's.
func (s *Store) claimAll(tx *transaction, e *Endpoint, want Want) error {
	for _, a := range want.Addresses {
		if err := claim(tx, e, a); err != nil {
			return err
		}
	}
	for _, p := range want.Pools {
		a, err := s.choose(tx, *e, want, p)
		if err != nil {
			return err
		}
		if err := claim(tx, e, a); err != nil {
			return err
		}
	}
	return nil
}

// AddClaims claims what is wanted, beside what a recorded endpoint has, and
// records the endpoint as it is given; its reservation keeps the new addresses,
// too. Errors are those of CreateEndpoint. A rehearsal tells what would be, and
// changes nothing.
func (s *Store) AddClaims(e Endpoint, want Want, rehearsal bool) (Endpoint, error) {
	before := e
	add := func(tx *transaction) error {
		e = before
		if err := s.claimAll(tx, &e, want); err != nil {
			return err
		}
		if err := amend(tx, e, nil, e.External[len(before.External):]); err != nil {
			return err
		}
		return tx.put(endpointsBucket, e.ID, e)
	}
	if rehearsal {
		err := s.rehearse(add)
		return e, err
	}
	err := s.update("add claims of endpoint "+short(e.ID), add)
	return e, err
}

// ChangeClaims records endpoints, all in one transaction, with the claims that
// their External addresses are: what one gives up another may get. Their
// reservations follow. It returns a *TakenError or *ReservedError if somebody else
// has one of the addresses.
func (s *Store) ChangeClaims(es ...Endpoint) error {
	var names []string
	for _, e := range es {
		names = append(names, short(e.ID))
	}
	return s.update("change claims of "+strings.Join(names, ", "), func(tx *transaction) error {
		before := make([]Endpoint, len(es))
		for i, e := range es {
			if err := tx.get(endpointsBucket, e.ID, &before[i]); err != nil {
				return err
			}
			gone := missingIn(e.External, before[i].External)
			for _, a := range gone {
				if err := tx.dropClaim(e.ID, a); err != nil {
					return err
				}
			}
			if err := amend(tx, e, gone, nil); err != nil {
				return err
			}
		}
		for i, e := range es {
			came := missingIn(before[i].External, e.External)
			for _, a := range came {
				claimant := e
				if err := claim(tx, &claimant, a); err != nil {
					return err
				}
			}
			if err := amend(tx, e, nil, came); err != nil {
				return err
			}
			if err := tx.put(endpointsBucket, e.ID, e); err != nil {
				return err
			}
		}
		return nil
	})
}

// missingIn is what of list is not in others.
func missingIn(others, list []netip.Addr) (missing []netip.Addr) {
	for _, a := range list {
		if !slices.Contains(others, a) {
			missing = append(missing, a)
		}
	}
	return missing
}

// claim makes an address the endpoint's.
func claim(tx *transaction, e *Endpoint, a netip.Addr) error {
	taken, err := tx.owner(a)
	if err != nil {
		return err
	}
	if taken != nil {
		return taken
	}
	if name := tx.keeper(a); name != "" && name != e.Reservation {
		return &ReservedError{Address: a, Name: name}
	}
	e.External = append(e.External[:len(e.External):len(e.External)], a)
	return tx.setOwner(a, *e)
}

// owner is who has an address, nil if nobody. What nobody has is claimed by nobody
// from then on.
func (tx *transaction) owner(a netip.Addr) (*TakenError, error) {
	id := string(tx.read(claimsBucket, a.String()))
	c, ok, err := tx.claimed(a)
	switch {
	case err != nil:
		return nil, err
	case ok && c.Host != tx.plan.host:
		return &TakenError{Address: a, Owner: c.owner(), Host: c.Host}, nil
	case id == "" && ok && tx.isGiven(c):
		id = c.Endpoint // which is about to record it
	case id == "" && ok:
		return nil, tx.unclaim(a) // it is left from a write that got no answer
	case id == "":
		return nil, nil
	}
	taken := &TakenError{Address: a}
	return taken, tx.get(endpointsBucket, id, &taken.Owner)
}

// isFree tells whether an address is neither claimed nor reserved by another name,
// nor about to be.
func (tx *transaction) isFree(a netip.Addr, reservation string) bool {
	text := a.String()
	name := tx.view.peek(reservedPrefix + text)
	return tx.Bucket(claimsBucket).Get(key(a)) == nil && (name == nil || string(name) == reservation) &&
		(tx.plan == nil || tx.view.peek(claimsPrefix+text) == nil && !tx.isUnder(a))
}

// choose picks a free address of a pool. A container that is started again, and
// gets its own address again, gets the external one again.
func (s *Store) choose(tx *transaction, e Endpoint, want Want, p pool.Pool) (netip.Addr, error) {
	var reasons []string
	usable := func(a netip.Addr) bool {
		if !tx.isFree(a, e.Reservation) {
			return false
		}
		why := ""
		if want.Unusable != nil {
			why = want.Unusable(a)
		}
		if why != "" {
			reasons = append(reasons, fmt.Sprintf("%s %s", a, why))
		}
		return why == ""
	}
	remember := func(a netip.Addr) error { return tx.write(cursorsBucket, p.String(), key(a)) }
	for _, a := range addresses(tx.Bucket(recentBucket).Get([]byte(inside(e)))) {
		if p.Contains(a) && usable(a) {
			return a, nil
		}
	}
	for _, a := range want.Prefer {
		if p.Contains(a) && usable(a) {
			return a, remember(a)
		}
	}
	reasons = nil
	a, ok := p.Next(s.cursor(tx.Tx, p), &s.taken, usable)
	if !ok {
		full := &ExhaustedError{Pool: p, Unusable: reasons}
		return a, errors.Join(full.explain(tx), full)
	}
	return a, remember(a)
}

// cursor is the address of a pool that was handed out last. Hosts that share it begin
// at different places, so that they seldom choose the same.
func (s *Store) cursor(tx *bolt.Tx, p pool.Pool) (after netip.Addr) {
	after, err := netip.ParseAddr(string(tx.Bucket(cursorsBucket).Get([]byte(p.String()))))
	if err != nil && s.ledger != nil {
		h := fnv.New64a()
		_, _ = h.Write([]byte(s.ledger.Host()))
		after = p.At(h.Sum64() % max(1, p.Size()))
	}
	return after
}

// release gives up the claims of an endpoint, if it is known and has any.
func release(tx *transaction, id string) error {
	var e Endpoint
	if err := tx.get(endpointsBucket, id, &e); err != nil {
		return err
	}
	for _, a := range e.External {
		if err := tx.dropClaim(id, a); err != nil {
			return err
		}
	}
	return nil
}

// Upcoming returns the next n addresses of a pool that would be handed out, if
// usable agrees.
func (s *Store) Upcoming(p pool.Pool, n int, usable func(netip.Addr) bool) ([]netip.Addr, error) {
	var after netip.Addr
	err := s.db.View(func(tx *bolt.Tx) error {
		after = s.cursor(tx, p)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("store: read cursor: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []netip.Addr
	for len(list) < n {
		a, ok := p.Next(after, &s.taken, usable)
		if !ok || slices.Contains(list, a) {
			break
		}
		list = append(list, a)
		after = a
	}
	return list, nil
}

// Free is how many addresses of a pool are neither claimed nor reserved, at most
// math.MaxUint64.
func (s *Store) Free(p pool.Pool) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.Free(&s.taken)
}

// Claims returns which endpoint of this host has which address on record.
func (s *Store) Claims() (map[netip.Addr]string, error) { return s.byAddress(claimsBucket) }

func (s *Store) byAddress(bucket []byte) (map[netip.Addr]string, error) {
	m := map[netip.Addr]string{}
	err := s.db.View(func(tx *bolt.Tx) error {
		return forEach(tx, bucket, func(k, v []byte) error {
			a, err := netip.ParseAddr(string(k))
			m[a] = string(v)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("store: read %s: %w", bucket, err)
	}
	return m, nil
}

func key(a netip.Addr) []byte { return []byte(a.String()) }

// inside is the key of what a container's addresses had last.
func inside(e Endpoint) string { return fmt.Sprintf("%s/%v", e.Network, e.Addresses) }

// texts and addresses are a list of addresses as a value.
func texts(list []netip.Addr) []byte {
	parts := make([]string, len(list))
	for i, a := range list {
		parts[i] = a.String()
	}
	return []byte(strings.Join(parts, ","))
}

func addresses(value []byte) (list []netip.Addr) {
	for part := range strings.SplitSeq(string(value), ",") {
		if a, err := netip.ParseAddr(part); err == nil {
			list = append(list, a)
		}
	}
	return list
}
