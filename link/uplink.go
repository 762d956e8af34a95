package link

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// With several uplinks, the host's routes send all that goes far through the
// interface of the best default route, also what must leave by another parent:
// under an external address of that parent, nobody there would take it. Rules
// for a mark lead it out by the parent's own default route:
//
//	12000: from all fwmark 0x78000003 lookup main suppress_prefixlength 0
//	12001: from all fwmark 0x78000003 lookup 2013265923
//
// The first keeps all routes but default ones as they are.
const (
	// uplinkBase plus the parent's interface index, at most maxIndex, is its
	// mark and the number of its table. The base is an x in the topmost byte,
	// above what kube-proxy (0x4000, 0x8000), Tailscale (0xff0000) and others
	// use; the mark is compared whole.
	uplinkBase = 0x78000000
	maxIndex   = 1<<27 - 1
	// rulePriority is the first of our two priorities: after the rules that lead
	// to particular places (Tailscale's, from 5210), before those that take
	// everything (wg-quick's, which end at 32765; main, 32766).
	rulePriority = 12000
)

// An Uplink is what networks on a parent need to leave by it.
type Uplink struct {
	// Mark is what all that comes from their containers must carry, as the
	// whole mark of a packet; 0 if nothing.
	Mark uint32
	// Without are the families in which the host has default routes, but none
	// through the parent: what goes far leaves elsewhere, with an address
	// that doesn't belong there.
	Without Families
}

// SyncUplinks makes exactly the rules and routes that these parents need, and
// removes others of ours. It returns the parents that are not simply on the
// host's only way out, and what it changed, for the log. A parent that doesn't
// exist needs nothing; call it again when a DefaultRoute or a link changes.
//
// Its cost grows with the main tables' routes.
func (h *Host) SyncUplinks(parents []string) (needs map[string]Uplink, changed []string, err error) {
	h.uplinks.Lock()
	defer h.uplinks.Unlock()
	s := uplinks{Host: h, needs: map[string]Uplink{}}
	links := map[int]string{}
	for _, name := range parents {
		l, err := h.byName(name)
		switch {
		case errors.Is(err, ErrNoLink):
		case err != nil:
			return nil, nil, fmt.Errorf("link: uplink: %w", err)
		case l.Attrs().Index > maxIndex:
			return nil, nil, fmt.Errorf("link: uplink %s: its index %d is more than %d", name, l.Attrs().Index, maxIndex)
		default:
			links[l.Attrs().Index] = name
		}
	}
	errs := []error{s.sync(netlink.FAMILY_V4, links), s.sync(netlink.FAMILY_V6, links)}
	if err := errors.Join(errs...); err != nil {
		return s.needs, s.changed, fmt.Errorf("link: uplinks: %w", err)
	}
	return s.needs, s.changed, nil
}

// uplinks is one run of SyncUplinks.
type uplinks struct {
	*Host
	needs   map[string]Uplink
	changed []string
}

func (s *uplinks) sync(family int, links map[int]string) error {
	defaults, err := s.defaultRoutes(family)
	if err != nil {
		return err
	}
	have, err := s.rulesBetween(family, rulePriority, math.MaxInt)
	if err != nil {
		return err
	}
	want := map[int]map[int]netlink.Route{} // table → metric → route
	best := bestOf(defaults)
	for _, index := range slices.Sorted(maps.Keys(links)) {
		name := links[index]
		if len(best) == 0 || leaveBy(best, index) {
			continue
		}
		need, table := s.needs[name], uplinkBase+index
		if routes := through(defaults, index, table); len(routes) > 0 {
			want[table], need.Mark = routes, uint32(table)
		} else {
			need.Without.V4 = need.Without.V4 || family == netlink.FAMILY_V4
			need.Without.V6 = need.Without.V6 || family == netlink.FAMILY_V6
		}
		s.needs[name] = need
	}
	// Rules are first and go last: by them the tables are found again. Until
	// its table has a route, a mark changes nothing.
	errs := []error{s.addRules(family, want, have)}
	for _, table := range slices.Sorted(maps.Keys(want)) {
		errs = append(errs, s.setTable(family, table, want[table]))
		if name := links[table-uplinkBase]; family == netlink.FAMILY_V4 {
			errs = append(errs, s.loosen(name))
		}
	}
	errs = append(errs, s.dropRules(family, want, have))
	return errors.Join(errs...)
}

// loosen lets a parent receive from where the host's own routes don't lead
// through it: a strict rp_filter, 1, drops that; 2 wins over it.
func (s *uplinks) loosen(name string) error {
	strict, err := s.effective(name, "rp_filter")
	if err != nil || strict != 1 {
		return err
	}
	changed, err := s.set(conf("ipv4", name, "rp_filter"), 2)
	s.changed = append(s.changed, changed...)
	return err
}

// leaveBy tells whether all ways of all routes go through an interface.
func leaveBy(routes []netlink.Route, index int) bool {
	for _, r := range routes {
		for _, hop := range hops(r) {
			if hop.LinkIndex != index {
				return false
			}
		}
	}
	return true
}

// through are copies for a table, by metric, of what goes through an interface.
// Routes of one metric become one of several hops: a table can't hold them
// otherwise. Expiry isn't copied: when the original goes, so does the copy.
func through(routes []netlink.Route, index, table int) map[int]netlink.Route {
	copies := map[int]netlink.Route{}
	for _, r := range routes {
		ways := copies[r.Priority].MultiPath
		for _, hop := range hops(r) {
			if hop.LinkIndex == index {
				ways = append(ways, &netlink.NexthopInfo{
					LinkIndex: index, Gw: hop.Gw, Via: hop.Via, Encap: hop.Encap,
					Flags: hop.Flags & unix.RTNH_F_ONLINK, Hops: hop.Hops,
				})
			}
		}
		if len(ways) == 0 {
			continue
		}
		if _, ok := copies[r.Priority]; !ok {
			r.Table, r.Protocol = table, Protocol
			r.LinkIndex, r.Gw, r.Via, r.Encap, r.Flags = 0, nil, nil, nil, 0
			copies[r.Priority] = r
		}
		c := copies[r.Priority]
		c.MultiPath = ways
		copies[r.Priority] = c
	}
	for metric, c := range copies {
		if hop := c.MultiPath[0]; len(c.MultiPath) == 1 {
			c.LinkIndex, c.Gw, c.Via, c.Encap, c.Flags, c.MultiPath = index, hop.Gw, hop.Via, hop.Encap, hop.Flags, nil
			copies[metric] = c
		}
	}
	return copies
}
