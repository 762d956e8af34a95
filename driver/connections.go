package driver

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

// parseLimit reads extip.limit; the zero Limit is none.
func parseLimit(v string) (l store.Limit, err error) {
	allowed := fmt.Sprintf("allowed are none, or connections=N and rate=N/s, with a comma between them: N is 1 to %d connections, or 1 to %d a second", nat.MaxConnections, nat.MaxRate)
	if v == "none" {
		return l, nil
	}
	for part := range strings.SplitSeq(v, ",") {
		name, value, _ := strings.Cut(part, "=")
		to, most := &l.Connections, uint64(nat.MaxConnections)
		if name == "rate" {
			var perSecond bool
			to, most = &l.Rate, nat.MaxRate
			if value, perSecond = strings.CutSuffix(value, "/s"); !perSecond {
				return store.Limit{}, fmt.Errorf("%q: %s", part, allowed)
			}
		} else if name != "connections" {
			return store.Limit{}, fmt.Errorf("%q: %s", part, allowed)
		}
		if *to != 0 {
			return store.Limit{}, fmt.Errorf("%q: %s stands there twice", part, name)
		}
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || n == 0 || n > most {
			return store.Limit{}, fmt.Errorf("%q: %s", part, allowed)
		}
		*to = uint32(n)
	}
	return l, nil
}

// limitText is what parseLimit reads back.
func limitText(l store.Limit) string { return nat.Limit(l).String() }

// SetLimit changes how many connections a running endpoint may have, and how
// fast they may come: in the form of the option extip.limit. Connections that
// are open stay.
func (d *Driver) SetLimit(id, limit string, dryRun bool) (Report, error) {
	l, err := parseLimit(limit)
	if err != nil {
		return Report{}, fmt.Errorf("extip.limit=%s: %w", limit, err)
	}
	return d.changeFilter(id, filterOptions{Filter: store.Filter{Limit: l}, limit: true}, dryRun)
}
