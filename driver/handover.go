package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/extip/extip/announce"
	"github.com/extip/extip/store"
)

const (
	// answerWait is how long is waited for another host to answer for an address
	// that was handed over to it, answerPoll between two questions.
	answerWait = 2 * time.Second
	answerPoll = 5 * time.Millisecond
)

// moveToHost hands an external address over to a container of another host. It is
// nobody's from when it is taken away here until the other host has heard of it,
// which the report says. After an error nothing is changed, but for one case, in
// which the error says so: if the ledger stops answering while it is asked,
// the address is withheld until it is known whose it is.
func (d *Driver) moveToHost(ctx context.Context, a netip.Addr, host, container string, drain, dryRun bool) (Report, error) {
	target := host + "/" + container
	switch {
	case d.cluster != nil && host == d.cluster.Host():
		return Report{}, fmt.Errorf("%s: that is this host: name the container alone", target)
	case d.cluster == nil:
		return Report{}, fmt.Errorf("%s: this host shares its addresses with no other: extip serve --cluster would", target)
	case drain:
		return Report{}, fmt.Errorf("%s: connections can't drain from one host while their address is on another: move it without that", target)
	}
	from, err := d.ownerOf(a)
	if err != nil {
		return Report{}, err
	}
	to, err := d.cluster.Offer(ctx, store.Offer{Address: a, From: d.cluster.Host(), To: host, Container: container})
	if err != nil {
		return Report{}, fmt.Errorf("%s: %w", target, err)
	}
	defer d.cluster.Withdraw(a)
	r := newReport()
	claim := store.Claim{Host: host, Endpoint: to.Endpoint, Network: to.Network, Container: to.Container, Reservation: to.Reservation}
	var on store.Network
	var began time.Time
	err = d.withRunning(from, func(n *network, e *endpoint) error {
		if !slices.Contains(e.rec.External, a) {
			return fmt.Errorf("%s is no longer had by %s", a, title(e.rec))
		}
		if l, lost := e.lost[a]; lost {
			return fmt.Errorf("%s %s", a, l.text)
		}
		r.changed(picture(n.rec, e.rec, e.withheld), picture(n.rec, withoutAddress(e.rec, a), e.withheld))
		r.Done = append(r.Done, fmt.Sprintf("+ claim %s: %s of host %s", a, title(store.Endpoint{ID: to.Endpoint, Name: to.Container}), host))
		r.untilStop(e.rec)
		if to.Reservation == "" {
			r.untilStop(store.Endpoint{ID: to.Endpoint, Name: to.Container})
		}
		if dryRun {
			return nil
		}
		on, began = n.rec, time.Now()
		return d.handOverTo(n, e, a, claim)
	})
	if err != nil {
		return Report{}, err
	}
	if dryRun {
		return r, nil
	}
	d.awaitAnswer(ctx, on, a, host, began, &r)
	return r, nil
}

// handOverTo takes an address away and has the ledger give it to another host;
// e.mu is held.
func (d *Driver) handOverTo(n *network, e *endpoint, a netip.Addr, to store.Claim) error {
	before, after := e.rec, withoutAddress(e.rec, a)
	err := d.takeAway(n, e, after, a, func() error { return d.store.HandOver(after, a, to) })
	if err == nil {
		d.handedOverTo(e, after, a, to)
		return nil
	}
	if err = refusal(err); errors.Is(err, store.ErrApart) || d.holder(a) != "" {
		// It may have been given or not, or that is not on record: only its
		// mapping is put back.
		e.giving = with(e.giving, a, to)
		d.markLost(e, a, loss{"was being handed over to host " + to.Host + ", and etcd has not said yet whose it is", to.Host})
		err = fmt.Errorf("%s is withheld until it is known whether host %s has it: %w", a, to.Host, err)
	}
	return errors.Join(err, again(append(d.publicationSteps(n.rec, e), d.noteSteps(n.rec, before, before)...)))
}

// handedOver drops an address of which the ledger says, later, that another host
// has got it; e.mu is held.
func (d *Driver) handedOver(n *network, e *endpoint, a netip.Addr, to store.Claim) error {
	after := withoutAddress(e.rec, a)
	err := d.takeAway(n, e, after, a, func() error { return d.store.ChangeClaims(after) })
	if err == nil {
		d.handedOverTo(e, after, a, to)
	}
	return err
}

// handedOverTo follows the record of a hand-over; e.mu is held.
func (d *Driver) handedOverTo(e *endpoint, after store.Endpoint, a netip.Addr, to store.Claim) {
	d.tell(EventMoved, e, fmt.Sprintf("to %s of host %s", title(store.Endpoint{ID: to.Endpoint, Name: to.Container}), to.Host), a)
	d.setRecord(e, after)
	d.forgetAddresses(e, []netip.Addr{a})
	d.log.WithField("endpoint", short(e.id)).WithField("external", a).Infof("handed over to host %s", to.Host)
}

// awaitAnswer finds out how long an address was nobody's.
func (d *Driver) awaitAnswer(ctx context.Context, n store.Network, a netip.Addr, host string, began time.Time, r *Report) {
	if _, ok := timing(n); !ok {
		r.left("%s was handed over within %s; nobody can be asked who answers for it", a, since(began))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	for {
		owners, err := d.kernel.Probe(ctx, n.Parent, []netip.Addr{a}, announce.Fast)
		if mac, ok := owners[a]; ok {
			d.segments.learn(n.Parent, a, mac.String())
			r.left("%s was nobody's for %s, until %s answered for it", a, since(began), d.neighbour(mac))
			return
		}
		if err != nil || !wait(ctx, answerPoll) {
			r.left("host %s has been given %s, and was not heard to answer for it within %s", host, a, since(began))
			return
		}
	}
}

// since is a time for a person, to the millisecond.
func since(began time.Time) time.Duration { return time.Since(began).Round(time.Millisecond) }
