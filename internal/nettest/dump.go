package nettest

import (
	"os/exec"
	"regexp"
	"strings"
)

// Dump is the node's network as text: links, addresses, routes, sysctls and
// the firewall rules of both iptables flavours. Two dumps are equal exactly if
// nothing of that differs; counters, indexes and empty tables are left out.
func (n *Node) Dump() string {
	n.t.Helper()
	var b strings.Builder
	section := func(title, text string) { b.WriteString("## " + title + "\n" + strings.TrimSpace(text) + "\n") }
	section("links", stripLink(n.quiet("ip", "-o", "link")))
	section("addresses", stripLink(n.quiet("ip", "-o", "addr")))
	section("routes", n.quiet("ip", "route", "show", "table", "all"))
	section("policy", n.quiet("ip", "rule"))
	section("forwarding", n.quiet("cat", "/proc/sys/net/ipv4/ip_forward"))
	for _, tool := range []string{"iptables-nft-save", "iptables-legacy-save", "ip6tables-nft-save", "ip6tables-legacy-save"} {
		if _, err := exec.LookPath(tool); err == nil {
			section(tool, StripRules(n.quiet(tool)))
		}
	}
	return b.String()
}

// quiet is Run without a line in the log and without standard error: the
// save tools warn there about tables of the other flavour.
func (n *Node) quiet(args ...string) string {
	n.t.Helper()
	out, err := n.Command(args...).Output()
	if err != nil {
		n.t.Fatalf("%s: %s: %v", n.Name, strings.Join(args, " "), err)
	}
	return string(out)
}

var (
	linkIndex = regexp.MustCompile(`(?m)^\d+: |@if\d+|link-netns \S+|link-netnsid \d+`)
	lifetimes = regexp.MustCompile(`\\\s+valid_lft .*`)
	counters  = regexp.MustCompile(`\[\d+:\d+\]`)
)

func stripLink(s string) string {
	return lifetimes.ReplaceAllString(linkIndex.ReplaceAllString(s, ""), "")
}

// StripRules takes from the output of iptables-save what differs between two
// equal rule sets: comments, counters, and tables that hold nothing but empty
// built-in chains, which stay in the kernel once used.
func StripRules(save string) string {
	var out, table []string
	used := false
	for line := range strings.Lines(save) {
		line = strings.TrimSpace(counters.ReplaceAllString(line, ""))
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
			continue
		case strings.HasPrefix(line, "*"):
			table, used = nil, false
		case line == "COMMIT":
			if used {
				out = append(out, table...)
			}
			continue
		case !strings.HasPrefix(line, ":") || !strings.HasSuffix(line, "ACCEPT"):
			used = true
		}
		table = append(table, line)
	}
	return strings.Join(out, "\n")
}
