package pool

import (
	"net/netip"
	"slices"
)

// Cover is the fewest CIDRs that hold exactly the addresses of the pools, and
// the addresses, sorted.
func Cover(pools []Pool, addrs []netip.Addr) []netip.Prefix {
	var spans []span
	for _, p := range pools {
		spans = append(spans, p.spans...)
	}
	for _, a := range addrs {
		spans = append(spans, span{a, a})
	}
	var cover []netip.Prefix
	for _, s := range merge(spans) {
		for a := s.first; a.IsValid() && !s.last.Less(a); a = Last(cover[len(cover)-1]).Next() {
			cover = append(cover, widest(a, s.last))
		}
	}
	return slices.Clip(cover)
}

// widest is the shortest prefix that begins with first and doesn't go beyond last.
func widest(first, last netip.Addr) netip.Prefix {
	p := netip.PrefixFrom(first, first.BitLen())
	for p.Bits() > 0 {
		wider := netip.PrefixFrom(first, p.Bits()-1)
		if wider.Masked().Addr() != first || last.Less(Last(wider)) {
			break
		}
		p = wider
	}
	return p
}
