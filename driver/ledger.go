package driver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/extip/extip/store"
)

const (
	// reclaimInterval is between two comparisons of the ledger with the records
	// without a reason.
	reclaimInterval = 30 * time.Second
	// apartInterval is how often is looked whether this host is apart. A lease
	// holds for three seconds at least.
	apartInterval = 500 * time.Millisecond
)

// news is what the cluster's member has told and is not dealt with yet.
type news struct {
	mu      sync.Mutex
	joined  bool
	changed map[netip.Addr]bool
	// more says that there is something.
	more chan struct{}
}

func newNews() *news { return &news{changed: map[netip.Addr]bool{}, more: make(chan struct{}, 1)} }

func (n *news) add(joined bool, changed []netip.Addr) {
	n.mu.Lock()
	n.joined = n.joined || joined
	for _, a := range changed {
		n.changed[a] = true
	}
	n.mu.Unlock()
	select {
	case n.more <- struct{}{}:
	default:
	}
}

func (n *news) take() (joined bool, changed []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	joined = n.joined
	for a := range n.changed {
		changed = append(changed, a)
	}
	n.joined = false
	clear(n.changed)
	return joined, changed
}

// LedgerJoined is told by the cluster's member that the ledger can be reached, again or
// for the first time, with a lease that holds. It doesn't wait, and may be called
// under any lock of the caller's.
func (d *Driver) LedgerJoined() { d.news.add(true, nil) }

// ClaimsChanged is told that who claims these addresses may be another now, or
// nobody; else it is like LedgerJoined.
func (d *Driver) ClaimsChanged(addrs []netip.Addr) { d.news.add(false, addrs) }

// FollowLedger has published addresses follow what the ledger says of them, and
// while this host is apart, what the neighbours do, until ctx ends. Without a
// cluster it returns at once.
func (d *Driver) FollowLedger(ctx context.Context) error {
	if d.cluster == nil {
		return nil
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { d.followWire(ctx) })
	look, reclaim := time.NewTicker(apartInterval), time.NewTicker(reclaimInterval)
	defer look.Stop()
	defer reclaim.Stop()
	apart := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.news.more:
			d.catchUp()
		case <-reclaim.C:
			if !d.isApart() {
				d.reclaim()
			}
		case <-look.C:
			if d.isApart() != apart {
				apart = !apart
				d.apartChanged(apart)
			}
		}
	}
}

// catchUp deals with what the member has told.
func (d *Driver) catchUp() {
	joined, changed := d.news.take()
	for _, a := range changed {
		d.claimChanged(a)
	}
	if joined {
		d.reclaim()
	}
}

// apartChanged tells that this host can't prove its claims any more, or can again.
func (d *Driver) apartChanged(apart bool) {
	if apart {
		d.log.Error("apart: etcd can't be reached, so nothing new is claimed; what is published stays, unless another host uses it")
		d.events.emit(Event{Kind: EventApart, Text: "etcd can't be reached"})
		return
	}
	d.log.Info("no longer apart: etcd is reached, and this host's claims hold")
	d.events.emit(Event{Kind: EventJoined, Text: "etcd is reached"})
}

// reclaim makes the ledger agree with the records, and has addresses follow what it
// says then.
func (d *Driver) reclaim() {
	d.reclaimBut(d.lostAddresses())
	given, err := d.store.Given()
	if err != nil {
		d.log.WithError(err).Error("it is not known what other hosts have handed over; that is tried again")
	}
	for a, c := range given {
		d.takeOver(a, c)
	}
	d.askWithheld()
}

// lostAddresses are those that endpoints have lost.
func (d *Driver) lostAddresses() (list []netip.Addr) {
	d.eachEndpoint(func(_ *network, e *endpoint) {
		for a := range e.lost {
			list = append(list, a)
		}
	})
	return list
}

// reclaimBut makes the ledger agree with the records, and gives up what another host
// has meanwhile. Addresses to leave are not claimed, though they may be free.
func (d *Driver) reclaimBut(leave []netip.Addr) {
	lost, err := d.store.Reclaim(leave...)
	if err != nil && !errors.Is(err, store.ErrApart) { // LedgerJoined follows that
		d.log.WithError(err).Error("claims are not compared with the ledger's; that is tried again")
	}
	for a, by := range lost {
		d.lose(a, by)
	}
}

// claimChanged looks who has an address now.
func (d *Driver) claimChanged(a netip.Addr) {
	c, ok := d.store.Holder(a)
	if !ok {
		d.segments.forget(a, func(mac string) bool {
			m, err := net.ParseMAC(mac)
			return err == nil && d.memberOf(m) != ""
		})
	}
	switch e := d.publisher(a); {
	case ok && c.Host != d.cluster.Host():
		d.lose(a, c.Host)
	case ok && c.From != "":
		d.takeOver(a, c)
	case e == nil:
	case !ok:
		// Its claim has gone with a lease, or who had it has given it up. It is
		// an endpoint's own releasing most of the time, which has the lock.
		if e.isIdle() {
			d.news.add(true, nil)
		}
	default:
		d.askWithheld()
	}
}
