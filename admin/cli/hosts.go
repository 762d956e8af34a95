package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/extip/extip/driver"
)

func (a *app) hosts() *cobra.Command {
	return &cobra.Command{
		Use:   "hosts",
		Short: "List the hosts that share their addresses with this one",
		Long: `List the hosts that share their addresses with this one, as this one knows them: how
many addresses each has, and since when it is alive, dead, or this host apart: then it
can't reach etcd, and claims nothing new.`,
		Example: `  extip hosts
  extip hosts --json | jq -r '.[] | select(.alive | not) | .name'`,
		Args:              words(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.plugin.Hosts(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(cmd, list, func(out io.Writer) {
				if len(list) == 0 {
					_, _ = fmt.Fprintln(out, "this host shares its addresses with no other; extip serve --cluster would")
					return
				}
				rows := make([][]string, len(list))
				for i, h := range list {
					name, version := h.Name, h.Version
					if h.Own {
						name += " (here)"
					}
					if version == "" {
						version = "-"
					}
					state, since := stateOf(h)
					rows[i] = []string{name, state, fmt.Sprint(h.Claims), a.ageOr(since), version}
				}
				table(out, a.width, []column{
					{title: "HOST", least: 8},
					{title: "STATE"},
					{title: "CLAIMS"},
					{title: "SINCE", spare: 1},
					{title: "VERSION", spare: 2},
				}, rows, a.paintHost)
			})
		},
	}
}

// States of a host.
const (
	hostAlive = "alive"
	hostDead  = "dead"
	hostApart = "apart"
)

func stateOf(h driver.Member) (state string, since time.Time) {
	switch {
	case !h.ApartSince.IsZero():
		return hostApart, h.ApartSince
	case h.Alive:
		return hostAlive, h.Seen
	default:
		return hostDead, h.Seen
	}
}

func (a *app) paintHost(title, cell string) string {
	switch {
	case title != "STATE":
		return cell
	case cell == hostAlive:
		return a.colored(green, cell)
	default:
		return a.colored(red, cell)
	}
}

// ageOr is "-" for a time that isn't known.
func (a *app) ageOr(since time.Time) string {
	if since.IsZero() {
		return "-"
	}
	return a.age(since)
}
