package nat

import (
	"maps"
	"net/netip"
	"sync"
)

// Traffic is a number of packets, and of their bytes with all headers but
// Ethernet's.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Counters is what was counted of an external address.
type Counters struct {
	// Refused is what its Filter kept out.
	Refused Traffic `json:"refused"`
	// LimitedIn is how many packets its Limit has kept from opening a
	// connection to it, and LimitedOut how many of its container's own.
	LimitedIn  uint64 `json:"limited_in"`
	LimitedOut uint64 `json:"limited_out"`
	// Incoming is how many connections were begun to it, and Outgoing from
	// it, those that were not answered included, and not those that were
	// refused or limited. Without ports, as of ICMP, the packets of an
	// exchange are one connection.
	Incoming uint64 `json:"incoming"`
	Outgoing uint64 `json:"outgoing"`
	// Received and Sent is what came for the address from elsewhere and was
	// neither refused nor limited, and what left with it. What the host's own
	// processes exchange with it is not among that. Both are nil unless the
	// backend was asked to account for packets.
	Received *Traffic `json:"received,omitempty"`
	Sent     *Traffic `json:"sent,omitempty"`
}

// A Count is one of the Counters.
type Count int

// The Counts.
const (
	Refused Count = iota
	Incoming
	Outgoing
	Received
	Sent
	LimitedIn
	LimitedOut
)

func (c *Counters) add(what Count, n Traffic) {
	sum := func(to *Traffic) *Traffic {
		if to == nil {
			to = &Traffic{}
		}
		return &Traffic{to.Packets + n.Packets, to.Bytes + n.Bytes}
	}
	switch what {
	case Refused:
		c.Refused = *sum(&c.Refused)
	case LimitedIn:
		c.LimitedIn += n.Packets
	case LimitedOut:
		c.LimitedOut += n.Packets
	case Incoming:
		c.Incoming += n.Packets
	case Outgoing:
		c.Outgoing += n.Packets
	case Received:
		c.Received = sum(c.Received)
	case Sent:
		c.Sent = sum(c.Sent)
	}
}

// A Tally adds up what a backend counts, whose counters begin anew when rules
// are written again: of each external address that stays mapped the sums never
// go down. K tells the backend's counters apart. The zero Tally is empty. Its
// methods may be called concurrently, but one reading, from Begin to End, comes
// after another.
type Tally[K comparable] struct {
	mu   sync.Mutex
	seen map[K]Reading[K] // the last one of each counter
	anew map[K]bool       // counters that began anew since Begin
	sums map[netip.Addr]Counters
}

// A Reading is what a counter showed, and whose it is.
type Reading[K comparable] struct {
	Counter  K
	External netip.Addr
	What     Count
	Shows    Traffic
}

// Begin comes before the backend's counters are read.
func (t *Tally[K]) Begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.anew = map[K]bool{}
}

// Restart says that counters were put back to zero.
func (t *Tally[K]) Restart(counters ...K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range counters {
		delete(t.seen, k)
		if t.anew != nil {
			t.anew[k] = true
		}
	}
}

// Forget ends the sums of addresses: they begin at zero if they come again.
func (t *Tally[K]) Forget(externals ...netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range externals {
		delete(t.sums, a)
	}
}

// End adds what was read since Begin, and returns the sums of exactly the
// addresses that are mapped. A counter that began anew meanwhile waits for the
// next reading: nobody knows what it was that was read.
func (t *Tally[K]) End(readings []Reading[K], mapped map[netip.Addr]bool) map[netip.Addr]Counters {
	t.mu.Lock()
	defer t.mu.Unlock()
	sums := make(map[netip.Addr]Counters, len(mapped))
	for a := range mapped {
		sums[a] = t.sums[a]
	}
	if t.seen == nil {
		t.seen = map[K]Reading[K]{}
	}
	maps.DeleteFunc(t.seen, func(_ K, r Reading[K]) bool { return !mapped[r.External] })
	for _, r := range readings {
		sum, ok := sums[r.External]
		if !ok || t.anew[r.Counter] {
			continue
		}
		before := t.seen[r.Counter].Shows
		if r.Shows.Packets < before.Packets || r.Shows.Bytes < before.Bytes {
			// Somebody else has put it back: to zero, or with saved rules to
			// what it showed then.
			before = r.Shows
		}
		sum.add(r.What, Traffic{r.Shows.Packets - before.Packets, r.Shows.Bytes - before.Bytes})
		sums[r.External], t.seen[r.Counter] = sum, r
	}
	t.anew, t.sums = nil, sums
	return maps.Clone(sums)
}
