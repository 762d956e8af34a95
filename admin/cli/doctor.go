package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/extip/extip/doctor"
)

func (a *app) doctor() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Look whether this host is fit, and say what helps if it is not",
		Long: `Look for what keeps packets from containers: settings of the host, other firewalls,
other owners of addresses, missing interfaces. Each line says what was seen and why
that matters; below it is a command that helps. Nothing is changed.

Exit code 0: all is well, or may be; 1: something does not work.`,
		Example:           "  extip doctor\n  extip doctor --json",
		Args:              words(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings, err := a.plugin.Doctor(cmd.Context())
			if err != nil {
				return err
			}
			err = a.print(cmd, findings, func(out io.Writer) { a.paintLines(out, doctor.Report(findings)) })
			if err == nil && slices.ContainsFunc(findings, func(f doctor.Finding) bool { return f.Level == doctor.Fail }) {
				return errDifference
			}
			return err
		},
	}
}

// paintLines colours lines by how they begin.
func (a *app) paintLines(out io.Writer, text string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "fail"), strings.HasPrefix(line, "ENDS"):
			line = a.colored(red, line)
		case strings.HasPrefix(line, "warn"):
			line = a.colored(yellow, line)
		}
		_, _ = fmt.Fprintln(out, line)
	}
}
