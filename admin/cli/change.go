package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/extip/extip/driver"
)

// report prints what a change has done, also where it then failed: each line
// after did, or after would if nothing is changed.
func (a *app) report(cmd *cobra.Command, r driver.Report, err error, did, would string) error {
	if err != nil && len(r.Done) == 0 {
		return err
	}
	perr := a.print(cmd, r, func(out io.Writer) {
		mark := did
		if a.dryRun {
			mark = would
		}
		for _, line := range r.Done {
			_, _ = fmt.Fprintln(out, mark+line)
		}
		for _, line := range r.Left {
			_, _ = fmt.Fprintln(out, a.colored(yellow, "left: "+line))
		}
		if len(r.Done)+len(r.Left) == 0 {
			_, _ = fmt.Fprintln(out, "nothing to do")
		}
	})
	if err != nil {
		return err
	}
	return perr
}

// networkFlag lets a verb that takes a CONTAINER be told on which network.
func (a *app) networkFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&a.network, "network", "", "which network's, where the container is on several; its name or id")
	_ = cmd.RegisterFlagCompletionFunc("network", a.completeFlag(a.completeNetworks))
	return cmd
}
