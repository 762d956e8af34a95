package driver

import "errors"

// Check returns a line for each thing in which the kernel differs from the
// records, as Reconcile would, and changes nothing.
func (d *Driver) Check() ([]string, error) { return nil, errors.ErrUnsupported }
