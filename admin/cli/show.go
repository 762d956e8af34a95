package cli

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/extip/extip/driver"
)

func (a *app) show() *cobra.Command {
	return &cobra.Command{
		Use:   "show ADDRESS|CONTAINER",
		Short: "Say everything about an address, or those of a container",
		Example: `  extip show 203.0.113.56
  extip show web`,
		Args:              words(1, 1),
		ValidArgsFunction: a.complete(either(a.completeAddresses, a.completeOwners)),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := a.meant(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if len(list) == 0 {
				if _, err := netip.ParseAddr(args[0]); err == nil {
					return fmt.Errorf("no container has %s", args[0])
				}
				return fmt.Errorf("%q is no container that has an external address", args[0])
			}
			return a.print(cmd, list, func(out io.Writer) {
				for i, d := range list {
					if i > 0 {
						_, _ = fmt.Fprintln(out)
					}
					a.describe(out, d)
				}
			})
		},
	}
}

func (a *app) describe(out io.Writer, d address) {
	line := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(out, "  %-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	_, _ = fmt.Fprintln(out, d.External)
	line("state", "%s, the container's for %s", a.paintState("STATE", d.state()), a.age(d.Since))
	if d.Reason != "" {
		line("", "%s", d.Reason)
	}
	if d.Container != "" {
		line("container", "%s", d.Container)
	}
	line("endpoint", "%s", short(d.Endpoint))
	line("internal", "%s", text(d.Internal))
	line("network", "%s", d.network())
	switch {
	case d.State == driver.StateDraining:
	case d.On == d.Parent:
		line("on", "%s", d.On)
	case d.On == "":
		line("on", "no interface: it is routed to this host by %s", d.Parent)
	default:
		line("on", "%s, by way of %s", d.On, d.Parent)
	}
	if d.Reservation != "" {
		line("reservation", "%s", d.Reservation)
	}
	if d.Detour {
		line("source", "gateway: another network has the container's default route (else %s)", d.Source)
	} else {
		line("source", "%s", d.Source)
	}
	if d.Egress != "" {
		line("egress", "%s", d.Egress)
	}
	line("ports", "%s", cmp.Or(d.Ports, "all"))
	line("allow", "%s", cmp.Or(d.Allow, "everyone"))
	if d.Refuse != "" {
		line("the rest", "%s", d.Refuse)
	}
	line("limit", "%s", cmp.Or(d.Limit, "none"))
	if c := d.Counters; c != nil {
		line("connections", "%d in, %d out", c.Incoming, c.Outgoing)
		line("refused", "%d packets, %d bytes", c.Refused.Packets, c.Refused.Bytes)
		if d.Limit != "" {
			line("limited", "%d packets in, %d out", c.LimitedIn, c.LimitedOut)
		}
		if c.Received != nil && c.Sent != nil {
			line("received", "%d packets, %d bytes", c.Received.Packets, c.Received.Bytes)
			line("sent", "%d packets, %d bytes", c.Sent.Packets, c.Sent.Bytes)
		}
	}
	if c := d.Conflicts; c != nil {
		line("conflicts", "%d, the last one with %s, %s ago", c.Count, c.MAC, a.age(c.Last))
	}
}
