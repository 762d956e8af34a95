package iptables

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/extip/extip/internal/natlab"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

func TestTraffic(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		for _, v := range natlab.Variants(flavour) {
			t.Run(v.String(), func(t *testing.T) {
				natlab.Run(t, v, func(l *natlab.Lab) natlab.Subject {
					return natlab.Subject{
						Backend: open(t, l.Host, flavour),
						Expose: func() {
							l.Load(flavour, "*mangle\n-F XIP-ISOLATE\nCOMMIT\n")
							l.Host.Run("ip6tables-"+flavour, "-t", "mangle", "-F", "XIP-ISOLATE")
						},
						Yield: func() { l.Load(flavour, "*nat\n-D PREROUTING 1\n-A PREROUTING -j XIP-PRE\nCOMMIT\n") },
						Left: func() string {
							dump := l.Host.Dump()
							if strings.Contains(dump, "XIP") || strings.Contains(dump, "-m comment") {
								return dump
							}
							return ""
						},
					}
				})
			})
		}
	})
}

func TestPaths(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		natlab.RunPaths(t, func(host *nettest.Node) nat.Backend { return open(t, host, flavour) })
	})
}

func TestCounters(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		natlab.RunCounters(t, func(host *nettest.Node) nat.Backend { return open(t, host, flavour) }, func(host *nettest.Node) { wipe(host, flavour) })
	})
}

func TestUplinks(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		natlab.RunUplinks(t, func(host *nettest.Node) nat.Backend { return open(t, host, flavour) })
	})
}

func TestFilters(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		for _, v := range natlab.Variants(flavour)[1:3] { // either engine, with and without br_netfilter
			t.Run(v.String(), func(t *testing.T) {
				natlab.RunFilters(t, v, func(l *natlab.Lab) natlab.Subject {
					return natlab.Subject{
						Backend: open(t, l.Host, flavour),
						Refused: func(external string) int { return refused(t, l.Host, flavour, external) },
					}
				})
			})
		}
	})
}

func TestLimits(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		for _, v := range natlab.Variants(flavour)[1:3] {
			t.Run(v.String(), func(t *testing.T) {
				natlab.RunLimits(t, v, func(l *natlab.Lab) natlab.Subject { return natlab.Subject{Backend: open(t, l.Host, flavour)} })
			})
		}
	})
}

// refused adds up counters as an administrator would.
func refused(t *testing.T, host *nettest.Node, flavour, external string) int {
	t.Helper()
	m := nat.Mapping{External: netip.MustParseAddr(external)}
	trees := []*tree{{treeKind: filterTree()}, {treeKind: rejectTree()}}
	total := 0
	for line := range strings.Lines(host.Run("ip"+familyOf(m.External).String()+"tables-"+flavour+"-save", "-c")) {
		for _, tree := range trees {
			ours := strings.Contains(line, "-A "+tree.ownChain(m)+" ")
			if end := targetOf(line); ours && (end == "DROP" || end == "REJECT") {
				var packets int
				if _, err := fmt.Sscanf(line, "[%d:", &packets); err != nil {
					t.Fatal(err)
				}
				total += packets
			}
		}
	}
	return total
}
