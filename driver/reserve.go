package driver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/extip/extip/store"
)

// Reserve keeps addresses under a name, beside those that it has: free ones, or
// those of containers that were started with extip.reservation=name; with none,
// all that these have.
func (d *Driver) Reserve(name string, addrs []netip.Addr, dryRun bool) (Report, error) {
	r := newReport()
	if err := reservationName(name, &name); err != nil {
		return r, fmt.Errorf("reservation %q: %w", name, err)
	}
	for _, a := range addrs {
		if why := d.neverExternal(a); why != "" {
			return r, fmt.Errorf("reservation %q: %s %s", name, a, why)
		}
	}
	users := d.usersOf(name)
	if len(addrs) == 0 {
		for _, u := range users {
			addrs = append(addrs, u.External...)
		}
	}
	if len(addrs) == 0 {
		return r, fmt.Errorf("reservation %q: no address is given, and no container has it", name)
	}
	known, err := d.store.Reservations()
	if err != nil {
		return r, err
	}
	var before []netip.Addr
	for _, k := range known {
		if k.Name == name {
			before = k.Addresses
		}
	}
	after, err := d.store.Reserve(name, addrs, dryRun)
	if err != nil {
		return newReport(), fmt.Errorf("reservation %q: %w", name, owned(err))
	}
	for _, a := range addrs {
		switch {
		case slices.Contains(before, a):
			r.left("%s is reserved as %q already", a, name)
			continue
		case !dryRun:
			d.events.emit(Event{Kind: EventReserved, Address: a, Text: name})
		}
		for _, u := range users {
			if !slices.Contains(u.External, a) {
				r.left("%s gets %s when it is started again, or attached to it", title(u), a)
			}
		}
	}
	r.changed(reserved(name, before), reserved(name, after.Addresses))
	return r, nil
}

// owned is what is said of who has an address, without what the store was about to
// do.
func owned(err error) error {
	if taken, ok := errors.AsType[*store.TakenError](err); ok {
		return taken
	}
	if other, ok := errors.AsType[*store.ReservedError](err); ok {
		return other
	}
	if errors.Is(err, store.ErrApart) {
		return apart(err)
	}
	return err
}

// reserved is a reservation's picture.
func reserved(name string, addrs []netip.Addr) (lines []string) {
	for _, a := range addrs {
		lines = append(lines, fmt.Sprintf("reservation %q: %s", name, a))
	}
	return lines
}

// usersOf is the endpoints that have a reservation, sorted by their ids within
// their networks.
func (d *Driver) usersOf(name string) (list []store.Endpoint) {
	d.eachEndpoint(func(_ *network, e *endpoint) {
		if e.rec.Reservation == name && e.rec.State != store.Retired {
			list = append(list, e.rec)
		}
	})
	return list
}

// Unreserve forgets a reservation. Who has its addresses keeps them, and reserves
// them no more.
func (d *Driver) Unreserve(name string, dryRun bool) (Report, error) {
	r := newReport()
	known, err := d.store.Reservations()
	if err != nil {
		return r, err
	}
	i := slices.IndexFunc(known, func(k store.Reservation) bool { return k.Name == name })
	if i < 0 {
		return r, fmt.Errorf("unknown reservation %q", name)
	}
	r.changed(reserved(name, known[i].Addresses), nil)
	for _, u := range d.usersOf(name) {
		if len(u.External) > 0 {
			r.left("%s keeps %s until it stops", title(u), join(u.External))
		}
	}
	if dryRun {
		return r, nil
	}
	// First nobody has its name, so that nobody reserves by it again.
	var errs []error
	d.eachEndpoint(func(n *network, e *endpoint) {
		if e.rec.Reservation == name {
			errs = append(errs, d.dropReservation(n, e))
		}
	})
	if err := errors.Join(errs...); err != nil {
		return newReport(), err
	}
	if err := d.store.Unreserve(name); err != nil {
		return newReport(), err
	}
	for _, a := range known[i].Addresses {
		d.events.emit(Event{Kind: EventUnreserved, Address: a, Text: name})
	}
	return r, nil
}

// dropReservation has an endpoint reserve nothing; e.mu is held.
func (d *Driver) dropReservation(n *network, e *endpoint) error {
	rec := e.rec
	rec.Reservation = ""
	if err := d.store.PutEndpoint(rec); err != nil {
		return err
	}
	e.rec, e.want.Reservation = rec, ""
	if rec.State != store.Published && rec.State != store.Plumbed {
		return nil
	}
	return up(d.plumbing(n.rec, rec)) // its link says so
}
