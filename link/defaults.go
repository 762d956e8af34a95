package link

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
)

// DefaultLinks are the interfaces of all default routes, of both families.
func (h *Host) DefaultLinks() ([]string, error) {
	var names []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.defaultRoutes(family)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			for _, hop := range hops(r) {
				l, err := h.nl.LinkByIndex(hop.LinkIndex)
				if errors.As(err, &netlink.LinkNotFoundError{}) {
					continue // gone in the meantime, with the route
				}
				if err != nil {
					return nil, fmt.Errorf("link: interface of a default route: %w", err)
				}
				names = append(names, l.Attrs().Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
