// Package iptables writes NAT by way of iptables, of either flavour, for
// hosts whose kernel has no usable nf_tables. It keeps rules in chains of its
// own, reached by jumps from the built-in ones, and changes them by rewriting
// whole chains in one iptables-restore: a change is there at once or not at
// all, and costs the same however many mappings there are.
package iptables

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/extip/extip/nat"
)

// Backend is a nat.Backend. Make one with New.
//
// It keeps the rules' contents in memory and reads the kernel's only in Sync,
// for the first network and after the last. A new Backend therefore starts
// with Sync: what an earlier process left would otherwise go with the first
// change.
type Backend struct {
	queue   sync.Mutex // guards waiting
	waiting []*request

	writing sync.Mutex // guards sides and the answers of requests
	sides   [2]*side   // IPv4, IPv6

	reading sync.Mutex // one reading of counters at a time
	saves   tools
	tally   nat.Tally[counter]
}

var _ nat.Backend = (*Backend)(nil)

// New uses the iptables of that name or path, such as "iptables-legacy"; with
// "" the one on PATH. The -save, -restore and ip6tables programs are found by
// its name. It returns an error if they can't be used.
func New(path string) (*Backend, error) {
	t, err := find(path)
	if err != nil {
		return nil, err
	}
	b := &Backend{saves: t}
	for i, f := range families() {
		b.sides[i] = &side{tool: t.of(f), model: newModel(f)}
		b.sides[i].tool.wrote = b.restarted
	}
	return b, nil
}

// AddNetwork implements nat.Backend.
func (b *Backend) AddNetwork(n nat.Network) error {
	if _, err := (nat.State{Networks: []nat.Network{n}}).Usable(); err != nil {
		return err
	}
	return b.do(&request{what: fmt.Sprintf("add network %q", n.ID), change: nat.Change{Put: nat.State{Networks: []nat.Network{n}}}})
}

// RemoveNetwork implements nat.Backend. Only the network's ID counts.
func (b *Backend) RemoveNetwork(n nat.Network) error {
	return b.do(&request{what: fmt.Sprintf("remove network %q", n.ID), change: nat.Change{Drop: nat.State{Networks: []nat.Network{n}}}})
}

// Add implements nat.Backend. Two mappings of one external address in a call
// are an error.
func (b *Backend) Add(ms ...nat.Mapping) error {
	if _, err := usable(nat.State{Mappings: ms}); err != nil {
		return err
	}
	var names []string
	for _, m := range ms {
		names = append(names, m.External.String())
	}
	return b.do(&request{what: fmt.Sprintf("add %q", strings.Join(names, " ")), change: nat.Change{Put: nat.State{Mappings: ms}}})
}

// Remove implements nat.Backend. A mapping whose external address has moved
// on, to another internal address or endpoint, counts as absent.
func (b *Backend) Remove(ms ...nat.Mapping) error {
	var rs []*request
	for _, m := range ms {
		rs = append(rs, &request{what: fmt.Sprintf("remove %q", m.External), change: nat.Change{Drop: nat.State{Mappings: []nat.Mapping{m}}}})
	}
	return b.do(rs...)
}

// Sync implements nat.Backend. Networks and mappings that can't be written
// are left out and reported as errors.
func (b *Backend) Sync(s nat.State) (repaired []string, err error) {
	want, err := usable(s)
	errs := []error{err}
	b.writing.Lock()
	defer b.writing.Unlock()
	for _, side := range b.sides {
		lines, err := side.reset(want)
		repaired = append(repaired, lines...)
		if err != nil {
			errs = append(errs, fmt.Errorf("nat: sync: %w", err))
		}
	}
	return repaired, errors.Join(errs...)
}

// Repair implements nat.Backend.
func (b *Backend) Repair() (repaired []string, err error) {
	return b.bothSides("repair", (*side).converge)
}

// Check implements nat.Backend.
func (b *Backend) Check() (differences []string, err error) {
	return b.bothSides("check", (*side).check)
}

func (b *Backend) bothSides(what string, ask func(*side) ([]string, error)) (lines []string, err error) {
	b.writing.Lock()
	defer b.writing.Unlock()
	var errs []error
	for _, side := range b.sides {
		more, err := ask(side)
		if err != nil {
			errs = append(errs, fmt.Errorf("nat: %s: %w", what, err))
		}
		lines = append(lines, more...)
	}
	return lines, errors.Join(errs...)
}

func (b *Backend) lock()   { b.writing.Lock() }
func (b *Backend) unlock() { b.writing.Unlock() }

func (b *Backend) tools() []*tool { return []*tool{&b.sides[0].tool, &b.sides[1].tool} }

// Clear removes what a Backend of an earlier process left, of the iptables of
// that name or path, but for what lets traffic pass: that is Admission's, too.
// It returns a line per thing removed.
func Clear(path string) (removed []string, err error) {
	t, err := find(path)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, f := range families() {
		lines, err := t.of(f).converge(false, table{name: tableNat, prefix: ourPrefix}, table{name: tableMangle, prefix: ourPrefix})
		removed = append(removed, lines...)
		if err != nil {
			errs = append(errs, fmt.Errorf("nat: clear: %w", err))
		}
	}
	return removed, errors.Join(errs...)
}
