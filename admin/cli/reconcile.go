package cli

import (
	"github.com/spf13/cobra"

	"github.com/extip/extip/admin"
)

func (a *app) reconcile() *cobra.Command {
	return &cobra.Command{
		Use:   "reconcile",
		Short: "Make the kernel match the records now",
		Long: `Make the kernel match the records now, and print what was not as it should be. The
plugin does so by itself, at hints and every --reconcile-interval.`,
		Example:           "  extip reconcile",
		Args:              words(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.plugin.Reconcile(cmd.Context(), admin.ReconcileRequest{DryRun: a.dryRun})
			return a.report(cmd, r, err)
		},
	}
}
