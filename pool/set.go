package pool

import (
	"net/netip"
	"slices"
)

// A Set is a set of addresses that changes by single ones, such as those that
// are taken. Neighbours are kept as one run, so that a pool's next free address
// is found without looking at each. Finding costs the logarithm of the number
// of runs; changing may move them in memory, 60 µs at worst in a /16
// (BenchmarkNext). The zero Set is empty; it must not be used concurrently.
type Set struct{ runs []span }

// Add puts an address into the set; one that is there already is no error.
func (s *Set) Add(a netip.Addr) {
	i, found := s.search(a)
	if found || i > 0 && !s.runs[i-1].last.Less(a) {
		return
	}
	joinsLeft := i > 0 && s.runs[i-1].last.Next() == a
	joinsRight := i < len(s.runs) && a.Next() == s.runs[i].first
	switch {
	case joinsLeft && joinsRight:
		s.runs[i-1].last = s.runs[i].last
		s.runs = slices.Delete(s.runs, i, i+1)
	case joinsLeft:
		s.runs[i-1].last = a
	case joinsRight:
		s.runs[i].first = a
	default:
		s.runs = slices.Insert(s.runs, i, span{a, a})
	}
}

// Remove takes an address out of the set; one that isn't there is no error.
func (s *Set) Remove(a netip.Addr) {
	i, found := s.search(a)
	if !found {
		i--
	}
	if i < 0 || s.runs[i].last.Less(a) {
		return
	}
	s.runs = slices.Replace(s.runs, i, i+1, without(s.runs[i:i+1], span{a, a})...)
}

// Contains tells whether an address is in the set.
func (s *Set) Contains(a netip.Addr) bool {
	_, ok := s.runOf(a)
	return ok
}

// runOf returns the last address of the run that a is in.
func (s *Set) runOf(a netip.Addr) (last netip.Addr, ok bool) {
	i, found := s.search(a)
	if !found {
		i--
	}
	if i < 0 || s.runs[i].last.Less(a) {
		return last, false
	}
	return s.runs[i].last, true
}

// search finds the run that begins with a, or the first one that begins after it.
func (s *Set) search(a netip.Addr) (int, bool) {
	return slices.BinarySearchFunc(s.runs, a, func(r span, a netip.Addr) int { return r.first.Compare(a) })
}

// without returns what is left of sorted spans when one is cut out of them.
func without(spans []span, cut span) []span {
	var out []span
	for _, s := range spans {
		if s.first.BitLen() != cut.first.BitLen() || s.last.Less(cut.first) || cut.last.Less(s.first) {
			out = append(out, s)
			continue
		}
		if s.first.Less(cut.first) {
			out = append(out, span{s.first, cut.first.Prev()})
		}
		if cut.last.Less(s.last) {
			out = append(out, span{cut.last.Next(), s.last})
		}
	}
	return out
}
