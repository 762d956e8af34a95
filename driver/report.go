package driver

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/extip/extip/store"
)

// A Report says what a change has changed, a line each, or with a dry run what
// it would: "- " begins what was there, "+ " what is there now. Left is what was
// left as it is, or will not last, and why.
type Report struct {
	Done []string `json:"done"`
	Left []string `json:"left"`
}

func newReport() Report { return Report{Done: []string{}, Left: []string{}} }

func (r *Report) left(format string, args ...any) {
	r.Left = append(r.Left, fmt.Sprintf(format, args...))
}

// changed adds the difference between two pictures.
func (r *Report) changed(before, after []string) {
	for _, line := range before {
		if !slices.Contains(after, line) {
			r.Done = append(r.Done, "- "+line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			r.Done = append(r.Done, "+ "+line)
		}
	}
}

// picture is all that a running endpoint has by its external addresses, a line
// each.
func picture(n store.Network, e store.Endpoint, withheld map[netip.Addr]string) (lines []string) {
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	out := map[netip.Addr]netip.Addr{}
	maps := mappings(e)
	for _, a := range e.External {
		add("claim %s: %s", a, title(e))
	}
	for _, m := range maps {
		add("mapping %s to %s, source %s", m.External, m.Internal, sourceOf(m.Gateway))
		if m.Egress {
			out[m.Internal] = m.External
		}
	}
	for _, p := range e.Addresses {
		if a, ok := out[p.Addr()]; ok {
			add("egress of %s: from %s", p.Addr(), a)
		} else {
			add("egress of %s: from the host's address", p.Addr())
		}
	}
	for _, a := range e.External {
		if on := aliasLink(n); on != "" && withheld[a] == "" {
			add("address %s/%d on %s", a, a.BitLen(), on)
		}
	}
	if len(e.External) > 0 {
		add("filter of %s: ports %s, from %s, else %s", short(e.ID), portsText(e.Filter.Ports), allowText(e.Filter.Allow), e.Filter.Refuse)
		add("limit of %s: %s", short(e.ID), limitText(e.Filter.Limit))
	}
	for _, a := range e.External {
		if e.Reservation != "" {
			add("reservation %q: %s", e.Reservation, a)
		}
	}
	return lines
}

func sourceOf(gateway bool) store.Source {
	if gateway {
		return store.SourceGateway
	}
	return store.SourceClient
}

// untilStop tells that what an endpoint has got or lost is its own only while it
// runs, unless it has a reservation.
func (r *Report) untilStop(e store.Endpoint) {
	if e.Reservation == "" {
		r.left("%s has no reservation: this holds until it stops; one that is started with extip.reservation=NAME keeps what it is given", title(e))
	}
}

// withheld tells of addresses that are not on their interface.
func (r *Report) withheld(e *endpoint, addrs []netip.Addr) {
	for _, a := range addrs {
		if why := e.withheld[a]; why != "" {
			r.left("%s is withheld: it %s", a, why)
		}
	}
}

// plural is a count of things: "1 event was", "2 events were".
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
