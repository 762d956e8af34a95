package nat

import (
	"fmt"
	"strings"
)

// A Limit says how much connection tracking may have to do for an external
// address. What goes beyond is dropped before it is an entry of its table, and
// counted; connections that there are go on.
//
// What others open to External is counted for it, and what its container opens,
// to whomever, for Internal: neither takes the other's room. Of several mappings
// of one internal address, the limit of the first by External that has one
// bounds what the container opens. Processes of the host itself are not limited.
//
// Counting begins with the rule. Connections of before are not counted.
type Limit struct {
	// Connections is how many may be open at a time: entries of connection
	// tracking, but for those of TCP connections that both sides have closed;
	// 0 for any number.
	Connections uint32
	// Rate is how many may be opened in a second, and as many at once after a
	// second of none; 0 for any number.
	Rate uint32
}

// What a Limit's numbers may be. Beyond, they would bound nothing that a host
// has room for; and iptables knows no greater rate.
const (
	MaxConnections = 10_000_000
	MaxRate        = 1_000_000
)

// String is a limit in the form of the option extip.limit.
func (l Limit) String() string {
	var parts []string
	if l.Connections > 0 {
		parts = append(parts, fmt.Sprintf("connections=%d", l.Connections))
	}
	if l.Rate > 0 {
		parts = append(parts, fmt.Sprintf("rate=%d/s", l.Rate))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ",")
}

func (l Limit) check() error {
	if l.Connections > MaxConnections {
		return fmt.Errorf("%d connections are more than %d", l.Connections, MaxConnections)
	}
	if l.Rate > MaxRate {
		return fmt.Errorf("%d connections a second are more than %d", l.Rate, MaxRate)
	}
	return nil
}
