package driver

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

// protocols are those that a filter may name, with their numbers. ICMP's is that
// of the address's family.
var protocols = []struct {
	name   string
	number uint8
}{
	{"tcp", unix.IPPROTO_TCP},
	{"udp", unix.IPPROTO_UDP},
	{"sctp", unix.IPPROTO_SCTP},
	{"udplite", unix.IPPROTO_UDPLITE},
	{"icmp", unix.IPPROTO_ICMP},
	{"esp", unix.IPPROTO_ESP},
	{"ah", unix.IPPROTO_AH},
}

// protocol finds a protocol's number, for addresses of a family.
func protocol(name string, v4 bool) (uint8, bool) {
	for _, p := range protocols {
		if p.name == name {
			if name == "icmp" && !v4 {
				return unix.IPPROTO_ICMPV6, true
			}
			return p.number, true
		}
	}
	return 0, false
}

// list splits at commas and spaces.
func list(v string) []string {
	return strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' })
}

// parsePorts reads extip.ports; nil is all.
func parsePorts(v string) ([]store.Ports, error) {
	const allowed = "allowed are all, or a list of icmp, esp, ah, and tcp, udp, sctp, udplite with a port or range: tcp/22,udp/8000-8099"
	if v == "all" {
		return nil, nil
	}
	var ports []store.Ports
	for _, part := range list(v) {
		name, numbers, hasPorts := strings.Cut(strings.ToLower(part), "/")
		p := store.Ports{Proto: name}
		number, known := protocol(name, true)
		if !known || hasPorts != nat.HasPorts(number) {
			return nil, fmt.Errorf("%q: %s", part, allowed)
		}
		if hasPorts {
			first, last, isRange := strings.Cut(numbers, "-")
			if !isRange {
				last = first
			}
			a, err := strconv.ParseUint(first, 10, 16)
			b, err2 := strconv.ParseUint(last, 10, 16)
			if err != nil || err2 != nil || a == 0 || b < a {
				return nil, fmt.Errorf("%q: ports are 1 to 65535, the first before the last", part)
			}
			p.First, p.Last = uint16(a), uint16(b)
		}
		ports = append(ports, p)
	}
	if len(ports) == 0 {
		return nil, fmt.Errorf("it is empty; %s", allowed)
	}
	return ports, nil
}

// parseAllow reads extip.allow; nil is everyone.
func parseAllow(v string) ([]netip.Prefix, error) {
	if v == "everyone" {
		return nil, nil
	}
	var prefixes []netip.Prefix
	for _, part := range list(v) {
		p, err := netip.ParsePrefix(part)
		if a, aerr := netip.ParseAddr(part); err != nil && aerr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is no CIDR; allowed are everyone, or a list of CIDRs and addresses", part)
		}
		prefixes = append(prefixes, p.Masked())
	}
	if len(prefixes) == 0 {
		return nil, fmt.Errorf("it is empty; allowed are everyone, or a list of CIDRs and addresses")
	}
	return prefixes, nil
}

// portsText and allowText are what parsePorts and parseAllow read back.
func portsText(ports []store.Ports) string {
	if len(ports) == 0 {
		return "all"
	}
	parts := make([]string, len(ports))
	for i, p := range ports {
		parts[i] = p.Proto
		if p.First > 0 {
			parts[i] += fmt.Sprintf("/%d", p.First)
		}
		if p.Last > p.First {
			parts[i] += fmt.Sprintf("-%d", p.Last)
		}
	}
	return strings.Join(parts, ",")
}

func allowText(prefixes []netip.Prefix) string {
	if len(prefixes) == 0 {
		return "everyone"
	}
	return join(prefixes)
}

// nobody is a client that there can't be, by whether it is IPv4.
var nobody = map[bool]netip.Prefix{true: netip.MustParsePrefix("0.0.0.0/32"), false: netip.MustParsePrefix("::/128")}

// natFilter is an endpoint's filter as the NAT rules know it, for its addresses
// of a family; nil if it has none. Who allows only clients of the other family
// allows none of this one.
func natFilter(f store.Filter, v4 bool) *nat.Filter {
	out := &nat.Filter{Reject: f.Refuse == store.RefuseReject}
	for _, p := range f.Ports {
		if number, ok := protocol(p.Proto, v4); ok {
			out.Ports = append(out.Ports, nat.Ports{Proto: number, First: p.First, Last: p.Last})
		}
	}
	for _, p := range f.Allow {
		if p.Addr().Is4() == v4 {
			out.Allow = append(out.Allow, p)
		}
	}
	if len(f.Allow) > 0 && len(out.Allow) == 0 {
		out.Allow = []netip.Prefix{nobody[v4]}
	}
	return out.Canonical()
}

// sameFilter tells whether two filters are the same in a record.
func sameFilter(a, b store.Filter) bool {
	return slices.Equal(a.Ports, b.Ports) && slices.Equal(a.Allow, b.Allow) && a.Refuse == b.Refuse
}
