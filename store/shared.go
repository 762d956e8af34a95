package store

import (
	"errors"
	"net/netip"
)

// OpenShared opens a file like Open, for a host that shares its claims and
// reservations with others: they are in the ledger, and in the file is what
// only this host has to know.
//
// Methods that claim, reserve or change that then ask the ledger, wait for its
// answer, and return an error that is ErrApart if there is none. What only gives
// up claims is done all the same: Reclaim finishes it in the ledger. An address
// that another host has is a *TakenError with that host.
func OpenShared(path string, l Ledger) (*Store, error) { return nil, errors.ErrUnsupported }

// Reclaim makes ledger and file agree: claims of this host's endpoints that are
// missing are made again, those under this host's name that no endpoint has are
// dropped. It has to be called after the ledger was reached again, after this
// host's lease was lost, and now and then. Lost are addresses that another host
// has now, by its name, or that a reservation of another name keeps, as
// `reserved as "name"`. Their endpoints keep them on record: what is lost comes
// back when it is free. Reservations that a file had before it was shared are taken
// along, once.
func (s *Store) Reclaim() (lost map[netip.Addr]string, err error) { return nil, errors.ErrUnsupported }

// Holder is who claims an address, as far as is known; ok is false if nobody
// does. It doesn't wait.
func (s *Store) Holder(a netip.Addr) (c Claim, ok bool) { return c, false }

// HandOver gives an address of an endpoint of this host to one of another host,
// and records the endpoint as it is given, which is without the address. The
// reservations of both follow. It returns a *TakenError if the endpoint doesn't
// have the address any more, and what Ledger.Commit says if the other host is
// not alive.
func (s *Store) HandOver(e Endpoint, a netip.Addr, to Claim) error { return errors.ErrUnsupported }

// TakeOver records an endpoint as it is given, which is with an address that
// HandOver gave to it, as Given says.
func (s *Store) TakeOver(e Endpoint, a netip.Addr) error { return errors.ErrUnsupported }

// Given returns what other hosts have handed over to endpoints of this host and
// TakeOver has not recorded yet, as far as is known. Reclaim leaves it to them
// for a minute.
func (s *Store) Given() map[netip.Addr]Claim { return nil }

// HostClaims is how many addresses each host has.
func (s *Store) HostClaims() (map[string]int, error) { return nil, nil }
