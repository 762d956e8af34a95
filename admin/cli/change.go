package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/extip/extip/driver"
)

// report prints what a change has done, also where it then failed.
func (a *app) report(cmd *cobra.Command, r driver.Report, err error) error {
	if err != nil && len(r.Done) == 0 {
		return err
	}
	perr := a.print(cmd, r, func(out io.Writer) {
		for _, line := range r.Done {
			_, _ = fmt.Fprintln(out, a.paintChange(line))
		}
		for _, line := range r.Left {
			_, _ = fmt.Fprintln(out, a.colored(yellow, "  "+line))
		}
		switch {
		case len(r.Done)+len(r.Left) == 0:
			_, _ = fmt.Fprintln(out, "nothing to do")
		case a.dryRun:
			_, _ = fmt.Fprintln(out, "nothing was changed: it is a dry run")
		}
	})
	if err != nil {
		return err
	}
	return perr
}

// paintChange colours a line by what it begins with.
func (a *app) paintChange(line string) string {
	switch {
	case strings.HasPrefix(line, "+ "):
		return a.colored(green, line)
	case strings.HasPrefix(line, "- "):
		return a.colored(red, line)
	default:
		return line
	}
}

// networkFlag lets a verb that takes a CONTAINER be told on which network.
func (a *app) networkFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&a.network, "network", "", "which network's, where the container is on several; its name or id")
	_ = cmd.RegisterFlagCompletionFunc("network", a.completeFlag(a.completeNetworks))
	return cmd
}
