package cli

import (
	"github.com/spf13/cobra"

	"github.com/extip/extip/admin"
)

func (a *app) attach() *cobra.Command {
	return a.networkFlag(&cobra.Command{
		Use:   "attach CONTAINER [ADDRESS...]",
		Short: "Give a running container further external addresses",
		Long: `Give a running container further external addresses: those that are named, or the
next of its network's pool. Nothing else of the container changes.

An address that is named is probed first, and refused if another host has it. It is
the container's until it is detached or the container stops; to be kept for longer,
it is to be reserved.`,
		Example: `  extip attach web
  extip attach web 203.0.113.60 2001:db8::60
  extip attach web --dry-run`,
		Args:              words(1, -1),
		ValidArgsFunction: a.complete(a.completeContainers, nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			addrs, err := parseAddresses(cmd, args[1:])
			if err != nil {
				return err
			}
			endpoint, err := a.endpointOf(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			r, err := a.plugin.Attach(cmd.Context(), admin.AttachRequest{Endpoint: endpoint, Addresses: addrs, DryRun: a.dryRun})
			return a.report(cmd, r, err)
		},
	})
}
