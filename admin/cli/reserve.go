package cli

import (
	"github.com/spf13/cobra"

	"github.com/extip/extip/admin"
)

func (a *app) reserve() *cobra.Command {
	return &cobra.Command{
		Use:   "reserve NAME ADDRESS...",
		Short: "Keep addresses for containers that give a name",
		Long: `Keep addresses under a name, beside those that it keeps already. They are given to
nobody but containers with the option extip.reservation=NAME.`,
		Example: `  extip reserve mail 203.0.113.60
  docker run -d --network name=web,driver-opt=extip.reservation=mail mailserver`,
		Args:              words(2, -1),
		ValidArgsFunction: a.complete(a.completeReservations, a.completeAddresses),
		RunE: func(cmd *cobra.Command, args []string) error {
			addrs, err := parseAddresses(cmd, args[1:])
			if err != nil {
				return err
			}
			r, err := a.plugin.Reserve(cmd.Context(), admin.ReserveRequest{Name: args[0], Addresses: addrs, DryRun: a.dryRun})
			return a.report(cmd, r, err)
		},
	}
}

func (a *app) unreserve() *cobra.Command {
	return &cobra.Command{
		Use:               "unreserve NAME",
		Short:             "Keep addresses under a name no longer",
		Long:              "Keep addresses under a name no longer. A container that has them now goes on having\nthem.",
		Example:           "  extip unreserve mail",
		Args:              words(1, 1),
		ValidArgsFunction: a.complete(a.completeReservations),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.plugin.Unreserve(cmd.Context(), admin.UnreserveRequest{Name: args[0], DryRun: a.dryRun})
			return a.report(cmd, r, err)
		},
	}
}
