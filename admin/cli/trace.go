package cli

import (
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/extip/extip/doctor"
)

func (a *app) trace() *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use:   "trace ADDRESS[:PORT[/PROTOCOL]]",
		Short: "Say what becomes of a packet to an external address, step by step",
		Long: `Follow the first packet of a connection to an external address by what the kernel
says: parent, address, translation, firewalls, route, bridge, container, and back. The
last step is the one where it ends, if any does. No packet is sent.

Exit code 0: it arrives; 1: it does not.`,
		Example: `  extip trace 203.0.113.56
  extip trace 203.0.113.56:443
  extip trace '[2001:db8::56]:53/udp' --from 2001:db8::9`,
		Args:              words(1, 1),
		ValidArgsFunction: a.complete(a.completeAddresses),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := parseTarget(cmd, args[0])
			if err == nil && from != "" {
				q.From, err = parseAddress(cmd, from)
			}
			if err != nil {
				return err
			}
			steps, err := a.plugin.Trace(cmd.Context(), q)
			if err != nil {
				return err
			}
			err = a.print(cmd, steps, func(out io.Writer) { a.paintLines(out, doctor.Text(steps)) })
			if n := len(steps); err == nil && n > 0 && !steps[n-1].OK {
				return errDifference
			}
			return err
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "address of the sender (default: somebody beyond the parent)")
	return cmd
}

// parseTarget reads ADDRESS, ADDRESS:PORT or ADDRESS:PORT/PROTOCOL.
func parseTarget(cmd *cobra.Command, word string) (doctor.Question, error) {
	var q doctor.Question
	rest, proto, hasProto := strings.Cut(word, "/")
	if to, err := netip.ParseAddrPort(rest); err == nil {
		q.To, q.Port = to.Addr().Unmap(), to.Port()
		number, known := map[string]uint8{"": 6, "tcp": 6, "udp": 17, "sctp": 132}[proto]
		if !known {
			return q, usage(cmd, "%q is no protocol with ports that is known: tcp, udp, sctp", proto)
		}
		q.Proto = number
		return q, nil
	}
	if hasProto {
		return q, usage(cmd, "%q: a protocol needs a port before it", word)
	}
	var err error
	q.To, err = parseAddress(cmd, strings.Trim(word, "[]"))
	return q, err
}
