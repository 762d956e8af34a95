package driver

import (
	"errors"
	"fmt"
	"net/netip"
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

// checkFilter refuses what the rules would.
func checkFilter(f store.Filter) error {
	if n := max(1, len(f.Ports)) * max(1, len(f.Allow)); n > nat.MaxFilter {
		return fmt.Errorf("extip.ports, extip.allow: %d ranges of ports by %d CIDRs are more than %d", len(f.Ports), len(f.Allow), nat.MaxFilter)
	}
	return nil
}

// SetFilter changes what may be reached of a running endpoint, and by whom:
// ports and allow are in the form of the options extip.ports and extip.allow,
// "" leaves what is. Connections that are open follow at once.
func (d *Driver) SetFilter(id, ports, allow string, dryRun bool) (Report, error) {
	var o filterOptions
	var err error
	if ports != "" {
		o.ports = true
		if o.Ports, err = parsePorts(ports); err != nil {
			return Report{}, fmt.Errorf("extip.ports=%s: %w", ports, err)
		}
	}
	if allow != "" {
		o.allow = true
		if o.Allow, err = parseAllow(allow); err != nil {
			return Report{}, fmt.Errorf("extip.allow=%s: %w", allow, err)
		}
	}
	return d.changeFilter(id, o, dryRun)
}

// changeFilter gives a running endpoint what of a filter there is in o.
func (d *Driver) changeFilter(id string, o filterOptions, dryRun bool) (Report, error) {
	e, err := d.find(id)
	if err != nil {
		return Report{}, err
	}
	r := newReport()
	err = d.withEndpoint(e.network, e.id, func(n *network, e *endpoint) error {
		before, rec := e.rec, e.rec
		rec.Filter = o.over(rec.Filter)
		if err := checkFilter(rec.Filter); err != nil {
			return err
		}
		r.changed(picture(n.rec, before, e.withheld), picture(n.rec, rec, e.withheld))
		if len(r.Done) == 0 {
			r.left("that is how it is already")
		}
		r.untilStop(before)
		if dryRun || len(r.Done) == 0 {
			return nil
		}
		return d.setFilter(n, e, rec)
	})
	return r, err
}

// setFilter records a filter and has the mappings follow, or after an error
// leaves all as it was; e.mu is held. Flows must not be forgotten: see
// nat.Filter.
func (d *Driver) setFilter(n *network, e *endpoint, rec store.Endpoint) error {
	before := e.rec
	if err := d.store.PutFilter(rec, before.Filter); err != nil {
		return err
	}
	d.setRecord(e, rec)
	if before.State != store.Published {
		return nil
	}
	set := func(to store.Endpoint) error { return d.kernel.NAT.Add(mappings(to)...) }
	steps := append([]step{{
		name: "filter",
		do:   func() error { return set(rec) },
		undo: func() error { return set(before) },
	}}, d.noteSteps(n.rec, before, rec)...)
	err := up(steps)
	if err == nil {
		return nil
	}
	undo := errors.Join(down(steps), d.store.PutFilter(before, before.Filter))
	if undo == nil {
		d.setRecord(e, before)
	}
	return errors.Join(err, undo)
}
