package cli

import (
	"cmp"
	"context"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/extip/extip/driver"
)

// address is one with what the engine knows of it.
type address struct {
	driver.Address
	NetworkName string `json:"network_name,omitempty"`
}

func (d address) network() string {
	if d.NetworkName != "" {
		return d.NetworkName
	}
	return short(d.Network)
}

// container is the name, or the beginning of the endpoint's id.
func (d address) container() string {
	if d.Container != "" {
		return d.Container
	}
	return short(d.Endpoint)
}

// addresses asks the plugin for all, and the engine for the names of their
// networks, and of containers that the plugin doesn't know yet, or never learns
// if it may not ask the engine. If the engine can't be asked, there are none.
func (a *app) addresses(ctx context.Context) ([]address, error) {
	list, err := a.plugin.Addresses(ctx)
	if err != nil {
		return nil, err
	}
	names, nameless := a.networkNames(ctx), false
	named := make([]address, len(list))
	for i, d := range list {
		named[i] = address{d, names[d.Network]}
		nameless = nameless || d.Container == ""
	}
	if nameless {
		a.nameContainers(ctx, named)
	}
	return named, nil
}

func (a *app) nameContainers(ctx context.Context, list []address) {
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	containers, _ := a.engine.Containers(ctx)
	names := map[string]string{}
	for _, c := range containers {
		for _, endpoint := range c.endpoints {
			names[endpoint] = c.name
		}
	}
	for i := range list {
		list[i].Container = cmp.Or(list[i].Container, names[list[i].Endpoint])
	}
}

// networkNames asks the engine, which may not answer.
func (a *app) networkNames(ctx context.Context) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	names, _ := a.engine.Networks(ctx)
	return names
}

// meant are the addresses that a word means: one itself, or those of a
// container, by its name or by a beginning of its or its endpoint's id.
func (a *app) meant(ctx context.Context, word string) ([]address, error) {
	all, err := a.addresses(ctx)
	if err != nil {
		return nil, err
	}
	if addr, err := netip.ParseAddr(word); err == nil {
		return matching(all, func(d address) bool { return d.External == addr }), nil
	}
	found := matching(all, func(d address) bool { return d.Container == word })
	if len(found) > 0 {
		return found, nil
	}
	// A name that the plugin hasn't learned yet, or an id.
	c, err := a.engine.Container(ctx, word)
	if err == nil {
		return matching(all, func(d address) bool { return c.endpoints[d.Network] == d.Endpoint }), nil
	}
	if len(word) >= 12 {
		found = matching(all, func(d address) bool { return strings.HasPrefix(d.Endpoint, word) })
	}
	return found, nil
}

func matching(all []address, ok func(address) bool) []address {
	found := []address{}
	for _, d := range all {
		if ok(d) {
			found = append(found, d)
		}
	}
	return found
}

// parseAddress reads an ADDRESS argument.
func parseAddress(cmd *cobra.Command, word string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(word)
	if err != nil || addr.Zone() != "" {
		return addr, usage(cmd, "%q is no IP address", word)
	}
	return addr.Unmap(), nil
}

func parseAddresses(cmd *cobra.Command, words []string) (list []netip.Addr, err error) {
	for _, word := range words {
		addr, err := parseAddress(cmd, word)
		if err != nil {
			return nil, err
		}
		list = append(list, addr)
	}
	return list, nil
}
