package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// What is checked here ends up in rules, some of them read by iptables-restore
// or listed and loaded again by nft, where a space, a line break or a wildcard
// would mean something else.

// Usable returns the part of a state that a backend can write, and an error
// for the rest: what is wrong in itself, and every further network of an id or
// mapping of an external address.
func (s State) Usable() (good State, err error) {
	var errs []error
	ids := map[string]bool{}
	for _, n := range s.Networks {
		err := checkNetwork(n)
		if err == nil && ids[n.ID] {
			err = fmt.Errorf("nat: network %q: is there twice", n.ID)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ids[n.ID] = true
		good.Networks = append(good.Networks, n)
	}
	seen := map[netip.Addr]bool{}
	for _, m := range s.Mappings {
		err := checkMapping(m)
		if err == nil && seen[m.External] {
			err = fmt.Errorf("nat: mapping %q: is there twice", m.External)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		seen[m.External] = true
		good.Mappings = append(good.Mappings, m)
	}
	return good, errors.Join(errs...)
}

func checkNetwork(n Network) error {
	err := errors.Join(checkID(n.ID), checkInterface("bridge", n.Bridge))
	for _, name := range n.Uplinks {
		err = errors.Join(err, checkInterface("uplink", name))
	}
	seen := map[bool]bool{} // by whether it is IPv4
	for _, p := range n.Subnets {
		f := p.Addr().Is4()
		if !p.IsValid() || p.Addr().Is4In6() {
			err = errors.Join(err, fmt.Errorf("subnet %q is invalid", p))
		}
		if seen[f] {
			err = errors.Join(err, fmt.Errorf("subnet %q is the second of its family", p))
		}
		seen[f] = true
	}
	if err != nil {
		return fmt.Errorf("nat: network %q: %w", n.ID, err)
	}
	return nil
}

func checkMapping(m Mapping) error {
	err := errors.Join(checkID(m.Endpoint), checkAddr("external", m.External), checkAddr("internal", m.Internal))
	if err == nil && m.External.Is4() != m.Internal.Is4() {
		err = fmt.Errorf("internal address %q is of the other family", m.Internal)
	}
	if ferr := m.Filter.check(m.External); ferr != nil {
		err = errors.Join(err, fmt.Errorf("filter: %w", ferr))
	}
	if lerr := m.Limit.check(); lerr != nil {
		err = errors.Join(err, fmt.Errorf("limit: %w", lerr))
	}
	if err != nil {
		return fmt.Errorf("nat: mapping %q: %w", m.External, err)
	}
	return nil
}

// checkID allows what is safe in a rule's comment and leaves room for it.
func checkID(id string) error {
	const maxID = 12
	ok := id != "" && len(id) <= maxID
	for _, c := range []byte(id) {
		ok = ok && ('0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z')
	}
	if !ok {
		return fmt.Errorf("id %q: need 1 to %d letters and digits", id, maxID)
	}
	return nil
}

// checkInterface allows the names that the kernel does (dev_valid_name: 15
// bytes, no space, '/' or ':'), but none that a tool takes for something
// else: "+" at the end is iptables' wildcard, "*" is nft's.
func checkInterface(what, name string) error {
	const maxName = 15 // IFNAMSIZ less the final zero
	bad := name == "" || len(name) > maxName || name == "." || name == ".." || name[0] == '-' || name[0] == '!' ||
		strings.HasSuffix(name, "+") || strings.ContainsAny(name, "/:\"'\\`*")
	for _, c := range []byte(name) {
		bad = bad || c <= ' ' || c >= 0x7f
	}
	if bad {
		return fmt.Errorf("%s %q is no usable interface name", what, name)
	}
	return nil
}

func checkAddr(what string, a netip.Addr) error {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return fmt.Errorf("%s address %q is unusable", what, a)
	}
	return nil
}
