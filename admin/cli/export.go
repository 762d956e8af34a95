package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/extip/extip/export"
)

func (a *app) export() *cobra.Command {
	formats := export.Formats()
	format := formats[0]
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write what extip does on this host so that it works without extip",
		Long: `Write addresses and rules as a file for nft, as a shell script with iptables-restore,
or as JSON. The containers' own links are the engine's and not part of it.`,
		Example: `  extip export > extip.nft
  extip export --format iptables > extip.sh`,
		Args:              words(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(formats, format) {
				return usage(cmd, "--format=%s: allowed are %s", format, strings.Join(formats, ", "))
			}
			text, err := a.plugin.Export(cmd.Context(), format)
			if err != nil {
				return err
			}
			return a.print(cmd, text, func(out io.Writer) { _, _ = fmt.Fprint(out, text) })
		},
	}
	cmd.Flags().StringVar(&format, "format", format, strings.Join(formats, ", "))
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
