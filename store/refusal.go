package store

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/extip/extip/pool"
)

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

// takenBy is the error about a claim of the ledger.
func (tx *transaction) takenBy(a netip.Addr, c Claim) error {
	if c.Host != tx.plan.host {
		return &TakenError{Address: a, Owner: c.owner(), Host: c.Host}
	}
	taken := &TakenError{Address: a, Owner: c.owner()}
	return errors.Join(tx.get(endpointsBucket, c.Endpoint, &taken.Owner), taken)
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

// explain finds out who holds the pool's addresses; it reads all claims.
func (e *ExhaustedError) explain(tx *transaction) error {
	claimed := map[netip.Addr]bool{}
	has := func(a netip.Addr, owner string) {
		if e.Pool.Contains(a) && !claimed[a] {
			claimed[a] = true
			e.InUse++
			e.Owners = append(e.Owners, owner)
		}
	}
	keeps := func(a netip.Addr, name string) {
		if e.Pool.Contains(a) && !claimed[a] {
			e.Reserved = append(e.Reserved, name)
		}
	}
	err := forEach(tx.Tx, claimsBucket, func(k, id []byte) error {
		a, err := netip.ParseAddr(string(k))
		owner := Endpoint{ID: string(id)}
		if err == nil && e.Pool.Contains(a) {
			err = tx.get(endpointsBucket, owner.ID, &owner)
		}
		has(a, nameOf(owner))
		return err
	})
	if err != nil {
		return err
	}
	if tx.plan != nil {
		return tx.plan.explain(e.Pool, has, keeps)
	}
	return forEach(tx.Tx, reservedBucket, func(k, name []byte) error {
		a, err := netip.ParseAddr(string(k))
		keeps(a, string(name))
		return err
	})
}

// nameOf is how an owner is listed.
func nameOf(e Endpoint) string { return cmp.Or(e.Name, short(e.ID)) }

// explain tells who has and keeps addresses of a pool as the ledger says. The
// refusal is then based on that, as far as one transaction can depend on it.
func (p *plan) explain(of pool.Pool, has, keeps func(netip.Addr, string)) error {
	for key := range p.under {
		a, ok := addressOf(key)
		p.waits = p.waits || ok && of.Contains(a)
	}
	var some []string
	note := func(key string) (a netip.Addr, ok bool) {
		a, ok = addressOf(key)
		if ok = ok && of.Contains(a); ok && len(some) < most {
			some = append(some, key)
		}
		return a, ok
	}
	err := p.ledger.Scan(claimsPrefix, func(key string, value []byte) error {
		a, ok := note(key)
		if w, staged := p.writes[key]; staged {
			value = w.Value
		}
		if !ok || value == nil {
			return nil
		}
		c, _, err := parseClaim(value)
		owner := nameOf(c.owner())
		if c.Host != p.host {
			owner += " on host " + c.Host
		}
		has(a, owner)
		return err
	})
	if err != nil {
		return err
	}
	err = p.ledger.Scan(reservedPrefix, func(key string, name []byte) error {
		if a, ok := note(key); ok {
			keeps(a, string(name))
		}
		return nil
	})
	for _, key := range some {
		p.get(key)
	}
	return err
}
