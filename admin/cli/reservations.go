package cli

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) reservations() *cobra.Command {
	return &cobra.Command{
		Use:   "reservations",
		Short: "List the names that keep addresses",
		Long: `List the names that keep addresses, and which containers have those now. A
container asks for one by the option extip.reservation.`,
		Example:           "  extip reservations",
		Args:              words(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.plugin.Reservations(cmd.Context())
			if err != nil {
				return err
			}
			used, err := a.addresses(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(cmd, list, func(out io.Writer) {
				if len(list) == 0 {
					_, _ = fmt.Fprintln(out, "nothing is reserved")
					return
				}
				rows := make([][]string, len(list))
				for i, r := range list {
					rows[i] = []string{r.Name, strings.Join(texts(r.Addresses), ","), owners(used, r.Addresses), a.age(r.Created)}
				}
				table(out, a.width, []column{
					{title: "NAME", least: 8},
					{title: "ADDRESSES"},
					{title: "CONTAINER", least: 9, spare: 2},
					{title: "AGE", spare: 1},
				}, rows, nil)
			})
		},
	}
}

// owners names the containers that have any of some addresses.
func owners(used []address, addrs []netip.Addr) string {
	var names []string
	seen := map[string]bool{}
	for _, want := range addrs {
		for _, d := range used {
			if d.External == want && !seen[d.Endpoint] {
				seen[d.Endpoint] = true
				names = append(names, d.container())
			}
		}
	}
	if len(names) == 0 {
		return "-"
	}
	return strings.Join(names, ",")
}

func texts(addrs []netip.Addr) []string {
	s := make([]string, len(addrs))
	for i, a := range addrs {
		s[i] = a.String()
	}
	return s
}
