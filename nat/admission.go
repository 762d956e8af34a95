package nat

import (
	"errors"
	"slices"
	"sync"
)

// Admission lets networks' traffic pass foreign firewalls that drop what they
// don't know. It only accepts.
type Admission interface {
	// Sync makes the kernel admit the traffic of exactly these networks,
	// and returns one line per thing it had to repair.
	Sync([]Network) (repaired []string, err error)
	// Check returns the lines that Sync would, and changes nothing.
	Check([]Network) (differences []string, err error)
}

// Admitted is a Backend that writes NAT with one, lets traffic pass with an
// Admission, and once, after its first Sync, has what another backend left
// cleared away: by then connections are translated without it.
type Admitted struct {
	Backend
	// Admission is nil where there is no foreign firewall to pass.
	Admission Admission
	// Former clears; nil if there is nothing to clear.
	Former func() (removed []string, err error)

	mu       sync.Mutex // guards networks and Former
	networks []Network
}

// AddNetwork implements Backend. Drops come before accepts.
func (a *Admitted) AddNetwork(n Network) error {
	if err := a.Backend.AddNetwork(n); err != nil || a.admits(n) {
		return err
	}
	return a.admit(func(others []Network) []Network { return append(others, n) }, n)
}

// admits tells whether a network's traffic was let pass already.
func (a *Admitted) admits(n Network) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.networks, func(o Network) bool { return sameNetwork(o, n) })
}

// RemoveNetwork implements Backend.
func (a *Admitted) RemoveNetwork(n Network) error {
	err := a.admit(func(others []Network) []Network { return others }, n)
	return errors.Join(err, a.Backend.RemoveNetwork(n))
}

// admit lets pass what change makes of the networks without n.
func (a *Admitted) admit(change func(others []Network) []Network, n Network) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.networks
	a.networks = change(slices.DeleteFunc(slices.Clone(before), func(o Network) bool { return o.ID == n.ID }))
	_, err := a.sync()
	if err != nil {
		a.networks = before // the next attempt tries again
	}
	return err
}

// sync makes the Admission know the networks; mu is held.
func (a *Admitted) sync() ([]string, error) {
	if a.Admission == nil {
		return nil, nil
	}
	return a.Admission.Sync(a.networks)
}

// Sync implements Backend.
func (a *Admitted) Sync(s State) ([]string, error) {
	a.mu.Lock()
	a.networks = slices.Clone(s.Networks)
	a.mu.Unlock()
	repaired, err := a.Backend.Sync(s)
	repaired, err = a.also(repaired, err)
	if err != nil || a.Former == nil {
		return repaired, err
	}
	removed, err := a.Former()
	a.Former = nil
	return append(repaired, removed...), err
}

// Repair implements Backend.
func (a *Admitted) Repair() ([]string, error) { return a.also(a.Backend.Repair()) }

// Check implements Backend.
func (a *Admitted) Check() ([]string, error) {
	differences, err := a.Backend.Check()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.Admission == nil {
		return differences, err
	}
	more, aerr := a.Admission.Check(a.networks)
	return append(differences, more...), errors.Join(err, aerr)
}

// also adds the Admission's repairs to those of the backend.
func (a *Admitted) also(repaired []string, err error) ([]string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	more, aerr := a.sync()
	return append(repaired, more...), errors.Join(err, aerr)
}
