package cluster

import "time"

// What a host may do with an address that another one may hold by now is decided
// here, by functions of what is known and of the time. They have no clock and
// keep nothing, so that a simulation can ask them, too.

// A Fence is where a host stands.
type Fence struct {
	// Host is its name.
	Host string
	// ProvenUntil is the time up to which its lease certainly holds; zero: it
	// has none.
	ProvenUntil time.Time
}

// ProvenUntil is the time up to which a lease certainly holds that was granted
// or renewed by a request of a time. The lease began no earlier than that; a
// tenth is for clocks that run at different speeds.
func ProvenUntil(sent time.Time, ttl time.Duration) time.Time { return sent.Add(ttl - ttl/10) }

// Proven tells whether the host's claims certainly hold.
func (f Fence) Proven(now time.Time) bool { return now.Before(f.ProvenUntil) }

// MayDefend tells whether whoever else uses an address is in the wrong for
// certain. The holder is the host that claims it as far as is known, "" if none
// does. A holder that is known can't be another by now: while the lease holds
// only the host itself gives its claims up.
func (f Fence) MayDefend(now time.Time, holder string) bool {
	return f.Proven(now) && holder == f.Host
}

// MustYield tells whether the host has to stop answering for an address that it
// has on record: another one claims it, or uses it and may be right.
func (f Fence) MustYield(now time.Time, holder string, inUse bool) bool {
	if holder != "" && holder != f.Host {
		return true
	}
	return inUse && !f.MayDefend(now, holder)
}

// A Wake is the wait for another host's lease to end.
type Wake struct {
	term uint64
	// ends is when the lease ends that was seen first, at the latest.
	ends time.Time
}

// Alive takes in how long a lease holds, as etcd said between two times, in whole
// seconds that it rounds down, and tells whether the lease was renewed since the
// wait began. A term is the reign of one leader of etcd: each begins by renewing
// all leases, which says nothing of the hosts.
func (w *Wake) Alive(asked, told time.Time, left time.Duration, term uint64) bool {
	latest := told.Add(left + time.Second)
	if w.ends.IsZero() || term != w.term {
		w.term, w.ends = term, latest
		return false
	}
	if !asked.Add(left).Before(w.ends) {
		return true
	}
	if latest.Before(w.ends) {
		w.ends = latest
	}
	return false
}
