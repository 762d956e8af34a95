package store

import (
	"errors"
	"fmt"
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

// TakenError says who has an address.
type TakenError struct {
	Address netip.Addr
	// Owner is the endpoint that has it; of one of another host only ID, Name,
	// Network and Reservation are known.
	Owner Endpoint
	// Host is the name of the host that has it, "" for this one.
	Host string
}

func (e *TakenError) Error() string {
	if e.Host == "" {
		return fmt.Sprintf("%s is taken by %s", e.Address, e.Owner.Title())
	}
	owner := "endpoint " + short(e.Owner.ID)
	if e.Owner.Name != "" {
		owner = fmt.Sprintf("container %q (%s)", e.Owner.Name, short(e.Owner.ID))
	}
	return fmt.Sprintf("%s is taken by %s on host %s", e.Address, owner, e.Host)
}

// ReservedError says for which reservation an address is kept.
type ReservedError struct {
	Address netip.Addr
	Name    string
}

func (e *ReservedError) Error() string {
	return fmt.Sprintf("%s is reserved as %q", e.Address, e.Name)
}

// ExhaustedError says that a pool has no address left, and what holds them.
type ExhaustedError struct {
	Pool pool.Pool
	// Owners have addresses of the pool; Reserved are names that keep some
	// which nobody has.
	Owners, Reserved []string
	// InUse is how many addresses are claimed.
	InUse int
	// Unusable are reasons why further addresses can't be used.
	Unusable []string
}

func (e *ExhaustedError) Error() string {
	s := fmt.Sprintf("pool %s is exhausted: %d of %d addresses are in use", e.Pool, e.InUse, e.Pool.Size())
	if len(e.Owners) > 0 {
		s += " by " + some(e.Owners)
	}
	if len(e.Reserved) > 0 {
		s += fmt.Sprintf(", %d reserved as %s", len(e.Reserved), some(slices.Compact(e.Reserved)))
	}
	if len(e.Unusable) > 0 {
		s += fmt.Sprintf(", %d can't be used: %s", len(e.Unusable), some(e.Unusable))
	}
	return s
}

// some lists the first few.
func some(list []string) string {
	const few = 5
	if len(list) <= few {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:few], ", "), len(list)-few)
}

// CreateEndpoint claims what is wanted and records the endpoint with it, both
// or nothing; a record of the same endpoint, and its claims, give way. It
// returns the endpoint with its External addresses filled in, or a *TakenError,
// *ReservedError, *ExhaustedError or what Want.Fits says.
func (s *Store) CreateEndpoint(e Endpoint, want Want) (Endpoint, error) {
	err := s.update("create endpoint "+short(e.ID), func(tx *transaction) error {
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
			if err := tx.Bucket(recentBucket).Put(inside(e), texts(e.External)); err != nil {
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
	had := len(e.External)
	add := func(tx *transaction) error {
		if err := s.claimAll(tx, &e, want); err != nil {
			return err
		}
		if err := amend(tx, e, nil, e.External[had:]); err != nil {
			return err
		}
		return put(tx, endpointsBucket, e.ID, e)
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
			if err := get(tx.Tx, endpointsBucket, e.ID, &before[i]); err != nil {
				return err
			}
			gone := missingIn(e.External, before[i].External)
			for _, a := range gone {
				if err := tx.Bucket(claimsBucket).Delete(key(a)); err != nil {
					return err
				}
			}
			tx.touched = append(tx.touched, gone...)
			if err := amend(tx, e, gone, nil); err != nil {
				return err
			}
		}
		for i, e := range es {
			came := missingIn(before[i].External, e.External)
			for _, a := range came {
				if err := claim(tx, &Endpoint{ID: e.ID, Reservation: e.Reservation}, a); err != nil {
					return err
				}
			}
			if err := amend(tx, e, nil, came); err != nil {
				return err
			}
			if err := put(tx, endpointsBucket, e.ID, e); err != nil {
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
	claims := tx.Bucket(claimsBucket)
	if owner := claims.Get(key(a)); owner != nil {
		taken := &TakenError{Address: a}
		return errors.Join(get(tx.Tx, endpointsBucket, string(owner), &taken.Owner), taken)
	}
	if name := tx.Bucket(reservedBucket).Get(key(a)); name != nil && string(name) != e.Reservation {
		return &ReservedError{Address: a, Name: string(name)}
	}
	e.External = append(e.External[:len(e.External):len(e.External)], a)
	tx.touched = append(tx.touched, a)
	return claims.Put(key(a), []byte(e.ID))
}

// isFree tells whether an address is neither claimed nor reserved by another name.
func (tx *transaction) isFree(a netip.Addr, reservation string) bool {
	name := tx.Bucket(reservedBucket).Get(key(a))
	return tx.Bucket(claimsBucket).Get(key(a)) == nil && (name == nil || string(name) == reservation)
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
	cursors, name := tx.Bucket(cursorsBucket), []byte(p.String())
	for _, a := range addresses(tx.Bucket(recentBucket).Get(inside(e))) {
		if p.Contains(a) && usable(a) {
			return a, nil
		}
	}
	for _, a := range want.Prefer {
		if p.Contains(a) && usable(a) {
			return a, cursors.Put(name, key(a))
		}
	}
	reasons = nil
	after, _ := netip.ParseAddr(string(cursors.Get(name)))
	a, ok := p.Next(after, &s.taken, usable)
	if !ok {
		full := &ExhaustedError{Pool: p, Unusable: reasons}
		return a, errors.Join(full.explain(tx.Tx), full)
	}
	return a, cursors.Put(name, key(a))
}

// explain finds out who holds the pool's addresses; it reads all claims.
func (e *ExhaustedError) explain(tx *bolt.Tx) error {
	claimed := map[netip.Addr]bool{}
	err := forEach(tx, claimsBucket, func(k, id []byte) error {
		a, err := netip.ParseAddr(string(k))
		if err != nil || !e.Pool.Contains(a) {
			return err
		}
		claimed[a] = true
		e.InUse++
		owner := Endpoint{ID: string(id)}
		err = get(tx, endpointsBucket, string(id), &owner)
		title := owner.Name
		if title == "" {
			title = short(owner.ID)
		}
		e.Owners = append(e.Owners, title)
		return err
	})
	if err != nil {
		return err
	}
	return forEach(tx, reservedBucket, func(k, name []byte) error {
		a, err := netip.ParseAddr(string(k))
		if err == nil && e.Pool.Contains(a) && !claimed[a] {
			e.Reserved = append(e.Reserved, string(name))
		}
		return err
	})
}

// release gives up the claims of an endpoint, if it is known and has any.
func release(tx *transaction, id string) error {
	var e Endpoint
	if err := get(tx.Tx, endpointsBucket, id, &e); err != nil {
		return err
	}
	for _, a := range e.External {
		if err := tx.Bucket(claimsBucket).Delete(key(a)); err != nil {
			return err
		}
	}
	tx.touched = append(tx.touched, e.External...)
	return nil
}

// Upcoming returns the next n addresses of a pool that would be handed out, if
// usable agrees.
func (s *Store) Upcoming(p pool.Pool, n int, usable func(netip.Addr) bool) ([]netip.Addr, error) {
	var after netip.Addr
	err := s.db.View(func(tx *bolt.Tx) error {
		after, _ = netip.ParseAddr(string(tx.Bucket(cursorsBucket).Get([]byte(p.String()))))
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

// Claims returns which endpoint has which address.
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
func inside(e Endpoint) []byte { return fmt.Appendf(nil, "%s/%v", e.Network, e.Addresses) }

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
