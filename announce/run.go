package announce

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// A thousand addresses a second are repeated or refreshed at most, ten each
// ten milliseconds: switches limit broadcasts, and neighbours have to look at each.
const (
	pace  = 10 * time.Millisecond
	batch = 10
)

// SetRefresh has each announced address announced again every d, spread over
// d, for switches that forget sooner than gateways do. 0 is never, and the
// default. Call it before Run.
func (a *Announcer) SetRefresh(d time.Duration) { a.refresh = d }

// SetPermit has fn asked before an address is defended or refreshed: whoever
// can't prove that it is ours had better not say so. Without it all are. fn may
// be called concurrently, must not wait, and must not call the Announcer. Call
// SetPermit before Run.
func (a *Announcer) SetPermit(fn func(netip.Addr) bool) { a.permit = fn }

// SetPeer has fn tell who agrees with this host by other means which of them may
// have an address: that such a host asks for one, too, means nothing. Without it
// all others count. fn is as SetPermit's.
func (a *Announcer) SetPeer(fn func(net.HardwareAddr) bool) { a.peer = fn }

func (a *Announcer) isPeer(m mac) bool { return a.peer != nil && a.peer(m[:]) }

func (a *Announcer) permits(addr netip.Addr) bool { return a.permit == nil || a.permit(addr) }

// Run repeats announcements, defends addresses, and calls conflict for each
// Conflict, until ctx ends or a socket fails. What is due or seen before Run
// waits for it, up to 64 conflicts. conflict may call the Announcer; while it
// runs, Run does nothing else. A repetition that fails is left out: the
// parent may have gone.
func (a *Announcer) Run(ctx context.Context, conflict func(Conflict)) error {
	repeat := time.NewTimer(0)
	defer repeat.Stop()
	refresh := time.NewTimer(0)
	defer refresh.Stop()
	var round round
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-a.failures:
			return fmt.Errorf("announce: receive: %w", err)
		case c := <-a.conflicts:
			if a.defend(&c) {
				conflict(c)
			}
		case <-a.wake:
			repeat.Reset(0)
		case <-repeat.C:
			if wait, more := a.repeatSome(); more {
				repeat.Reset(wait)
			}
		case <-refresh.C:
			if a.refresh > 0 {
				refresh.Reset(a.refreshSome(&round))
			}
		}
	}
}

// A place is where an address is announced.
type place struct {
	parent *parent
	addr   netip.Addr
}

// A repeat is due at a time. If the entry says another time, the address was
// announced again, or no longer is.
type repeat struct {
	place
	at time.Duration
}

// queue adds a repeat, which is due a spacing from now like every other. mu
// must be held.
func (a *Announcer) queue(r repeat) {
	a.repeats = append(a.repeats, r)
	if len(a.repeats) > 1 {
		return // Run has its time set
	}
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// repeatSome announces again what is due, and says how long to wait for more.
func (a *Announcer) repeatSome() (wait time.Duration, more bool) {
	for range batch {
		a.mu.Lock()
		if len(a.repeats) == 0 {
			a.repeats = nil // and its memory
			a.mu.Unlock()
			return 0, false
		}
		r := a.repeats[0]
		if wait = r.at - a.now(); wait > 0 {
			a.mu.Unlock()
			return max(wait, pace), true
		}
		a.repeats = a.repeats[1:]
		group := a.repeatOne(r)
		a.mu.Unlock()
		a.leave(group, r.addr)
	}
	return pace, true
}

// repeatOne returns the entry with a group to leave, if there is one: the
// kernel belongs to the groups of its own addresses, as an announced one is.
func (a *Announcer) repeatOne(r repeat) (old entry) {
	e := r.parent.addrs[r.addr]
	if e.left == 0 || e.due != r.at {
		return entry{}
	}
	old = e
	e.joined = 0
	e.left--
	e.due = a.now() + a.spacing
	r.parent.addrs[r.addr] = e
	if e.left > 0 {
		a.queue(repeat{r.place, e.due})
	}
	_ = a.again(r.place, a.tell)
	return old
}

// again announces an address on its parent as that is now. mu must be held.
func (a *Announcer) again(at place, how func(link, netip.Addr) error) error {
	l, ok, err := a.find(at.parent.name)
	if err != nil || !ok {
		return err
	}
	if err := a.move(at.parent, l); err != nil {
		return err
	}
	return how(l, at.addr)
}

// A round is what is still to be refreshed in this interval.
type round struct {
	places []place
	tick   time.Duration
	count  int // in each tick
}

// refreshSome announces the next addresses of a round, and says when to go on.
func (a *Announcer) refreshSome(r *round) time.Duration {
	if len(r.places) == 0 {
		r.places = a.announced()
		all := time.Duration(len(r.places))
		if all == 0 {
			return a.refresh
		}
		r.tick = max(a.refresh/all, pace)
		r.count = min(int((all*r.tick+a.refresh-1)/a.refresh), batch)
	}
	for _, at := range r.places[:min(r.count, len(r.places))] {
		a.mu.Lock()
		if at.parent.addrs[at.addr].announced && a.permits(at.addr) {
			_ = a.again(at, a.tell)
		}
		a.mu.Unlock()
	}
	r.places = r.places[min(r.count, len(r.places)):]
	return r.tick
}

// announced is where all addresses are announced.
func (a *Announcer) announced() []place {
	a.mu.Lock()
	defer a.mu.Unlock()
	var places []place
	for _, p := range a.parents {
		for addr, e := range p.addrs {
			if e.announced {
				places = append(places, place{p, addr})
			}
		}
	}
	return places
}
