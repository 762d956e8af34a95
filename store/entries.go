package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Beginnings of the keys of a Ledger. The file's buckets have the same names.
const (
	claimsPrefix   = "claims/"
	reservedPrefix = "reserved/"
	namesPrefix    = "names/"
)

// entries are keys and values of a Ledger as one transaction sees them.
type entries interface {
	// get is a value that the transaction depends on, nil if there is none;
	// peek is one on which it doesn't.
	get(key string) []byte
	peek(key string) []byte
	// set puts a value, or deletes the key if it is nil.
	set(w Write) error
}

// fileEntries are the reservations in the file.
type fileEntries struct{ tx *transaction }

func (f fileEntries) get(key string) []byte {
	bucket, k, _ := strings.Cut(key, "/")
	return f.tx.read([]byte(bucket), k)
}

func (f fileEntries) peek(key string) []byte { return f.get(key) }

func (f fileEntries) set(w Write) error {
	bucket, k, _ := strings.Cut(w.Key, "/")
	return f.tx.write([]byte(bucket), k, w.Value)
}

// A draft is a ledger with what one transaction is about to write. What it has
// looked at stays as it was then, whatever others do meanwhile.
type draft struct {
	ledger Ledger
	looked map[string]entry
	read   map[string]int64
	writes map[string]Write
}

// An entry is a value of a ledger and its version.
type entry struct {
	value   []byte
	version int64
}

func (d *draft) get(key string) []byte {
	value := d.peek(key)
	if e, ok := d.looked[key]; ok {
		d.read[key] = e.version
	}
	return value
}

func (d *draft) peek(key string) []byte {
	if w, ok := d.writes[key]; ok {
		return w.Value
	}
	e, ok := d.looked[key]
	if !ok {
		e.value, e.version = d.ledger.Get(key)
		d.looked[key] = e
	}
	return e.value
}

func (d *draft) set(w Write) error {
	d.writes[w.Key] = w
	return nil
}

// sorted are the writes in order of their keys.
func (d *draft) sorted() (list []Write) {
	for _, key := range slices.Sorted(maps.Keys(d.writes)) {
		list = append(list, d.writes[key])
	}
	return list
}

// claimed is who has an address as the ledger says; ok is false if nobody does,
// or claims are not shared.
func (tx *transaction) claimed(a netip.Addr) (c Claim, ok bool, err error) {
	if tx.plan == nil {
		return c, false, nil
	}
	return parseClaim(tx.view.get(claimsPrefix + a.String()))
}

func parseClaim(value []byte) (c Claim, ok bool, err error) {
	if value == nil {
		return c, false, nil
	}
	if err := json.Unmarshal(value, &c); err != nil {
		return c, false, fmt.Errorf("a claim of the ledger: %w", err)
	}
	return c, true, nil
}

// mayBeOf tells whether a claim may be a host's, without reading it: of what all
// hosts have claimed, most are others'.
func mayBeOf(value []byte, host string) bool {
	return bytes.Contains(value, strconv.AppendQuote(nil, host))
}

// claimOf is an endpoint's claim in the ledger.
func claimOf(host string, e Endpoint) Claim {
	return Claim{Host: host, Endpoint: e.ID, Network: e.Network, Container: e.Name, Reservation: e.Reservation, Since: time.Now().UTC()}
}

// owner is what is known of who claims.
func (c Claim) owner() Endpoint {
	return Endpoint{ID: c.Endpoint, Network: c.Network, Name: c.Container, Reservation: c.Reservation}
}

// setOwner makes an address an endpoint's of this host.
func (tx *transaction) setOwner(a netip.Addr, e Endpoint) error {
	tx.touched = append(tx.touched, a)
	if err := tx.write(claimsBucket, a.String(), []byte(e.ID)); err != nil || tx.plan == nil {
		return err
	}
	return tx.setClaim(a, claimOf(tx.plan.host, e))
}

// setClaim writes who has an address into the ledger.
func (tx *transaction) setClaim(a netip.Addr, c Claim) error {
	value, err := json.Marshal(c)
	if err != nil {
		return err
	}
	tx.touched = append(tx.touched, a)
	return tx.view.set(Write{Key: claimsPrefix + a.String(), Value: value, Host: c.Host})
}

// dropClaim takes an address from an endpoint of this host, if that has it.
func (tx *transaction) dropClaim(id string, a netip.Addr) error {
	tx.touched = append(tx.touched, a)
	if string(tx.read(claimsBucket, a.String())) == id {
		if err := tx.write(claimsBucket, a.String(), nil); err != nil {
			return err
		}
	}
	c, ok, err := tx.claimed(a)
	if err != nil || !ok || c.Host != tx.plan.host || c.Endpoint != id {
		return err
	}
	return tx.unclaim(a)
}

// unclaim drops whatever the ledger says of who has an address.
func (tx *transaction) unclaim(a netip.Addr) error {
	tx.touched = append(tx.touched, a)
	return tx.view.set(Write{Key: claimsPrefix + a.String()})
}

// keeper is the name of the reservation that keeps an address, "" for none.
func (tx *transaction) keeper(a netip.Addr) string {
	return string(tx.view.get(reservedPrefix + a.String()))
}

// reservation reads a reservation into r; one that is unknown leaves r alone.
func (tx *transaction) reservation(name string, r *Reservation) error {
	value := tx.view.get(namesPrefix + name)
	if value == nil {
		return nil
	}
	return json.Unmarshal(value, r)
}

// setReservation writes a reservation without what it keeps.
func (tx *transaction) setReservation(r Reservation) error {
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return tx.view.set(Write{Key: namesPrefix + r.Name, Value: value})
}

// keep has a name keep an address, or nobody if it is "".
func (tx *transaction) keep(name string, a netip.Addr) error {
	tx.touched = append(tx.touched, a)
	w := Write{Key: reservedPrefix + a.String()}
	if name != "" {
		w.Value = []byte(name)
	}
	return tx.view.set(w)
}
