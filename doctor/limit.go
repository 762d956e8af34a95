package doctor

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
)

// flows counts those of all addresses, once.
func (x *exam) flows() map[netip.Addr]link.FlowCount {
	if x.counted == nil {
		var wanted link.Flows
		for _, a := range x.subject.Addresses {
			wanted.External, wanted.Internal = append(wanted.External, a.External), append(wanted.Internal, a.Internal)
		}
		var err error
		if x.counted, err = x.Host.Count(wanted); !x.noted(err) {
			x.counted = map[netip.Addr]link.FlowCount{}
		}
	}
	return x.counted
}

// busiest names the addresses that have the most flows, each a tenth at least of
// all that there are.
func (x *exam) busiest(all int) (list []string) {
	const few, share = 3, 10
	type load struct {
		what string
		n    int
	}
	var loads []load
	seen := map[netip.Addr]bool{}
	for _, a := range x.subject.Addresses {
		loads = append(loads, load{fmt.Sprintf("%s (%s)", a.External, cmp.Or(a.Container, a.Endpoint)), x.flows()[a.External].All})
		if !seen[a.Internal] {
			loads = append(loads, load{fmt.Sprintf("%s (%s) itself", a.Internal, cmp.Or(a.Container, a.Endpoint)), x.flows()[a.Internal].All})
		}
		seen[a.Internal] = true
	}
	slices.SortStableFunc(loads, func(a, b load) int { return cmp.Compare(b.n, a.n) })
	for _, l := range loads[:min(few, len(loads))] {
		if l.n*share >= all && l.n > 0 {
			list = append(list, fmt.Sprintf("%s %d", l.what, l.n))
		}
	}
	return list
}

// limits finds addresses that have as many connections as they may, or whose
// containers do.
func (x *exam) limits() (found []Finding) {
	seen := map[netip.Addr]bool{}
	for _, a := range x.subject.Addresses {
		most := a.Limit.Connections
		if most == 0 {
			continue
		}
		wider := a.Limit
		wider.Connections = min(2*most, nat.MaxConnections)
		add := func(addr netip.Addr, seen, why string) {
			if n := x.flows()[addr].Open; n >= int(most) {
				found = append(found, Finding{
					Level: Warn, Seen: fmt.Sprintf(seen, a.External, n, most), Why: why,
					Remedy: fmt.Sprintf("extip limit %s %s", a.External, wider),
				})
			}
		}
		add(a.External, "%s has %d connections, of %d that it may have", "more that others open to it are dropped")
		if !seen[a.Internal] {
			add(a.Internal, "the container of %s has opened %d connections, of %d that it may", "more that it opens are dropped")
		}
		seen[a.Internal] = true
	}
	return found
}
