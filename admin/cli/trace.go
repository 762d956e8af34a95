package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/extip/extip/doctor"
)

func (a *app) trace() *cobra.Command {
	var from string
	var live bool
	var duration time.Duration
	cmd := &cobra.Command{
		Use:   "trace ADDRESS[:PORT[/PROTOCOL]]",
		Short: "Say what becomes of a packet to an external address, step by step",
		Long: `Follow the first packet of a connection to an external address by what the kernel
says: parent, address, translation, firewalls, route, bridge, container, and back. The
last step is the one where it ends, if any does. No packet is sent.

With --live follow packets that there are, to the address and back from its container:
what they meet in the tables of nftables, a line each, until interrupted. Ten packets a
second are followed at most, each way. A line begins with which packet it is about;
what that looks like is told when it changes.

Exit code 0: it arrives; 1: it does not.`,
		Example: `  extip trace 203.0.113.56
  extip trace 203.0.113.56:443
  extip trace '[2001:db8::56]:53/udp' --from 2001:db8::9
  extip trace --live 203.0.113.56:443 --for 30s`,
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
			switch {
			case live && from != "":
				return usage(cmd, "--from is not for --live")
			case live:
				return a.follow(cmd, q, duration)
			case duration != 0:
				return usage(cmd, "--for is for --live only")
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
	cmd.Flags().BoolVar(&live, "live", false, "follow packets that there are, until interrupted")
	cmd.Flags().DurationVar(&duration, "for", 0, "how long --live goes on (default: until interrupted)")
	return cmd
}

// follow prints what packets meet, for some time or until interrupted.
func (a *app) follow(cmd *cobra.Command, q doctor.Question, duration time.Duration) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	if duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, duration)
		defer cancel()
	}
	headers := map[string]string{} // by packet
	return a.plugin.Live(ctx, q, func(s doctor.Sighting) error {
		if a.json {
			encode := json.NewEncoder(out)
			encode.SetEscapeHTML(false) // there is a ">" in headers
			return encode.Encode(s)
		}
		const remembered = 1000
		if len(headers) > remembered {
			clear(headers)
		}
		if s.Header != "" && s.Header != headers[s.Packet] {
			headers[s.Packet] = s.Header
			_, _ = fmt.Fprintln(out, a.fit(fmt.Sprintf("%s %s %s", s.Packet, s.Time.Local().Format("15:04:05.000"), s.Header)))
		}
		_, err := fmt.Fprintln(out, a.fit(fmt.Sprintf("%s   %s %s %s: %s: %s", s.Packet, s.Family, s.Table, s.Chain, s.Verdict, s.Rule)))
		return err
	})
}

// fit cuts a line to the terminal's width.
func (a *app) fit(line string) string {
	if a.width == 0 {
		return line
	}
	return cut(line, a.width)
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
