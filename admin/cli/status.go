package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/extip/extip/driver"
)

func (a *app) status() *cobra.Command {
	var watch bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "List the external addresses, a line each",
		Long: `List the external addresses that containers have, a line each.

IN and OUT are connections begun, REFUSED is packets that a filter kept out, RECEIVED
and SENT are bytes, if the plugin runs with --accounting. On a narrow terminal some
columns are left out; extip show has them all.

An address that is withheld is not reachable now; why is said below the list. One
that is lost is not either: another host of the cluster has it. One that drains
belongs to another container already, and stays with this one only for connections
that were there before.`,
		Example: `  extip status
  extip status --watch
  extip status --json | jq -r '.[] | select(.state != "published") | .external'`,
		Args:              words(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !watch {
				return a.printStatus(cmd)
			}
			if interval < 100*time.Millisecond {
				return usage(cmd, "--interval=%s: allowed is 100ms and more", interval)
			}
			return a.watch(cmd, interval, a.printStatus)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until interrupted")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "between two looks of --watch")
	return cmd
}

func (a *app) printStatus(cmd *cobra.Command) error {
	list, err := a.addresses(cmd.Context())
	if err != nil {
		return err
	}
	return a.print(cmd, list, func(out io.Writer) {
		if len(list) == 0 {
			_, _ = fmt.Fprintln(out, "no container has an external address")
			return
		}
		columns := []column{
			{title: "EXTERNAL"},
			{title: "INTERNAL", least: len("255.255.255.255"), spare: 4},
			{title: "CONTAINER", least: 9},
			{title: "NETWORK", least: 7, spare: 9},
			{title: "PARENT", least: 6, spare: 7},
			{title: "STATE"},
			{title: "AGE", spare: 8},
			{title: "IN", spare: 3},
			{title: "OUT", spare: 2},
			{title: "REFUSED", spare: 1},
			{title: "RECEIVED", spare: 6},
			{title: "SENT", spare: 5},
		}
		rows, known := make([][]string, len(list)), 0
		for i, d := range list {
			cells := counted(d)
			known = max(known, len(cells))
			rows[i] = append([]string{d.External.String(), text(d.Internal), d.container(), d.network(), d.Parent, d.state(), a.age(d.Since)}, cells...)
		}
		// What is known of no address has no column.
		columns = columns[:len(columns)-most+known]
		for i := range rows {
			for len(rows[i]) < len(columns) {
				rows[i] = append(rows[i], "-")
			}
		}
		table(out, a.width, columns, rows, a.paintState)
		for _, d := range list {
			if d.Reason != "" {
				_, _ = fmt.Fprintf(out, "%s is %s: %s\n", d.External, d.state(), d.Reason)
			}
		}
	})
}

// stateLost is shown of an address that is withheld because another host has it.
const stateLost = "lost"

// state is what is shown of an address.
func (d address) state() string {
	if d.HeldBy != "" {
		return stateLost
	}
	return d.State
}

func (a *app) paintState(title, cell string) string {
	if title != "STATE" {
		return cell
	}
	switch cell {
	case driver.StatePublished:
		return a.colored(green, cell)
	case driver.StateWithheld, stateLost:
		return a.colored(red, cell)
	default:
		return a.colored(yellow, cell)
	}
}

// watch shows something again and again until it is interrupted: in place on a
// terminal, else one after another.
func (a *app) watch(cmd *cobra.Command, interval time.Duration, show func(*cobra.Command) error) error {
	out := cmd.OutOrStdout()
	for {
		if a.width > 0 && !a.json {
			_, _ = fmt.Fprint(out, "\x1b[H\x1b[2J") // to the corner, and all clear
		}
		if err := show(cmd); err != nil {
			return err
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-time.After(interval):
		}
	}
}

// text is "-" for what is not there.
func text(v interface {
	IsValid() bool
	String() string
}) string {
	if !v.IsValid() {
		return "-"
	}
	return v.String()
}
