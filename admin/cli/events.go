package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/extip/extip/driver"
)

func (a *app) events() *cobra.Command {
	return &cobra.Command{
		Use:   "events",
		Short: "Print what happens, as it happens, until interrupted",
		Long: `Print what happens to addresses and networks, a line each, as it happens and until
interrupted. With --json each line is an object.`,
		Example: `  extip events
  extip events --json | jq 'select(.kind == "conflict")'`,
		Args:              words(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			return a.plugin.Events(cmd.Context(), func(e driver.Event) error {
				if a.json {
					return json.NewEncoder(out).Encode(e)
				}
				_, err := fmt.Fprintln(out, eventLine(e))
				return err
			})
		},
	}
}

func eventLine(e driver.Event) string {
	parts := []string{e.Time.Local().Format(time.DateTime), e.Kind}
	if e.Address.IsValid() {
		parts = append(parts, e.Address.String())
	}
	switch {
	case e.Container != "":
		parts = append(parts, "container", e.Container)
	case e.Endpoint != "":
		parts = append(parts, "endpoint", short(e.Endpoint))
	case e.Network != "":
		parts = append(parts, "network", short(e.Network))
	}
	line := strings.Join(parts, " ")
	if e.Text != "" {
		line += ": " + e.Text
	}
	return line
}
