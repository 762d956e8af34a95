package nettest

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// Dump is the node's network as text: links, addresses, routes, sysctls and
// the firewall rules of both iptables flavours. Two dumps are equal exactly if
// nothing of that differs; counters, indexes, carriers and empty tables are left out.
func (n *Node) Dump() string {
	n.t.Helper()
	var b strings.Builder
	section := func(title, text string) { b.WriteString("## " + title + "\n" + strings.TrimSpace(text) + "\n") }
	section("links", stripLink(n.quiet("ip", "-o", "link")))
	section("addresses", automatic.ReplaceAllString(stripLink(n.quiet("ip", "-o", "addr")), ""))
	routes := n.quiet("ip", "route", "show", "table", "all") // of both families
	section("routes", automatic.ReplaceAllString(carrier.ReplaceAllString(routes, ""), ""))
	section("policy", n.quiet("ip", "rule")+n.quiet("ip", "-6", "rule"))
	section("forwarding", n.quiet("cat", "/proc/sys/net/ipv4/ip_forward"))
	for _, tool := range []string{"iptables-nft-save", "iptables-legacy-save", "ip6tables-nft-save", "ip6tables-legacy-save"} {
		if _, err := exec.LookPath(tool); err == nil {
			section(tool, StripRules(n.quiet(tool)))
		}
	}
	if _, err := exec.LookPath("nft"); err == nil {
		section("nftables", n.tables())
	}
	return b.String()
}

// tables is all nftables but those that iptables-nft shows, sorted, since nft
// lists what is in them in the order in which it was made.
func (n *Node) tables() string {
	n.t.Helper()
	var out strings.Builder
	for _, name := range slices.Sorted(strings.Lines(n.quiet("nft", "list", "tables"))) {
		name = strings.TrimSpace(name) // table ip extip
		if fields := strings.Fields(name); len(fields) == 3 && !slices.Contains([]string{"filter", "nat", "mangle", "raw", "security"}, fields[2]) {
			text := n.quiet("nft", "-s", "list", "table", fields[1], fields[2])
			out.WriteString(name + "\n" + strings.Join(slices.Sorted(strings.SplitSeq(text, "\n")), "\n") + "\n")
		}
	}
	return out.String()
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
	// The carrier follows the other end of a link, a while later.
	carrier = regexp.MustCompile(`NO-CARRIER,|,LOWER_UP|,M-DOWN| state \w+| linkdown`)
	// What the kernel makes for every link that has IPv6, a while after it is up.
	automatic = regexp.MustCompile(`(?m)^(\S+ +inet6 |(local|anycast|multicast) )?(fe80:|ff00::/8).*\n`)
	lifetimes = regexp.MustCompile(`\\\s+valid_lft .*`)
	counters  = regexp.MustCompile(`\[\d+:\d+\]`)
)

func stripLink(s string) string {
	for _, r := range []*regexp.Regexp{linkIndex, carrier, lifetimes} {
		s = r.ReplaceAllString(s, "")
	}
	return s
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
