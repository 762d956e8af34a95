package cli

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/extip/extip/driver"
)

// A completer lists what a shell may offer, with descriptions.
type completer func(context.Context) []cobra.Completion

// complete is for the first argument what the first completer lists, and so on;
// the last one is for all that follow, without what is there. A verb with one
// argument of two kinds takes both.
func (a *app) complete(of ...completer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		a.prepare(cmd.OutOrStdout())
		ctx, cancel := a.briefly(cmd)
		defer cancel()
		if cmd.Args != nil && cmd.Args(cmd, append(slices.Clone(args), "")) != nil && len(args) > 0 && cmd.Args(cmd, args) == nil {
			return nil, cobra.ShellCompDirectiveNoFileComp // there are enough
		}
		return of[min(len(args), len(of)-1)](ctx), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlag is for a flag's value.
func (a *app) completeFlag(of completer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		a.prepare(cmd.OutOrStdout())
		ctx, cancel := a.briefly(cmd)
		defer cancel()
		return of(ctx), cobra.ShellCompDirectiveNoFileComp
	}
}

// nothing is for arguments that only the user knows.
func nothing(context.Context) []cobra.Completion { return nil }

// either lists what both do.
func either(x, y completer) completer {
	return func(ctx context.Context) []cobra.Completion { return append(x(ctx), y(ctx)...) }
}

func (a *app) completeAddresses(ctx context.Context) (list []cobra.Completion) {
	addrs, _ := a.addresses(ctx)
	for _, d := range addrs {
		list = append(list, cobra.CompletionWithDesc(d.External.String(), d.container()))
	}
	return list
}

// completeOwners are the containers that have addresses.
func (a *app) completeOwners(ctx context.Context) (list []cobra.Completion) {
	addrs, _ := a.addresses(ctx)
	for _, d := range addrs {
		if d.Container != "" {
			list = append(list, cobra.CompletionWithDesc(d.Container, d.External.String()))
		}
	}
	return list
}

// completeContainers are those on a network of extip.
func (a *app) completeContainers(ctx context.Context) (list []cobra.Completion) {
	networks, _ := a.plugin.Networks(ctx)
	containers, _ := a.engine.Containers(ctx)
	for _, c := range containers {
		if slices.ContainsFunc(networks, func(n driver.NetworkInfo) bool { return c.endpoints[n.ID] != "" }) {
			list = append(list, c.name)
		}
	}
	return list
}

// completeHosts are the beginnings of containers of other hosts.
func (a *app) completeHosts(ctx context.Context) (list []cobra.Completion) {
	hosts, _ := a.plugin.Hosts(ctx)
	for _, h := range hosts {
		if !h.Own {
			list = append(list, cobra.CompletionWithDesc(h.Name+"/", "a container of that host"))
		}
	}
	return list
}

func (a *app) completeReservations(ctx context.Context) (list []cobra.Completion) {
	records, _ := a.plugin.Reservations(ctx)
	for _, r := range records {
		list = append(list, r.Name)
	}
	return list
}

func (a *app) completeNetworks(ctx context.Context) (list []cobra.Completion) {
	networks, _ := a.plugin.Networks(ctx)
	names, _ := a.engine.Networks(ctx)
	for _, n := range networks {
		list = append(list, nameOf(names, n.ID))
	}
	return list
}
