package driver

import (
	"net/netip"
	"sync"
	"time"
)

// Kinds of events.
const (
	EventClaimed        = "claimed"         // an address has an owner
	EventPublished      = "published"       // it leads to its container
	EventWithheld       = "withheld"        // it can't be on its interface now
	EventWithdrawn      = "withdrawn"       // it leads nowhere
	EventReleased       = "released"        // it is free
	EventMoved          = "moved"           // it leads to another container, or is on another interface
	EventDrained        = "drained"         // what was connected before a move has ended
	EventReserved       = "reserved"        // a reservation keeps it
	EventUnreserved     = "unreserved"      // none does any more
	EventConflict       = "conflict"        // another host uses it, too
	EventTaken          = "taken"           // another host has it, or may have it
	EventApart          = "apart"           // this host can't prove its claims: the ledger of its cluster can't be reached
	EventJoined         = "joined"          // it can again
	EventRepaired       = "repaired"        // one thing in the kernel was not as it should be
	EventReconciled     = "reconciled"      // a reconciliation found something, or failed
	EventNetworkCreated = "network-created" // a network is there
	EventNetworkRemoved = "network-removed" // a network is gone
	EventLost           = "lost"            // the subscriber was too slow for some events; Text says for how many
)

// An Event is something that happened to an address or a network. What doesn't
// concern it is empty.
type Event struct {
	Time      time.Time  `json:"time"`
	Kind      string     `json:"kind"`
	Address   netip.Addr `json:"address,omitzero"`
	Endpoint  string     `json:"endpoint,omitempty"`
	Container string     `json:"container,omitempty"`
	Network   string     `json:"network,omitempty"`
	Text      string     `json:"text,omitempty"`
}

// maxBacklog is how many events a subscriber may be behind.
const maxBacklog = 1024

// events tells subscribers what happens. Its zero value is usable.
type events struct {
	mu          sync.Mutex
	subscribers map[*subscriber]bool
}

// A subscriber has events that it was not given yet; guarded by events.mu.
type subscriber struct {
	backlog []Event
	lost    int // since the last one in backlog
	// more says that there is something in backlog.
	more chan struct{}
}

// Events returns a channel of all that happens from now on, until cancel; it is
// closed then. A subscriber that is more than 1,024 events behind loses those
// that follow, and gets one of kind EventLost in their place. Nobody else waits
// for it.
func (d *Driver) Events() (<-chan Event, func()) { return d.events.subscribe() }

func (ev *events) subscribe() (<-chan Event, func()) {
	s := &subscriber{more: make(chan struct{}, 1)}
	ev.mu.Lock()
	if ev.subscribers == nil {
		ev.subscribers = map[*subscriber]bool{}
	}
	ev.subscribers[s] = true
	ev.mu.Unlock()
	out, done := make(chan Event), make(chan struct{})
	go func() {
		defer close(out)
		for {
			select {
			case <-done:
				return
			case <-s.more:
			}
			for _, e := range ev.take(s) {
				select {
				case <-done:
					return
				case out <- e:
				}
			}
		}
	}()
	return out, sync.OnceFunc(func() {
		ev.mu.Lock()
		delete(ev.subscribers, s)
		ev.mu.Unlock()
		close(done)
	})
}

// take empties a backlog.
func (ev *events) take(s *subscriber) []Event {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	list := s.backlog
	if s.lost > 0 {
		list = append(list, Event{Time: time.Now(), Kind: EventLost, Text: plural(s.lost, "event was", "events were") + " lost"})
	}
	s.backlog, s.lost = nil, 0
	return list
}

// emit tells all subscribers, and waits for none. It may be called with any lock
// held.
func (ev *events) emit(e Event) {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	e.Time = time.Now()
	for s := range ev.subscribers {
		if len(s.backlog) >= maxBacklog {
			s.lost++
			continue
		}
		s.backlog = append(s.backlog, e)
		select {
		case s.more <- struct{}{}:
		default:
		}
	}
}

// tell is an event of each of an endpoint's addresses; e.mu is held.
func (d *Driver) tell(kind string, e *endpoint, text string, addrs ...netip.Addr) {
	for _, a := range addrs {
		d.events.emit(Event{Kind: kind, Address: a, Endpoint: e.id, Container: e.rec.Name, Network: e.network, Text: text})
	}
}
