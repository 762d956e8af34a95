package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/extip/extip/admin"
)

func (a *app) move() *cobra.Command {
	var drain bool
	cmd := &cobra.Command{
		Use:   "move ADDRESS CONTAINER",
		Short: "Let an external address lead to another running container",
		Long: `Let an external address lead to another running container, at once: no connection
is refused in between. Connections that are there break, so that clients connect
again, to the new container; with --drain they stay with the old one until they end.

HOST/CONTAINER is a container of another host of the cluster. The address is nobody's
for the moment in which the other host hears of it, which the report says.`,
		Example: `  extip move 203.0.113.56 web-new
  extip move 203.0.113.56 web-new --drain
  extip move 203.0.113.56 docker2/web`,
		Args:              words(2, 2),
		ValidArgsFunction: a.complete(a.completeAddresses, either(a.completeContainers, a.completeHosts)),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := parseAddress(cmd, args[0])
			if err != nil {
				return err
			}
			endpoint := args[1]
			if !strings.Contains(endpoint, "/") { // else the other host knows its containers
				if endpoint, err = a.endpointOf(cmd.Context(), endpoint); err != nil {
					return err
				}
			}
			r, err := a.plugin.Move(cmd.Context(), admin.MoveRequest{Address: addr, Endpoint: endpoint, Drain: drain, DryRun: a.dryRun})
			return a.report(cmd, r, err)
		},
	}
	cmd.Flags().BoolVar(&drain, "drain", false, "let connections stay where they are until they end")
	return a.networkFlag(cmd)
}
