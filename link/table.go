package link

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// rulesBetween lists the rules of ours of a family, from one priority to another.
func (h *Host) rulesBetween(family, first, last int) ([]netlink.Rule, error) {
	rules, err := retry(func() ([]netlink.Rule, error) { return h.nl.RuleList(family) })
	if notInKernel(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	return slices.DeleteFunc(rules, func(r netlink.Rule) bool { return r.Protocol != Protocol || r.Priority < first || r.Priority > last }), nil
}

// rulesOf are the two rules that lead a mark to the table of its number.
func rulesOf(family, table int) [2]netlink.Rule {
	var rules [2]netlink.Rule
	for i := range rules {
		r := netlink.NewRule()
		r.Family, r.Protocol, r.Mark = family, Protocol, uint32(table)
		r.Priority, r.Table = rulePriority+i, table
		if i == 0 {
			r.Table, r.SuppressPrefixlen = unix.RT_TABLE_MAIN, 0
		}
		rules[i] = *r
	}
	return rules
}

func sameRule(a, b netlink.Rule) bool {
	return a.Priority == b.Priority && a.Mark == b.Mark && a.Table == b.Table && a.SuppressPrefixlen == b.SuppressPrefixlen
}

// addRules adds those that the tables need and don't have.
func (s *uplinks) addRules(family int, want map[int]map[int]netlink.Route, have []netlink.Rule) error {
	for _, table := range slices.Sorted(maps.Keys(want)) {
		for _, r := range rulesOf(family, table) {
			if slices.ContainsFunc(have, func(h netlink.Rule) bool { return sameRule(h, r) }) {
				continue
			}
			if err := s.nl.RuleAdd(&r); err != nil {
				return fmt.Errorf("add %s: %w", ruleText(r), err)
			}
			s.changed = append(s.changed, "added "+ruleText(r))
		}
	}
	return nil
}

// dropRules removes those that no table needs, and what is in theirs.
func (s *uplinks) dropRules(family int, want map[int]map[int]netlink.Route, have []netlink.Rule) error {
	var errs []error
	for _, r := range have {
		table := int(r.Mark)
		if rules := rulesOf(family, table); want[table] != nil && (sameRule(r, rules[0]) || sameRule(r, rules[1])) {
			continue
		}
		if want[table] == nil && table > uplinkBase {
			errs = append(errs, s.setTable(family, table, nil))
		}
		if err := s.nl.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove %s: %w", ruleText(r), err))
			continue
		}
		s.changed = append(s.changed, "removed "+ruleText(r))
	}
	return errors.Join(errs...)
}

// setTable makes our routes in a table those that are wanted, by metric.
func (s *uplinks) setTable(family, table int, want map[int]netlink.Route) error {
	routes, err := s.routesOf(family, table)
	if err != nil {
		return err
	}
	have := map[int]netlink.Route{}
	for _, r := range routes {
		if r.Protocol == Protocol {
			have[r.Priority] = r
		}
	}
	var errs []error
	for _, metric := range slices.Sorted(maps.Keys(want)) {
		r, change := want[metric], s.nl.RouteAdd
		if old, ok := have[metric]; ok {
			if sameRoute(old, r) {
				continue
			}
			change = s.nl.RouteReplace
		}
		if err := change(&r); err != nil {
			errs = append(errs, fmt.Errorf("add %s: %w", s.routeText(r), err))
			continue
		}
		s.changed = append(s.changed, "added "+s.routeText(r))
	}
	for _, metric := range slices.Sorted(maps.Keys(have)) {
		r := have[metric]
		if _, ok := want[metric]; ok {
			continue
		}
		if err := s.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove %s: %w", s.routeText(r), err))
			continue
		}
		s.changed = append(s.changed, "removed "+s.routeText(r))
	}
	return errors.Join(errs...)
}

// sameRoute compares what we set. The kernel adds flags of its own.
func sameRoute(have, want netlink.Route) bool {
	have.Flags &= unix.RTNH_F_ONLINK
	ways := make([]*netlink.NexthopInfo, 0, len(have.MultiPath))
	for _, hop := range have.MultiPath {
		plain := *hop
		plain.Flags &= unix.RTNH_F_ONLINK
		ways = append(ways, &plain)
	}
	if have.MultiPath != nil {
		have.MultiPath = ways
	}
	return have.Equal(want)
}

// ruleText is a rule as ip-rule(8) takes it.
func ruleText(r netlink.Rule) string {
	text := fmt.Sprintf("%s pref %d fwmark %#x", command(r.Family, "rule"), r.Priority, r.Mark)
	if r.Table == unix.RT_TABLE_MAIN {
		return text + " lookup main suppress_prefixlength 0"
	}
	return fmt.Sprintf("%s lookup %d", text, r.Table)
}

// routeText is a default route of ours as ip-route(8) takes it.
func (s *uplinks) routeText(r netlink.Route) string {
	text := command(r.Family, "route") + " default"
	for _, hop := range hops(r) {
		if len(r.MultiPath) > 0 {
			text += " nexthop"
		}
		if hop.Gw != nil {
			text += " via " + hop.Gw.String()
		}
		if via, ok := hop.Via.(*netlink.Via); ok {
			text += " via inet6 " + via.Addr.String()
		}
		if l, err := s.nl.LinkByIndex(hop.LinkIndex); err == nil {
			text += " dev " + l.Attrs().Name
		}
	}
	return fmt.Sprintf("%s metric %d table %d", text, r.Priority, r.Table)
}

func command(family int, object string) string {
	if family == netlink.FAMILY_V6 {
		return "ip -6 " + object
	}
	return "ip " + object
}
