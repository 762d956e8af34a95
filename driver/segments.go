package driver

import (
	"net/netip"
	"sync"
	"time"
)

// What is believed of the wire, for how long: an address that nobody answered
// for, or that was ours until now, is listened to meanwhile; one that somebody
// else has is asked for again, in case it was given up.
const (
	clearFor   = 5 * time.Minute
	foreignFor = time.Minute
)

// A place is an address on the segment of a parent.
type place struct {
	parent string
	addr   netip.Addr
}

// segments is what is known of the parents' segments. Its methods may be called
// concurrently.
type segments struct {
	mu sync.Mutex
	// clear are places that nobody else has, until when that is believed.
	clear map[place]time.Time
	// foreign are places that somebody else has.
	foreign map[place]foreign
	// conflicts are those with addresses of ours, by address.
	conflicts map[netip.Addr]Clash
}

type foreign struct {
	mac   string
	until time.Time
}

// A Clash is how often, since the start, somebody else was heard to use an
// address of ours, and who that was last.
type Clash struct {
	MAC   string    `json:"mac"`
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
}

func newSegments() *segments {
	return &segments{clear: map[place]time.Time{}, foreign: map[place]foreign{}, conflicts: map[netip.Addr]Clash{}}
}

// ownerOf is who else has an address, by its MAC; "" if that isn't known.
func (s *segments) ownerOf(parent string, a netip.Addr) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.foreign[place{parent, a}]
	if !ok || time.Now().After(f.until) {
		return ""
	}
	return f.mac
}

// isClear tells whether nobody else has an address, and will be believed not to
// for a while.
func (s *segments) isClear(parent string, a netip.Addr, while time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(while).Before(s.clear[place{parent, a}])
}

// learn takes what a probe has found: for each address a MAC, or "".
func (s *segments) learn(parent string, a netip.Addr, mac string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := place{parent, a}
	if mac == "" {
		delete(s.foreign, at)
		s.clear[at] = time.Now().Add(clearFor)
		return
	}
	delete(s.clear, at)
	s.foreign[at] = foreign{mac, time.Now().Add(foreignFor)}
}

// forget ends the belief that one of these has an address: it has given it up.
func (s *segments) forget(a netip.Addr, of func(mac string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, f := range s.foreign {
		if at.addr == a && of(f.mac) {
			delete(s.foreign, at)
		}
	}
}

// clash counts a conflict about an address of ours.
func (s *segments) clash(a netip.Addr, mac string) Clash {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.conflicts[a]
	c.MAC, c.Last = mac, time.Now()
	c.Count++
	s.conflicts[a] = c
	return c
}

// conflict is what was counted about an address; nil if that is nothing.
func (s *segments) conflict(a netip.Addr) *Clash {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.conflicts[a]; ok {
		return &c
	}
	return nil
}

// expire forgets what is believed no longer, and returns the clear places among
// that.
func (s *segments) expire() []place {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var gone []place
	for at, until := range s.clear {
		if now.After(until) {
			delete(s.clear, at)
			gone = append(gone, at)
		}
	}
	for at, f := range s.foreign {
		if now.After(f.until) {
			delete(s.foreign, at)
		}
	}
	return gone
}
