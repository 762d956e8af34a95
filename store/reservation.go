package store

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/extip/extip/pool"
)

// A Reservation keeps addresses for whoever names it, also while nobody does.
type Reservation struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Created   time.Time    `json:"created"`
	// First is what the container had with which the reservation was used
	// first, or later with other addresses asked for. Who asks for these
	// again gets Addresses: what has become of them while it ran. It is nil
	// before the first use.
	First []netip.Addr `json:"first,omitempty"`
	// Filter is what became of FirstFilter while a container ran; who asks for
	// that again gets this. It is nil if nothing did.
	Filter      *Filter `json:"filter,omitempty"`
	FirstFilter Filter  `json:"first_filter,omitzero"`
}

// isAmended tells whether the addresses are other ones than at first.
func (r Reservation) isAmended() bool {
	return r.First != nil && !isSame(r.First, r.Addresses)
}

// isSame tells whether two lists have the same addresses, in whatever order.
func isSame(a, b []netip.Addr) bool { return len(missingIn(a, b))+len(missingIn(b, a)) == 0 }

// Reservations returns all reservations, in order of their names.
func (s *Store) Reservations() (list []Reservation, err error) {
	if s.ledger == nil {
		return all[Reservation](s, namesBucket)
	}
	err = s.ledger.Scan(namesPrefix, func(key string, value []byte) error { return appendJSON(&list, key, value) })
	if err != nil {
		return nil, fmt.Errorf("store: read the ledger: %w", err)
	}
	return list, nil
}

// Reserve keeps addresses under a name, beside those that it has, and returns
// what it keeps then. It returns a *TakenError for one that an endpoint of
// another reservation, or of none, has, and a *ReservedError for one that another
// name keeps. A rehearsal tells what would be, and changes nothing.
func (s *Store) Reserve(name string, addrs []netip.Addr, rehearsal bool) (r Reservation, err error) {
	reserve := func(tx *transaction) error {
		r = Reservation{Name: name, Created: time.Now().UTC()}
		if err := tx.reservation(name, &r); err != nil {
			return err
		}
		for _, a := range addrs {
			taken, err := tx.owner(a)
			if err != nil {
				return err
			}
			if taken != nil && taken.Owner.Reservation != name {
				return taken
			}
			if other := tx.keeper(a); other != "" && other != name {
				return &ReservedError{Address: a, Name: other}
			}
		}
		before := r
		r.Addresses = slices.Concat(r.Addresses, missingIn(r.Addresses, addrs))
		return changeReservation(tx, before, r)
	}
	if rehearsal {
		err = s.rehearse(reserve)
		return r, err
	}
	err = s.update("reserve "+name, reserve)
	return r, err
}

// Unreserve forgets a reservation; one that is unknown is no error. Endpoints
// keep their claims.
func (s *Store) Unreserve(name string) error {
	return s.update("unreserve "+name, func(tx *transaction) error {
		var r Reservation
		if err := tx.reservation(name, &r); err != nil {
			return err
		}
		for _, a := range r.Addresses {
			if err := tx.keep("", a); err != nil {
				return err
			}
		}
		return tx.view.set(Write{Key: namesPrefix + name})
	})
}

// changeReservation records what has become of a reservation. Whose names what
// it keeps has, is known by its addresses before: the ledger may know more of one
// than of the other, but not change without the reservation. That nobody else has
// those that are new must be certain.
func changeReservation(tx *transaction, before, r Reservation) error {
	for _, a := range missingIn(r.Addresses, before.Addresses) {
		if err := tx.keep("", a); err != nil {
			return err
		}
	}
	for _, a := range missingIn(before.Addresses, r.Addresses) {
		if err := tx.keep(r.Name, a); err != nil {
			return err
		}
	}
	return tx.setReservation(r)
}

// putEndpoint records an endpoint. Once it is published, its reservation holds:
// not before, so that a container that could not be started reserves nothing.
func putEndpoint(tx *transaction, e Endpoint) error {
	var before Endpoint
	if err := tx.get(endpointsBucket, e.ID, &before); err != nil {
		return err
	}
	if e.State == Published && before.State != Published && e.Reservation != "" {
		if err := reserve(tx, e); err != nil {
			return err
		}
	}
	return tx.put(endpointsBucket, e.ID, e)
}

// reserve keeps the endpoint's addresses under its reservation's name, instead
// of those that were kept under it before.
func reserve(tx *transaction, e Endpoint) error {
	r := Reservation{Name: e.Reservation, Created: e.Created}
	if err := tx.reservation(r.Name, &r); err != nil {
		return err
	}
	if r.First != nil && slices.Equal(r.Addresses, e.External) {
		return nil
	}
	for _, a := range e.External {
		if err := tx.mayKeep(e, a); err != nil {
			return err
		}
	}
	before := r
	r.Addresses, r.First = e.External, e.External
	return changeReservation(tx, before, r)
}

// mayKeep says who has an address that an endpoint has on record, nil if nobody
// else does.
func (tx *transaction) mayKeep(e Endpoint, a netip.Addr) error {
	c, ok, err := tx.claimed(a)
	if err != nil {
		return err
	}
	if ok && (c.Host != tx.plan.host || c.Endpoint != e.ID) {
		return tx.takenBy(a, c)
	}
	if name := tx.keeper(a); name != "" && name != e.Reservation {
		return &ReservedError{Address: a, Name: name}
	}
	return nil
}

// amend has an endpoint's reservation follow what it has lost and got.
func amend(tx *transaction, e Endpoint, gone, came []netip.Addr) error {
	if e.Reservation == "" || len(gone)+len(came) == 0 {
		return nil
	}
	r := Reservation{Name: e.Reservation, Created: e.Created}
	if err := tx.reservation(r.Name, &r); err != nil {
		return err
	}
	before := r
	r.Addresses = slices.Concat(missingIn(gone, r.Addresses), missingIn(r.Addresses, came))
	if isSame(r.Addresses, e.External) {
		r.Addresses = e.External // in its order
	}
	return changeReservation(tx, before, r)
}

// PutFilter records an endpoint whose filter has changed. Its reservation
// remembers that.
func (s *Store) PutFilter(e Endpoint, before Filter) error {
	return s.update("put filter of endpoint "+short(e.ID), func(tx *transaction) error {
		if err := putEndpoint(tx, e); err != nil || e.Reservation == "" {
			return err
		}
		var r Reservation
		if err := tx.reservation(e.Reservation, &r); err != nil || r.Name == "" {
			return err
		}
		if r.Filter == nil {
			r.FirstFilter = before
		}
		r.Filter = &e.Filter
		if e.Filter.Equal(r.FirstFilter) {
			r.Filter = nil
		}
		return tx.setReservation(r)
	})
}

// recallFilter is the filter that an endpoint's reservation remembers.
func recallFilter(tx *transaction, e Endpoint) (Filter, error) {
	var r Reservation
	if e.Reservation == "" {
		return e.Filter, nil
	}
	err := tx.reservation(e.Reservation, &r)
	if err == nil && r.Filter != nil && r.FirstFilter.Equal(e.Filter) {
		return *r.Filter, nil
	}
	return e.Filter, err
}

// recall replaces a wanted reservation by the addresses that it holds.
func recall(tx *transaction, want Want) (Want, error) {
	if want.Reservation == "" {
		return want, nil
	}
	var r Reservation
	if err := tx.reservation(want.Reservation, &r); err != nil {
		return want, err
	}
	if len(want.Addresses) > 0 && !slices.Equal(want.Addresses, r.First) {
		return want, nil
	}
	asked := want.Addresses
	want.Addresses, want.Pools = nil, slices.Clone(want.Pools)
	if r.isAmended() {
		want.Pools = nil
	}
	for _, a := range r.Addresses {
		if want.Fits != nil {
			if err := want.Fits(a, len(asked) == 0 && slices.Contains(r.First, a)); err != nil {
				return want, err
			}
		}
		want.Addresses = append(want.Addresses, a)
		want.Pools = slices.DeleteFunc(want.Pools, func(p pool.Pool) bool { return !p.Of(a.Is4()).Empty() })
	}
	return want, nil
}
