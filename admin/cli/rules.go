package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) rules() *cobra.Command {
	return &cobra.Command{
		Use:   "rules",
		Short: "Print the rules in the kernel that are extip's",
		Long: `Print the rules in the kernel that are extip's, as the tools of the backend list them:
"nft list table", or "iptables-save". Where there is no such tool, "extip export" says
what there should be.`,
		Example:           "  extip rules",
		Args:              words(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			about, err := a.plugin.About(cmd.Context())
			if err != nil {
				return err
			}
			text := ""
			if about.Backend == "nftables" {
				text, err = nftRules(cmd.Context())
			} else {
				text, err = iptablesRules(cmd.Context())
			}
			if err != nil {
				return err
			}
			return a.print(cmd, text, func(out io.Writer) { _, _ = io.WriteString(out, text) })
		},
	}
}

// nftRules lists the tables that are extip's.
func nftRules(ctx context.Context) (string, error) {
	tables, err := tool(ctx, "nft", "list", "tables")
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for line := range strings.Lines(tables) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[2] == "extip" {
			table, err := tool(ctx, "nft", "list", "table", fields[1], fields[2])
			if err != nil {
				return "", err
			}
			text.WriteString(table)
		}
	}
	return text.String(), nil
}

// iptablesRules picks from all rules those in extip's chains, and those that lead
// to them.
func iptablesRules(ctx context.Context) (string, error) {
	var text strings.Builder
	for _, name := range []string{"iptables-save", "ip6tables-save"} {
		all, err := tool(ctx, name)
		if err != nil {
			return "", err
		}
		table := ""
		for line := range strings.Lines(all) {
			switch {
			case strings.HasPrefix(line, "*"):
				table = line
			case strings.Contains(line, " XIP-"), strings.Contains(line, " EXTIP-"), strings.HasPrefix(line, ":XIP-"), strings.HasPrefix(line, ":EXTIP-"):
				if table != "" {
					text.WriteString("# " + name + "\n" + table)
					table = ""
				}
				text.WriteString(line)
			}
		}
	}
	return text.String(), nil
}

// tool runs a program and returns what it prints.
func tool(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var wrong bytes.Buffer
	cmd.Stderr = &wrong
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w %s", strings.Join(append([]string{name}, args...), " "), err, strings.TrimSpace(wrong.String()))
	}
	return string(out), nil
}
