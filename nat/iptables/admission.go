package iptables

import (
	"errors"
	"fmt"
	"sync"

	"github.com/extip/extip/nat"
)

// Admission lets the networks' traffic pass an iptables FORWARD chain that
// drops by default, as Docker leaves it. It is a part of Backend, and on its
// own the companion of a backend that translates by other means. Its rules
// only accept; keeping out what must not pass is the backend's work.
//
// The rules are few per network and none per mapping. Its methods may be
// called concurrently.
type Admission struct {
	writing  sync.Mutex
	programs tools
}

// NewAdmission is New for the filter table alone.
func NewAdmission(path string) (*Admission, error) {
	t, err := find(path)
	if err != nil {
		return nil, err
	}
	return &Admission{programs: t}, nil
}

// Sync makes the kernel admit the traffic of exactly these networks; with
// none, nothing of ours stays. It returns one line per thing repaired.
// Networks that can't be written are left out and reported as errors.
func (a *Admission) Sync(networks []nat.Network) (repaired []string, err error) {
	return a.compare(networks, tool.converge)
}

// Check returns the lines that Sync would, and changes nothing.
func (a *Admission) Check(networks []nat.Network) (differences []string, err error) {
	return a.compare(networks, tool.check)
}

func (a *Admission) compare(networks []nat.Network, ask func(tool, bool, ...table) ([]string, error)) (lines []string, err error) {
	good, err := nat.State{Networks: networks}.Usable()
	errs := []error{err}
	a.writing.Lock()
	defer a.writing.Unlock()
	for _, f := range families() {
		m := newModel(f)
		m.put(good)
		more, err := ask(a.programs.of(f), m.active(), admission(m.sorted()))
		lines = append(lines, more...)
		if err != nil {
			errs = append(errs, fmt.Errorf("nat: admit: %w", err))
		}
	}
	return lines, errors.Join(errs...)
}

func (a *Admission) lock()   { a.writing.Lock() }
func (a *Admission) unlock() { a.writing.Unlock() }

func (a *Admission) tools() []*tool { return []*tool{&a.programs[0], &a.programs[1]} }

// admission is the filter table for the networks, which have a subnet of the
// family in question.
func admission(networks []nat.Network) table {
	t := table{name: tableFilter, prefix: chainForward}
	if len(networks) > 0 {
		t.chains = map[string][]string{chainForward: forwardRules(networks)}
		t.jumps = forwardJumps()
	}
	return t
}

// forwardJumps leave its place to the administrator, who expects to be asked
// first: in DOCKER-USER, and in ufw's chain with the rules of "ufw route". They
// come before rejects of the others, ufw's own for the rest included.
func forwardJumps() []jump {
	return []jump{{from: "FORWARD", to: chainForward, first: true, after: []string{"DOCKER-USER", "ufw-before-forward", "ufw6-before-forward"}}}
}

func forwardRules(networks []nat.Network) []string {
	var rules []string
	for _, n := range networks {
		by, in, out := owned(n.ID), "-i "+n.Bridge, "-o "+n.Bridge
		if !n.Internal {
			rules = append(rules,
				rule(out+" -m conntrack --ctstate RELATED,ESTABLISHED", by, "ACCEPT"),
				rule(out+" "+wasMapped, by, "ACCEPT"))
			// Not whatever comes from the bridge: that would open the
			// containers of Docker's own networks.
			for _, uplink := range n.Uplinks {
				rules = append(rules, rule(in+" -o "+uplink, by, "ACCEPT"))
			}
		}
		rules = append(rules, rule(in+" "+out, by, "ACCEPT"))
	}
	return rules
}
