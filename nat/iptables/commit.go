package iptables

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/extip/extip/nat"
)

// A request is one caller's change, and in the end its answer.
type request struct {
	what   string // for errors: `add "192.0.2.51"`
	change nat.Change
	err    error
}

// do has requests written, together with those of other callers that come
// while an iptables-restore runs: the first to find it ended writes for all.
func (b *Backend) do(rs ...*request) error {
	b.queue.Lock()
	b.waiting = append(b.waiting, rs...)
	b.queue.Unlock()

	b.writing.Lock()
	defer b.writing.Unlock()
	b.queue.Lock()
	batch := b.waiting
	b.waiting = nil
	b.queue.Unlock()
	b.writeAll(batch)

	var errs []error
	for _, r := range rs {
		if r.err != nil {
			errs = append(errs, fmt.Errorf("nat: %s: %w", r.what, r.err))
		}
	}
	return errors.Join(errs...)
}

// writeAll writes requests in one go, or one by one if that fails, so that
// each fails for its own fault only.
func (b *Backend) writeAll(batch []*request) {
	if len(batch) > 1 && b.write(batch...) == nil {
		return
	}
	for _, r := range batch {
		r.err = b.write(r)
	}
}

// write makes the requests' changes in both families, or in none.
func (b *Backend) write(rs ...*request) error {
	var changes []nat.Change
	for _, r := range rs {
		changes = append(changes, r.change)
	}
	undo, err := b.sides[0].write(changes)
	if err != nil {
		return err
	}
	if _, err := b.sides[1].write(changes); err != nil {
		if _, uerr := b.sides[0].write(undo); uerr != nil {
			err = fmt.Errorf("%w; then going back: %w", err, uerr)
		}
		return err
	}
	for _, c := range changes {
		for _, m := range c.Drop.Mappings {
			if !b.mapped(m.External) {
				b.tally.Forget(m.External)
			}
		}
	}
	return nil
}

func (b *Backend) mapped(external netip.Addr) bool {
	for _, s := range b.sides {
		if _, ok := s.model.Mappings[external]; ok {
			return true
		}
	}
	return false
}

// A side is one family: what should be in the kernel, and the way there.
type side struct {
	tool  tool
	model *model
	// agreed says that the kernel was left holding the model; if not, it
	// has to be read before it is changed.
	agreed bool
}

// write makes changes in the model and in the kernel, and returns those that
// undo them. After an error both are as before.
func (s *side) write(changes []nat.Change) (undo []nat.Change, err error) {
	changes = slices.DeleteFunc(slices.Clone(changes), func(c nat.Change) bool { return !s.model.concerns(c) })
	if len(changes) == 0 {
		return nil, nil
	}
	shape, before := s.shape(), map[chainName][]string{}
	for _, c := range changes {
		e := s.model.effective(c)
		for _, name := range s.model.touched(e) {
			if _, ok := before[name]; !ok {
				before[name] = s.model.rules(name.chain)
			}
		}
		s.model.apply(e)
		undo = append(undo, e.Inverse())
	}
	slices.Reverse(undo)

	if s.agreed && s.shape() == shape {
		err = s.rewrite(before)
	} else {
		_, err = s.converge()
	}
	if err == nil {
		return undo, nil
	}
	for _, e := range undo {
		s.model.apply(e)
	}
	// A table before the one that failed may have been written.
	if _, cerr := s.converge(); cerr != nil {
		err = fmt.Errorf("%w; then going back: %w", err, cerr)
	}
	return nil, err
}

// shape tells which of the permanent chains and jumps there are.
func (s *side) shape() [6]bool {
	m := s.model
	return [6]bool{m.active(), len(m.Networks) > 0, m.marks(), m.filters(), m.rejects(), m.limits()}
}

// rewrite writes those chains whose rules are no longer what they were before.
func (s *side) rewrite(before map[chainName][]string) error {
	var b batch
	for _, name := range slices.SortedFunc(maps.Keys(before), chainName.compare) {
		rules, size := s.model.rules(name.chain), 0
		if len(before[name]) > 0 || s.model.permanent(name.chain) {
			size = chainEntries + len(before[name])
		}
		switch {
		case slices.Equal(before[name], rules):
		case len(rules) == 0 && !s.model.permanent(name.chain):
			b.section(name.table).delete(name.chain, size)
		default:
			b.section(name.table).set(name.chain, size, rules)
		}
	}
	return s.tool.write(&b)
}

// converge makes the kernel hold the model, whatever it holds now.
func (s *side) converge() ([]string, error) {
	repaired, err := s.tool.converge(s.model.active(), s.model.tables()...)
	s.agreed = err == nil
	return repaired, err
}

// check is converge without a change.
func (s *side) check() ([]string, error) {
	return s.tool.check(s.model.active(), s.model.tables()...)
}

// reset is converge with a new model. After an error the model is what
// should be, and the next write tries to get there.
func (s *side) reset(want nat.State) ([]string, error) {
	s.model = newModel(s.tool.family)
	s.model.put(want)
	return s.converge()
}
