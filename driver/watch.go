package driver

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/extip/extip/link"
	"github.com/extip/extip/store"
)

const (
	// settle is how long a hint waits for others, so that a storm of them is
	// answered once.
	settle = 50 * time.Millisecond
	// Between two runs there is a rest of twice what a run took, within
	// these bounds: what is broken again and again costs a bounded share of
	// a processor, and yet is repaired within a second.
	minRest, maxRest = 200 * time.Millisecond, 500 * time.Millisecond
	// retryAfter is when a run that failed is followed by another; the wait
	// doubles each time, up to the interval.
	retryAfter = time.Second
)

// Hint asks for a Reconcile soon. It may be called concurrently, as often as
// there is a reason.
func (d *Driver) Hint(cause string) { hint(d.hints, cause) }

// HintRules asks for a ReconcileRules soon; else it is like Hint.
func (d *Driver) HintRules(cause string) { hint(d.ruleHints, cause) }

func hint(to chan string, cause string) {
	select {
	case to <- cause:
	default: // one is waiting already
	}
}

// Run reconciles at hints, and every interval without one, until ctx ends.
func (d *Driver) Run(ctx context.Context, interval time.Duration) error {
	retry := retryAfter
	next := interval
	var ended time.Time // the last run
	for {
		cause, reconcile := "timer", d.Reconcile
		settling, fresh := settle, false
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(next):
			settling = 0
		case cause = <-d.hints:
		case cause = <-d.ruleHints:
			reconcile = d.ReconcileRules
			if time.Since(ended) > maxRest {
				// The first for long is answered at once, and what follows
				// it soon: while rules are away, the host may answer on
				// external addresses.
				settling, fresh = 0, true
			}
		}
		if !wait(ctx, settling) {
			return nil
		}
		// What came meanwhile is answered, too.
		select {
		case cause = <-d.hints:
			reconcile = d.Reconcile
		default:
		}
		select {
		case <-d.ruleHints:
		default:
		}
		began := time.Now()
		next = interval
		if _, err := reconcile(cause); err != nil {
			d.log.WithField("cause", cause).WithError(err).Error("not reconciled")
			next = min(retry, interval)
			retry *= 2
		} else {
			retry = retryAfter
		}
		ended = time.Now()
		rest := min(max(2*ended.Sub(began), minRest), maxRest)
		if fresh {
			rest = settle
		}
		if !wait(ctx, rest) {
			return nil
		}
	}
}

// wait returns false if ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// NetworkChanged takes a change of the host's network, and asks for a
// Reconcile if it is damage. Most changes are the driver's own work, or none of
// its business.
func (d *Driver) NetworkChanged(c link.Change) {
	if !d.isDamage(c) {
		return
	}
	d.Hint(strings.TrimSpace(string(c.Kind) + " " + c.Link))
	if c.Kind == link.LinkUp {
		d.announceAgain(c.Link)
		d.askWithheld()
	}
}

func (d *Driver) isDamage(c link.Change) bool {
	switch c.Kind {
	case link.Missed, link.RuleGone:
		return true
	case link.AddressCame:
		return d.isBarred(c.Prefix.Addr())
	case link.AddressGone:
		return d.publisher(c.Prefix.Addr()).isIdle() || d.anyNetwork(func(n *network) bool {
			return n.rec.Bridge == c.Link && slices.Contains(n.rec.Gateways, c.Prefix)
		})
	case link.DefaultRoute:
		return true
	case link.RouteGone:
		return d.anyNetwork(func(n *network) bool {
			return slices.Contains(subnets(n.rec), c.Prefix)
		})
	case link.LinkGone, link.LinkDown, link.PortGone:
		d.mu.Lock()
		e := d.links[c.Link]
		d.mu.Unlock()
		return e.isIdle() || d.anyNetwork(func(n *network) bool { return n.rec.Bridge == c.Link })
	case link.LinkUp:
		return d.anyNetwork(func(n *network) bool { return n.rec.Parent == c.Link })
	default:
		return false
	}
}

// isIdle tells whether an endpoint is there and no call is changing it; if one
// is, the change is most likely its own. Of those that are not, the slow
// Reconcile takes care.
func (e *endpoint) isIdle() bool {
	if e == nil || !e.mu.TryLock() {
		return false
	}
	defer e.mu.Unlock()
	return e.known
}

// anyNetwork asks about the networks that no call is changing.
func (d *Driver) anyNetwork(ask func(*network) bool) bool {
	for _, n := range d.networkList() {
		if !n.mu.TryRLock() {
			continue
		}
		yes := n.known && ask(n)
		n.mu.RUnlock()
		if yes {
			return true
		}
	}
	return false
}

// announceAgain tells the neighbours on a parent that came up, or up again,
// where its addresses are: they may have learned otherwise meanwhile. Who can't
// prove that they are its own asks first.
func (d *Driver) announceAgain(parent string) {
	unproven := false
	d.eachEndpoint(func(n *network, e *endpoint) {
		if n.rec.Parent != parent || e.rec.State != store.Published {
			return
		}
		for _, a := range e.rec.External {
			if !d.mayKeep(a) {
				unproven = true
				continue
			}
			_ = d.announce(n.rec, e, a) // it tells of errors itself
		}
	})
	if unproven {
		hint(d.confirms, parent)
	}
}
