package nat

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// A Filter says who may connect to an external address, and to what. All else
// is dropped before it reaches the container, and counted per external
// address.
//
// It looks at every packet of a connection that the other side opened, not
// only at the first: a connection that a change no longer allows ends with
// its next packet. Connections that the container opens, and answers to them,
// are not filtered; neither are ICMP errors about connections there are. (Do
// not make the kernel forget connections at a change: one that the container
// goes on to send in would be taken for its own.)
//
// A client counts by the address that its packets come from: a container on
// this host by its internal one. Processes of the host itself are not filtered.
type Filter struct {
	// Ports is what may be reached; none stands for every port and protocol.
	Ports []Ports
	// Allow is who may connect, in prefixes of the mapping's family; none
	// stands for everyone.
	Allow []netip.Prefix
	// Reject answers what is not allowed with an ICMP error, port
	// unreachable, instead of dropping it.
	Reject bool
}

// Ports is an IP protocol, or a range of its ports if it has any.
type Ports struct {
	Proto uint8 // IANA's number, such as unix.IPPROTO_TCP
	// First and Last are 0 for protocols without ports.
	First, Last uint16
}

// Protocols with ports, where these are in the header's first four bytes.
// IANA, Assigned Internet Protocol Numbers.
const (
	protoTCP     = 6
	protoUDP     = 17
	protoDCCP    = 33
	protoSCTP    = 132
	protoUDPLite = 136
)

// HasPorts tells whether an IP protocol has ports.
func HasPorts(proto uint8) bool {
	return slices.Contains([]uint8{protoTCP, protoUDP, protoDCCP, protoSCTP, protoUDPLite}, proto)
}

// Canonical returns a filter that does the same and is equal to every other
// that does: sorted, nothing twice and nothing within another. It is nil if
// nothing is kept out.
func (f *Filter) Canonical() *Filter {
	if f == nil || len(f.Ports) == 0 && len(f.Allow) == 0 {
		return nil
	}
	c := &Filter{Reject: f.Reject}
	ports := slices.SortedFunc(slices.Values(f.Ports), func(a, b Ports) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	for _, p := range ports {
		// Ranges that overlap or touch become one.
		if i := len(c.Ports) - 1; i >= 0 && c.Ports[i].Proto == p.Proto && int(p.First) <= int(c.Ports[i].Last)+1 {
			c.Ports[i].Last = max(c.Ports[i].Last, p.Last)
			continue
		}
		c.Ports = append(c.Ports, p)
	}
	allow := slices.SortedFunc(slices.Values(f.Allow), func(a, b netip.Prefix) int {
		return cmp.Or(a.Masked().Addr().Compare(b.Masked().Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range allow {
		if i := len(c.Allow) - 1; i < 0 || !c.Allow[i].Contains(p.Addr()) {
			c.Allow = append(c.Allow, p.Masked())
		}
	}
	if len(c.Allow) > 0 && c.Allow[0].Bits() == 0 {
		return (&Filter{Ports: c.Ports, Reject: c.Reject}).Canonical() // everyone
	}
	return c
}

// Equal tells whether two filters do the same.
func (f *Filter) Equal(o *Filter) bool {
	a, b := f.Canonical(), o.Canonical()
	if a == nil || b == nil {
		return a == b
	}
	return a.Reject == b.Reject && slices.Equal(a.Ports, b.Ports) && slices.Equal(a.Allow, b.Allow)
}

// MaxFilter bounds what one address's filter costs: the entries that it is
// made of are each prefix together with each range of ports.
const MaxFilter = 1000

func (f *Filter) check(external netip.Addr) error {
	if f == nil {
		return nil
	}
	var errs []error
	for _, p := range f.Ports {
		if HasPorts(p.Proto) && (p.First == 0 || p.First > p.Last) {
			errs = append(errs, fmt.Errorf("ports %d to %d of protocol %d: need 1 to 65535, in order", p.First, p.Last, p.Proto))
		}
		if !HasPorts(p.Proto) && (p.First != 0 || p.Last != 0) {
			errs = append(errs, fmt.Errorf("protocol %d has no ports", p.Proto))
		}
	}
	for _, p := range f.Allow {
		if !p.IsValid() || p.Addr().Is4() != external.Is4() || p.Addr().Is4In6() {
			errs = append(errs, fmt.Errorf("%q is no prefix of the address's family", p))
		}
	}
	if size := max(1, len(f.Ports)) * max(1, len(f.Allow)); size > MaxFilter {
		errs = append(errs, fmt.Errorf("%d prefixes by %d ranges of ports are more than %d", len(f.Allow), len(f.Ports), MaxFilter))
	}
	return errors.Join(errs...)
}
