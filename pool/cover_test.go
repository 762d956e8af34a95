package pool

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestCover(t *testing.T) {
	for _, tt := range []struct{ pools, addrs, want string }{
		{"", "", ""},
		{"203.0.113.56-203.0.113.62", "", "203.0.113.56/30 203.0.113.60/31 203.0.113.62/32"},
		{"203.0.113.56-203.0.113.62", "203.0.113.63", "203.0.113.56/29"},
		{"203.0.113.0/25;203.0.113.128/25", "203.0.113.7", "203.0.113.0/24"},
		{"203.0.113.0/30,!203.0.113.1", "198.51.100.9", "198.51.100.9/32 203.0.113.0/32 203.0.113.2/31"},
		{"0.0.0.0/0", "", "0.0.0.0/0"},
		{"255.255.255.254-255.255.255.255", "", "255.255.255.254/31"},
		{"2001:db8::/64;203.0.113.1", "2001:db8:0:1::", "203.0.113.1/32 2001:db8::/64 2001:db8:0:1::/128"},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127", "", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"},
	} {
		var pools []Pool
		for part := range strings.SplitSeq(tt.pools, ";") {
			p, err := Parse(part)
			if err != nil {
				t.Fatal(err)
			}
			pools = append(pools, p)
		}
		var addrs []netip.Addr
		for _, a := range strings.Fields(tt.addrs) {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		if got := strings.Trim(fmt.Sprint(Cover(pools, addrs)), "[]"); got != tt.want {
			t.Errorf("%q and %q: got %s, want %s", tt.pools, tt.addrs, got, tt.want)
		}
	}
}
