package driver

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

func TestPorts(t *testing.T) {
	for in, want := range map[string]string{
		"all": "all", "tcp/22": "tcp/22", "TCP/22, udp/53": "tcp/22,udp/53", "tcp/8000-8099 icmp": "tcp/8000-8099,icmp",
		"sctp/5060,esp,ah": "sctp/5060,esp,ah", "udp/1-65535": "udp/1-65535", "tcp/7-7": "tcp/7",
	} {
		ports, err := parsePorts(in)
		if got := portsText(ports); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"": "is empty", "tcp": `"tcp": allowed are all`, "icmp/8": `"icmp/8": allowed are`, "gre": `"gre": allowed`, "22": `"22": allowed`,
		"tcp/0": "1 to 65535", "tcp/65536": "1 to 65535", "tcp/9-8": "the first before", "tcp/": "1 to 65535", "tcp/ssh": "1 to 65535", "all,tcp/1": `"all": allowed`,
		"tcp/22;drop": "1 to 65535",
	} {
		if _, err := parsePorts(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

func TestAllow(t *testing.T) {
	for in, want := range map[string]string{
		"everyone": "everyone", "192.0.2.0/24": "192.0.2.0/24", "192.0.2.7/24,2001:db8::1": "192.0.2.0/24,2001:db8::1/128", "0.0.0.0/0": "0.0.0.0/0",
	} {
		prefixes, err := parseAllow(in)
		if got := allowText(prefixes); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{"": "is empty", "me": `"me" is no CIDR`, "192.0.2.0/33": "no CIDR", "fe80::1%eth0": "no CIDR", "::ffff:192.0.2.1": "no CIDR"} {
		if _, err := parseAllow(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

func TestNATFilter(t *testing.T) {
	p := netip.MustParsePrefix
	for name, tt := range map[string]struct {
		in     store.Filter
		v4, v6 *nat.Filter
	}{
		"none": {store.Filter{Refuse: store.RefuseReject}, nil, nil},
		"ports": {
			store.Filter{Ports: []store.Ports{{Proto: "icmp"}, {Proto: "tcp", First: 22, Last: 22}}},
			&nat.Filter{Ports: []nat.Ports{{Proto: 1}, {Proto: 6, First: 22, Last: 22}}},
			&nat.Filter{Ports: []nat.Ports{{Proto: 6, First: 22, Last: 22}, {Proto: 58}}},
		},
		"one family": {
			store.Filter{Allow: []netip.Prefix{p("192.0.2.0/24")}, Refuse: store.RefuseReject},
			&nat.Filter{Allow: []netip.Prefix{p("192.0.2.0/24")}, Reject: true},
			&nat.Filter{Allow: []netip.Prefix{p("::/128")}, Reject: true},
		},
	} {
		for v4, want := range map[bool]*nat.Filter{true: tt.v4, false: tt.v6} {
			if diff := cmp.Diff(want, natFilter(tt.in, v4), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("%s, IPv4 %t (-want +got):\n%s", name, v4, diff)
			}
		}
	}
}
