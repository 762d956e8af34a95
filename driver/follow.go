package driver

import (
	"fmt"

	"github.com/extip/extip/store"
)

// follow moves a network whose parent nobody named to the interface of the
// default route, if that is another one now. Its addresses are probed there
// before they are put up. n.mu is held for writing.
func (r *repair) follow(n *network) {
	if !n.rec.Follows || n.rec.Internal {
		return
	}
	to, err := r.kernel.DefaultParent()
	if err != nil || to == n.rec.Parent {
		return // without a default route, all stays where it is
	}
	r.note("network %s: the default route went from %s to %s", short(n.rec.ID), n.rec.Parent, to)
	r.do(func() error {
		if err := r.moveTo(n, to); err != nil {
			return fmt.Errorf("network %s: follow the default route to %s: %w", short(n.rec.ID), to, err)
		}
		return nil
	})
}

func (r *repair) moveTo(n *network, to string) error {
	from := n.rec
	rec := n.rec
	rec.Parent = to
	if err := r.store.PutNetwork(rec); err != nil {
		return err
	}
	n.rec = rec
	r.mu.Lock()
	r.parents[rec.ID], n.ahead = uplinkOf(rec), nil
	r.mu.Unlock()
	for _, e := range r.endpointsOf(rec.ID) {
		e.mu.Lock()
		if e.known && e.rec.State == store.Published {
			r.markPublished(e, e.rec.External, aliasLink(rec))
			for _, a := range e.rec.External {
				if aliasLink(rec) != "" {
					r.withhold(e, a, "moves to "+to)
				}
				r.failed(r.removeAlias(from, a))
				r.tell(EventMoved, e, fmt.Sprintf("from %s to %s", from.Parent, to), a)
			}
		}
		e.mu.Unlock()
	}
	r.askWithheld()
	r.tend(rec.ID)
	return nil
}
