package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func (a *app) check() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Compare the kernel with the records; exit 1 if they differ",
		Long: `Compare what is in the kernel with what is recorded, and list the differences.
Nothing is changed: "extip reconcile" does that, and the plugin itself, within a second
of most differences.

Exit code 0: none; 1: there are some; 3: the plugin can't be reached.`,
		Example: `  extip check
  extip check --json`,
		Args:              words(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lines, err := a.plugin.Check(cmd.Context())
			if err != nil {
				return err
			}
			err = a.print(cmd, lines, func(out io.Writer) {
				for _, line := range lines {
					_, _ = fmt.Fprintln(out, a.colored(red, line))
				}
				if len(lines) == 0 {
					_, _ = fmt.Fprintln(out, "the kernel is as recorded")
				}
			})
			if err == nil && len(lines) > 0 {
				return errDifference
			}
			return err
		},
	}
}
