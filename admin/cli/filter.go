package cli

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/extip/extip/admin"
	"github.com/extip/extip/driver"
)

func (a *app) ports() *cobra.Command {
	return a.filter(&cobra.Command{
		Use:   "ports CONTAINER all|PORTS",
		Short: "Say what may be reached of a running container",
		Long: `Say what may be reached of a running container by its external addresses: all, or a
list as in the option extip.ports. Connections that are open follow at once. What the
container opens itself is not concerned.`,
		Example: `  extip ports web tcp/80,tcp/443,icmp
  extip ports web all`,
	}, "all", func(q *admin.FilterRequest, value string) { q.Ports = value })
}

func (a *app) allow() *cobra.Command {
	return a.filter(&cobra.Command{
		Use:   "allow CONTAINER everyone|CIDRS",
		Short: "Say who may connect to a running container",
		Long: `Say who may connect to a running container by its external addresses: everyone, or a
list as in the option extip.allow. Connections that are open follow at once.`,
		Example: `  extip allow web 192.0.2.0/24,2001:db8::/32
  extip allow web everyone`,
	}, "everyone", func(q *admin.FilterRequest, value string) { q.Allow = value })
}

func (a *app) limit() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "limit ADDRESS|CONTAINER none|LIMIT",
		Short: "Say how many connections a running container may have",
		Long: `Say how many connections a running container may have, and how fast new ones may
come: none, or a list as in the option extip.limit. It holds for each of the
container's external addresses by itself, and for what the container opens. What is
beyond is dropped. Connections that are open already go on, and are not counted.`,
		Example: `  extip limit web connections=20000,rate=500/s
  extip limit 203.0.113.56 rate=50/s
  extip limit web none`,
		Args: words(2, 2),
		ValidArgsFunction: a.complete(either(a.completeAddresses, a.completeContainers),
			func(context.Context) []cobra.Completion { return []cobra.Completion{"none"} }),
		RunE: func(cmd *cobra.Command, args []string) error {
			endpoint, err := a.ownerOf(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			r, err := a.plugin.Limit(cmd.Context(), admin.LimitRequest{Endpoint: endpoint, Limit: args[1], DryRun: a.dryRun})
			return a.report(cmd, r, err)
		},
	}
	return a.networkFlag(cmd)
}

// ownerOf resolves an ADDRESS|CONTAINER argument to an endpoint.
func (a *app) ownerOf(ctx context.Context, word string) (id string, err error) {
	addr, err := netip.ParseAddr(word)
	if err != nil {
		return a.endpointOf(ctx, word)
	}
	all, err := a.addresses(ctx)
	if err != nil {
		return "", err
	}
	for _, d := range all {
		if d.External == addr && d.State != driver.StateDraining {
			return d.Endpoint, nil
		}
	}
	return "", fmt.Errorf("no container has %s", addr)
}

func (a *app) filter(cmd *cobra.Command, anything string, set func(*admin.FilterRequest, string)) *cobra.Command {
	cmd.Args = words(2, 2)
	cmd.ValidArgsFunction = a.complete(a.completeContainers, func(context.Context) []cobra.Completion { return []cobra.Completion{anything} })
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		endpoint, err := a.endpointOf(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		q := admin.FilterRequest{Endpoint: endpoint, DryRun: a.dryRun}
		set(&q, args[1])
		r, err := a.plugin.Filter(cmd.Context(), q)
		return a.report(cmd, r, err)
	}
	return a.networkFlag(cmd)
}
