package cli

import (
	"github.com/spf13/cobra"

	"github.com/extip/extip/admin"
)

func (a *app) adopt() *cobra.Command {
	return &cobra.Command{
		Use:   "adopt",
		Short: "Take over external addresses that were set up by hand",
		Long: `Find addresses that were added to an interface and led to a container of an extip
network by iptables rules (DNAT in PREROUTING, SNAT in POSTROUTING), record them as the
container's, and remove the rules and the hand-made address. No packet is lost. What
leads elsewhere, or is not understood, stays, and is listed.`,
		Example: `  extip adopt --dry-run
  extip adopt`,
		Args:              words(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.plugin.Adopt(cmd.Context(), admin.AdoptRequest{DryRun: a.dryRun})
			return a.report(cmd, r, err)
		},
	}
}
