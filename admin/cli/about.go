package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/extip/extip/admin"
)

// versions are those of the two sides.
type versions struct {
	Client string       `json:"client"`
	Plugin *admin.About `json:"plugin,omitempty"`
	Error  string       `json:"error,omitempty"`
}

func (a *app) about() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this program and of the plugin that runs",
		Long: `Print the versions of this program and of the plugin that runs. That none does
is said, and no error; "extip --version" doesn't ask.`,
		Example:           "  extip version",
		Args:              words(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.briefly(cmd)
			defer cancel()
			v := versions{Client: a.version}
			if about, err := a.plugin.About(ctx); err != nil {
				v.Error = err.Error()
			} else {
				v.Plugin = &about
			}
			return a.print(cmd, v, func(out io.Writer) {
				_, _ = fmt.Fprintln(out, "client", v.Client)
				if p := v.Plugin; p != nil {
					_, _ = fmt.Fprintf(out, "plugin %s, API %d, %s, up for %s\n", p.Version, p.API, p.Backend, a.age(p.Started))
				} else {
					_, _ = fmt.Fprintln(out, v.Error)
				}
			})
		},
	}
}
