package driver

import (
	"context"
	"errors"

	"github.com/extip/extip/store"
)

// Taking a veth pair away costs the kernel some twenty milliseconds, of which
// most is waiting (measured; synchronize_net in net/core/dev.c). Nobody needs to
// wait with it: once an endpoint's addresses lead nowhere, its link only waits
// to be removed.

// retire takes an endpoint's addresses away, releases them, and leaves its link
// to Retire; e.mu is held. What would not go stays on record with its claims.
func (d *Driver) retire(n *network, e *endpoint) error {
	if !d.retiring.Load() {
		return d.removeEndpoint(n, e)
	}
	if e.rec.State == store.Retired {
		return nil
	}
	if err := d.unpublish(n, e); err != nil {
		return errors.Join(err, d.setState(e, store.Leaving))
	}
	if err := d.store.RetireEndpoint(e.rec); err != nil {
		return err
	}
	d.tell(EventReleased, e, "", e.rec.External...)
	e.rec.External, e.rec.State = nil, store.Retired
	d.mu.Lock()
	d.retired[e] = true
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return nil
}

// Retire removes the links of endpoints that are gone otherwise, until ctx
// ends. What it doesn't come to is on record for the next start.
func (d *Driver) Retire(ctx context.Context) error {
	d.retiring.Store(true)
	defer d.retiring.Store(false)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
			if err := d.removeRetired(); err != nil {
				d.log.WithError(err).Error("not removed; the next reconciliation tries again")
			}
		}
	}
}

// removeRetired removes what is left of all retired endpoints, and forgets them
// in one write of the store.
func (d *Driver) removeRetired() error {
	d.mu.Lock()
	var batch []*endpoint
	for e := range d.retired {
		batch = append(batch, e)
	}
	d.mu.Unlock()
	var errs []error
	var ids []string
	var removed []*endpoint
	for _, e := range batch {
		err := d.withEndpoint(e.network, e.id, func(n *network, e *endpoint) error { return down(d.plumbing(n.rec, e.rec)) })
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ids, removed = append(ids, e.id), append(removed, e)
	}
	if len(ids) == 0 {
		return errors.Join(errs...)
	}
	if err := d.store.DeleteEndpoints(ids...); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, e := range removed {
		e.mu.Lock()
		d.forgetEndpoint(e)
		e.mu.Unlock()
	}
	return errors.Join(errs...)
}
