// Package pool holds the external addresses that a network may hand out, as
// ranges. It is pure: who has which address is the store's knowledge.
package pool

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
)

// A Pool is a set of addresses of both families. The zero Pool is empty.
// Pools are values; their methods may be called concurrently.
type Pool struct {
	// spans are sorted, disjoint and not adjacent, so that equal sets have
	// equal spans.
	spans []span
}

// A span is all the addresses of one family from first to last.
type span struct{ first, last netip.Addr }

// Parse reads a comma-separated list of addresses, first-last ranges and
// CIDRs, each of either family: "203.0.113.56-203.0.113.62, 2001:db8::/120".
// A CIDR stands for all of its addresses, the first and the last included.
// What follows a "!" is left out, wherever in the list it stands. A list that
// leaves nothing of what it names is an error.
func Parse(s string) (Pool, error) {
	var in, out []span
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		list := &in
		if rest, ok := strings.CutPrefix(part, "!"); ok {
			part, list = strings.TrimSpace(rest), &out
		}
		sp, err := parseSpan(part)
		if err != nil {
			return Pool{}, err
		}
		*list = append(*list, sp)
	}
	p := Pool{spans: merge(in)}
	for _, sp := range out {
		p.spans = without(p.spans, sp)
	}
	if p.Empty() && len(in)+len(out) > 0 {
		return Pool{}, fmt.Errorf("pool: %q leaves no address", s)
	}
	return p, nil
}

func parseSpan(s string) (span, error) {
	var sp span
	var err error
	if first, last, ok := strings.Cut(s, "-"); ok {
		if sp.first, err = netip.ParseAddr(strings.TrimSpace(first)); err == nil {
			sp.last, err = netip.ParseAddr(strings.TrimSpace(last))
		}
	} else if strings.Contains(s, "/") {
		var p netip.Prefix
		if p, err = netip.ParsePrefix(s); err == nil {
			sp = span{p.Masked().Addr(), Last(p)}
		}
	} else {
		sp.first, err = netip.ParseAddr(s)
		sp.last = sp.first
	}
	switch {
	case err != nil:
		return span{}, fmt.Errorf("pool: %q is no address, first-last range or CIDR", s)
	case sp.first.Zone() != "" || sp.last.Zone() != "" || sp.first.Is4In6() || sp.last.Is4In6():
		return span{}, fmt.Errorf("pool: %q: addresses with a zone or IPv4 in IPv6 form are not allowed", s)
	case sp.first.BitLen() != sp.last.BitLen():
		return span{}, fmt.Errorf("pool: %q mixes IPv4 and IPv6", s)
	case sp.last.Less(sp.first):
		return span{}, fmt.Errorf("pool: %q ends before it begins", s)
	}
	return sp, nil
}

// Last is the highest address of a prefix, in IPv4 its broadcast address.
func Last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// merge sorts spans and joins those that overlap or touch.
func merge(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return a.first.Compare(b.first) })
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 {
			prev := &out[n-1]
			if !prev.last.Less(s.first) || prev.last.Next() == s.first {
				if prev.last.Less(s.last) {
					prev.last = s.last
				}
				continue
			}
		}
		out = append(out, s)
	}
	return out
}

// String is the canonical form; Parse reads it back to an equal Pool.
func (p Pool) String() string {
	parts := make([]string, len(p.spans))
	for i, s := range p.spans {
		parts[i] = s.first.String()
		if s.first != s.last {
			parts[i] += "-" + s.last.String()
		}
	}
	return strings.Join(parts, ",")
}

// MarshalText makes a Pool a string in JSON.
func (p Pool) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is Parse.
func (p *Pool) UnmarshalText(text []byte) (err error) {
	*p, err = Parse(string(text))
	return err
}

// Empty tells whether there is no address in the pool.
func (p Pool) Empty() bool { return len(p.spans) == 0 }

// Contains tells whether a is in the pool.
func (p Pool) Contains(a netip.Addr) bool {
	i, found := p.search(a)
	return found || i > 0 && !p.spans[i-1].last.Less(a)
}

// search finds the span that begins with a, or the first one that begins after it.
func (p Pool) search(a netip.Addr) (int, bool) {
	return slices.BinarySearchFunc(p.spans, a, func(s span, a netip.Addr) int { return s.first.Compare(a) })
}

// Overlaps tells whether any address of the prefix is in the pool.
func (p Pool) Overlaps(prefix netip.Prefix) bool {
	first, last := prefix.Masked().Addr(), Last(prefix)
	return slices.ContainsFunc(p.spans, func(s span) bool {
		return s.first.BitLen() == first.BitLen() && !s.last.Less(first) && !last.Less(s.first)
	})
}

// Size is the number of addresses, at most math.MaxUint64.
func (p Pool) Size() uint64 {
	var sum uint64
	for _, s := range p.spans {
		n := distance(s)
		if n > math.MaxUint64-sum {
			return math.MaxUint64
		}
		sum += n
	}
	return sum
}

// Free is the number of addresses that are not taken, at most math.MaxUint64. Its
// cost grows with the number of runs in taken that are in the pool.
func (p Pool) Free(taken *Set) uint64 {
	var gaps []span
	for _, s := range p.spans {
		from := s.first
		i, found := taken.search(from)
		if !found && i > 0 {
			i-- // a run that begins before the span may reach into it
		}
		for ; i < len(taken.runs) && from.IsValid() && !s.last.Less(taken.runs[i].first); i++ {
			run := taken.runs[i]
			if from.Less(run.first) {
				gaps = append(gaps, span{from, run.first.Prev()})
			}
			if !run.last.Less(from) {
				from = run.last.Next() // not valid after the last there is
			}
		}
		if from.IsValid() && !s.last.Less(from) {
			gaps = append(gaps, span{from, s.last})
		}
	}
	return Pool{spans: gaps}.Size()
}

// distance is the number of addresses of a span, at most math.MaxUint64.
func distance(s span) uint64 {
	first, last := s.first.As16(), s.last.As16()
	lo, borrow := bits.Sub64(binary.BigEndian.Uint64(last[8:]), binary.BigEndian.Uint64(first[8:]), 0)
	hi, _ := bits.Sub64(binary.BigEndian.Uint64(last[:8]), binary.BigEndian.Uint64(first[:8]), borrow)
	if hi > 0 || lo == math.MaxUint64 {
		return math.MaxUint64
	}
	return lo + 1
}

// Of is the part of the pool that is IPv4, or IPv6.
func (p Pool) Of(v4 bool) Pool {
	split, _ := p.search(netip.IPv6Unspecified()) // IPv4 sorts first
	if v4 {
		return Pool{spans: p.spans[:split:split]}
	}
	return Pool{spans: p.spans[split:]}
}

// mostUnusable is how many addresses Next asks about before it gives up: an
// IPv6 pool has more than anybody can try.
const mostUnusable = 4096

// Next returns the first address after the given one that is not taken and for
// which usable is true, going round once at the end of the pool, and false if
// there is none, or none among the first 4,096 that were asked about. With the
// zero Addr it begins at the beginning. Handing out the address after the last
// one handed out keeps a just-released address out of use for as long as there
// are others.
//
// Its cost grows with the number of gaps in taken that usable refuses, not with
// the number of addresses.
func (p Pool) Next(after netip.Addr, taken *Set, usable func(netip.Addr) bool) (netip.Addr, bool) {
	if p.Empty() {
		return netip.Addr{}, false
	}
	start := p.following(after)
	asked, wrapped := 0, false
	for a := start; ; {
		last, isTaken := taken.runOf(a)
		if !isTaken {
			if usable(a) {
				return a, true
			}
			if asked++; asked >= mostUnusable {
				return netip.Addr{}, false
			}
			last = a
		}
		next := p.following(last)
		wraps := !last.Less(next)
		if wrapped && wraps || (wrapped || wraps) && !next.Less(start) {
			return netip.Addr{}, false
		}
		a, wrapped = next, wrapped || wraps
	}
}

// following is the pool's address after a, the first one after the last.
// The pool must not be empty.
func (p Pool) following(a netip.Addr) netip.Addr {
	i, found := p.search(a)
	if found {
		i++
	}
	if i > 0 && a.Less(p.spans[i-1].last) {
		return a.Next()
	}
	return p.spans[i%len(p.spans)].first
}

// At returns the i-th address of the pool, counted from 0; the zero Addr if there
// are not so many.
func (p Pool) At(i uint64) netip.Addr {
	for _, s := range p.spans {
		if n := distance(s); i >= n && n < math.MaxUint64 {
			i -= n
			continue
		}
		b := s.first.As16()
		lo, carry := bits.Add64(binary.BigEndian.Uint64(b[8:]), i, 0)
		binary.BigEndian.PutUint64(b[8:], lo)
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+carry)
		a := netip.AddrFrom16(b)
		if s.first.Is4() {
			a = a.Unmap()
		}
		return a
	}
	return netip.Addr{}
}
