package cli

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/extip/extip/driver"
)

// namedNetwork is one with its name of the engine's.
type namedNetwork struct {
	driver.NetworkInfo
	Name string `json:"name,omitempty"`
}

func (a *app) networks() *cobra.Command {
	return &cobra.Command{
		Use:               "networks",
		Short:             "List the networks and how full their pools are",
		Example:           "  extip networks",
		Args:              words(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			infos, err := a.plugin.Networks(cmd.Context())
			if err != nil {
				return err
			}
			names := a.networkNames(cmd.Context())
			list := make([]namedNetwork, len(infos))
			rows := make([][]string, len(infos))
			for i, n := range infos {
				list[i] = namedNetwork{n, names[n.ID]}
				pool, free := "-", "-"
				if n.Pool != "" {
					pool, free = n.Pool, fmt.Sprintf("%d/%d", n.Free, n.Size)
				}
				rows[i] = []string{nameOf(names, n.ID), joined(n.Subnets), n.Parent, pool, free, fmt.Sprint(n.Endpoints)}
			}
			slices.SortFunc(rows, func(x, y []string) int { return strings.Compare(x[0], y[0]) })
			return a.print(cmd, list, func(out io.Writer) {
				if len(list) == 0 {
					_, _ = fmt.Fprintln(out, "there is no network; docker network create -d extip makes one")
					return
				}
				table(out, a.width, []column{
					{title: "NETWORK", least: 7},
					{title: "SUBNET", least: 12, spare: 3},
					{title: "PARENT", least: 6, spare: 2},
					{title: "POOL", least: 12, spare: 1},
					{title: "FREE"},
					{title: "ENDPOINTS"},
				}, rows, nil)
			})
		},
	}
}

func joined(prefixes []netip.Prefix) string {
	var s []string
	for _, p := range prefixes {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}
