package driver

import (
	"errors"
	"time"
)

// Check returns a line for each thing in which the kernel differs from the
// records, as Reconcile would, and changes nothing. Settings of the host, such as
// sysctls, it doesn't look at.
func (d *Driver) Check() ([]string, error) {
	d.reconciling.Lock()
	defer d.reconciling.Unlock()
	r := &repair{Driver: d, began: time.Now(), dry: true}
	r.run()
	return r.lines, errors.Join(r.errs...)
}
