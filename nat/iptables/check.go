package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/extip/extip/nat"
)

// What is checked here ends up in the input of iptables-restore, where a
// space or a line break would start something else.

// checkNetworks returns the networks that can be written, and an error for
// the others.
func checkNetworks(ns []nat.Network) (good []nat.Network, err error) {
	var errs []error
	for _, n := range ns {
		if err := checkNetwork(n); err != nil {
			errs = append(errs, err)
			continue
		}
		good = append(good, n)
	}
	return good, errors.Join(errs...)
}

func checkNetwork(n nat.Network) error {
	err := errors.Join(checkID(n.ID), checkInterface("bridge", n.Bridge))
	if !n.Internal {
		err = errors.Join(err, checkInterface("parent", n.Parent))
	}
	seen := map[family]bool{}
	for _, p := range n.Subnets {
		f := familyOf(p.Addr())
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

func checkMapping(m nat.Mapping) error {
	err := errors.Join(checkID(m.Endpoint), checkAddr("external", m.External), checkAddr("internal", m.Internal))
	if err == nil && familyOf(m.External) != familyOf(m.Internal) {
		err = fmt.Errorf("internal address %q is of the other family", m.Internal)
	}
	if err != nil {
		return fmt.Errorf("nat: mapping %q: %w", m.External, err)
	}
	return nil
}

// checkMappings returns the mappings that can be written, and an error for
// the others: those that are wrong in themselves, and every further one of an
// external address.
func checkMappings(ms []nat.Mapping) (good []nat.Mapping, err error) {
	var errs []error
	seen := map[netip.Addr]bool{}
	for _, m := range ms {
		err := checkMapping(m)
		if err == nil && seen[m.External] {
			err = fmt.Errorf("nat: mapping %q: is there twice", m.External)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		seen[m.External] = true
		good = append(good, m)
	}
	return good, errors.Join(errs...)
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
// bytes, no space, '/' or ':'), but none that iptables takes for something
// else: "+" at the end is its wildcard.
func checkInterface(what, name string) error {
	const maxName = 15 // IFNAMSIZ less the final zero
	bad := name == "" || len(name) > maxName || name == "." || name == ".." || name[0] == '-' || name[0] == '!' ||
		strings.HasSuffix(name, "+") || strings.ContainsAny(name, "/:\"'\\`")
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
