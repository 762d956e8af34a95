package link

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routesOf lists a table of a family; one that doesn't exist is empty.
func (h *Host) routesOf(family, table int) ([]netlink.Route, error) {
	routes, err := retry(func() ([]netlink.Route, error) {
		return h.routes.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if errors.Is(err, unix.ENOENT) || notInKernel(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("link: list routes: %w", err)
	}
	return routes, nil
}

// notInKernel tells whether an error says that the kernel was built without what
// is asked for: IPv6, or rules.
func notInKernel(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)
}

// defaultRoutes lists the routes of the main table that lead everywhere. Those
// for some types of service only, and those that lead nowhere, don't count.
func (h *Host) defaultRoutes(family int) ([]netlink.Route, error) {
	routes, err := h.routesOf(family, unix.RT_TABLE_MAIN)
	var defaults []netlink.Route
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				continue
			}
		}
		if r.Type == unix.RTN_UNICAST && r.Tos == 0 && len(hops(r)) > 0 {
			defaults = append(defaults, r)
		}
	}
	return defaults, err
}

// bestOf are the routes that have the lowest metric: more than one if several
// routers are as good as each other.
func bestOf(routes []netlink.Route) []netlink.Route {
	var best []netlink.Route
	for _, r := range routes {
		if len(best) > 0 && r.Priority < best[0].Priority {
			best = nil
		}
		if len(best) == 0 || r.Priority == best[0].Priority {
			best = append(best, r)
		}
	}
	return best
}

// hops are the ways that a route goes, but for dead ones.
func hops(r netlink.Route) []*netlink.NexthopInfo {
	all := r.MultiPath
	if len(all) == 0 {
		all = []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw, Via: r.Via, Flags: r.Flags, Encap: r.Encap}}
	}
	var alive []*netlink.NexthopInfo
	for _, hop := range all {
		if hop.LinkIndex > 0 && hop.Flags&unix.RTNH_F_DEAD == 0 {
			alive = append(alive, hop)
		}
	}
	return alive
}

// retry repeats a list that the kernel says was interrupted by a change, a few
// times; then the last answer is an error.
func retry[T any](list func() ([]T, error)) ([]T, error) {
	const attempts = 5
	var got []T
	var err error
	for range attempts {
		if got, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return got, err
}
