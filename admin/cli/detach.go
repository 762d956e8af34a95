package cli

import (
	"github.com/spf13/cobra"

	"github.com/extip/extip/admin"
)

func (a *app) detach() *cobra.Command {
	return &cobra.Command{
		Use:   "detach ADDRESS",
		Short: "Take an external address from its container",
		Long: `Take an external address from its container, which goes on running. Connections
through it end, and it is free for others unless it is reserved.`,
		Example:           "  extip detach 203.0.113.60",
		Args:              words(1, 1),
		ValidArgsFunction: a.complete(a.completeAddresses),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := parseAddress(cmd, args[0])
			if err != nil {
				return err
			}
			r, err := a.plugin.Detach(cmd.Context(), admin.DetachRequest{Address: addr, DryRun: a.dryRun})
			return a.report(cmd, r, err)
		},
	}
}
