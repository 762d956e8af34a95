package driver

import (
	"errors"
	"fmt"
)

// A step is one thing that a network or an endpoint needs in the kernel. Both
// directions are ensures; nil means that there is nothing to do that way.
//
// A list of steps is read forwards to set up, backwards to tear down, and
// forwards again to repair, so that each thing and its place in the order
// stands in the code once.
type step struct {
	name     string
	do, undo func() error
	// once steps are for setting up, not for repairing: they would harm
	// what goes on already.
	once bool
}

// up does the steps in order and stops at the first error. The caller then
// tears down: undoing a step that was never done is nothing.
func up(steps []step) error {
	for _, s := range steps {
		if s.do == nil {
			continue
		}
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// again repairs: it does the steps in order, except those for once. One
// that fails undoes nothing and keeps no later one from being tried.
func again(steps []step) error {
	var errs []error
	for _, s := range steps {
		if s.do == nil || s.once {
			continue
		}
		if err := s.do(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
		}
	}
	return errors.Join(errs...)
}

// down undoes the steps in reverse order. It never stops and returns all errors.
func down(steps []step) error {
	var errs []error
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i].undo == nil {
			continue
		}
		if err := steps[i].undo(); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", steps[i].name, err))
		}
	}
	return errors.Join(errs...)
}
