package nettest

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Dump is the node's network as text: links, addresses, routes, sysctls and
// the firewall rules of both iptables flavours. Two dumps are equal exactly if
// nothing of that differs; counters, indexes, carriers and empty tables are left out.
func (n *Node) Dump() string {
	n.t.Helper()
	// To some programs, what goes while they list it is an error.
	for deadline := time.Now().Add(30 * time.Second); ; {
		text, err := n.dump()
		if err == nil {
			return text
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%s: %v", n.Name, err)
		}
	}
}

func (n *Node) dump() (string, error) {
	var errs []error
	look := func(args ...string) string {
		out, err := n.look(args...)
		errs = append(errs, err)
		return out
	}
	var b strings.Builder
	section := func(title, text string) { b.WriteString("## " + title + "\n" + strings.TrimSpace(text) + "\n") }
	section("links", stripLink(look("ip", "-o", "link")))
	section("addresses", automatic.ReplaceAllString(stripLink(look("ip", "-o", "addr")), ""))
	routes := look("ip", "route", "show", "table", "all") // of both families
	section("routes", automatic.ReplaceAllString(carrier.ReplaceAllString(routes, ""), ""))
	section("policy", look("ip", "rule")+look("ip", "-6", "rule"))
	section("forwarding", look("cat", "/proc/sys/net/ipv4/ip_forward"))
	for _, tool := range []string{"iptables-nft-save", "iptables-legacy-save", "ip6tables-nft-save", "ip6tables-legacy-save"} {
		if _, err := exec.LookPath(tool); err == nil {
			section(tool, StripRules(look(tool)))
		}
	}
	if _, err := exec.LookPath("nft"); err == nil {
		section("nftables", tables(look))
	}
	return b.String(), errors.Join(errs...)
}

// tables is all nftables but those that iptables-nft shows, sorted, since nft
// lists what is in them in the order in which it was made.
func tables(look func(...string) string) string {
	var out strings.Builder
	for _, name := range slices.Sorted(strings.Lines(look("nft", "list", "tables"))) {
		name = strings.TrimSpace(name) // table ip extip
		if fields := strings.Fields(name); len(fields) == 3 && !slices.Contains([]string{"filter", "nat", "mangle", "raw", "security"}, fields[2]) {
			text := look("nft", "-s", "list", "table", fields[1], fields[2])
			out.WriteString(name + "\n" + strings.Join(slices.Sorted(strings.SplitSeq(text, "\n")), "\n") + "\n")
		}
	}
	return out.String()
}

// look is Try without a line in the log and without standard error: the save
// tools warn there about tables of the other flavour.
func (n *Node) look(args ...string) (string, error) {
	out, err := n.Command(args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

// quiet is look for a program that must succeed.
func (n *Node) quiet(args ...string) string {
	n.t.Helper()
	out, err := n.look(args...)
	if err != nil {
		n.t.Fatalf("%s: %v", n.Name, err)
	}
	return out
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
