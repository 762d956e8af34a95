package nftables

import (
	"fmt"
	"strings"
	"testing"

	"github.com/extip/extip/internal/natlab"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/nat/iptables"
)

// admitted is the backend with what lets its traffic pass Docker's FORWARD
// chain, as the program joins them.
type admitted struct {
	*Backend
	admit func([]nat.Network) ([]string, error)
}

func (a admitted) Sync(s nat.State) ([]string, error) {
	repaired, err := a.Backend.Sync(s)
	if err != nil {
		return repaired, err
	}
	more, err := a.admit(s.Networks)
	return append(repaired, more...), err
}

// openAdmitted makes a backend in a lab whose FORWARD chain drops.
func openAdmitted(t *testing.T, l *natlab.Lab, flavour string, c Config) admitted {
	return admitted{Backend: open(t, l.Host, c), admit: func(ns []nat.Network) (repaired []string, err error) {
		err = l.Host.Do(func() error {
			a, err := iptables.NewAdmission("iptables-" + flavour)
			if err != nil {
				return err
			}
			repaired, err = a.Sync(ns)
			return err
		})
		return repaired, err
	}}
}

func TestTraffic(t *testing.T) {
	for _, flavour := range []string{"nft", "legacy"} {
		t.Run(flavour, func(t *testing.T) {
			nettest.RequireTool(t, "iptables-"+flavour)
			variants := natlab.Variants(flavour)
			if flavour == "legacy" {
				variants = variants[2:] // the kernel's other engine, once more with and without br_netfilter
			}
			for _, v := range variants {
				t.Run(v.String(), func(t *testing.T) {
					natlab.Run(t, v, func(l *natlab.Lab) natlab.Subject {
						return natlab.Subject{
							Backend: openAdmitted(t, l, flavour, Config{}),
							Expose: func() {
								l.Host.Run("nft", "flush chain ip extip forward; flush chain ip6 extip forward; flush chain ip extip input")
							},
							Yield: func() {
								l.Host.Run("nft", "delete chain ip extip prerouting"+
									"; add chain ip extip prerouting { type nat hook prerouting priority -90; }"+
									"; add rule ip extip prerouting dnat to ip daddr map @ext2ctr")
							},
							Left: func() string { return dump(l.Host) },
						}
					})
				})
			}
		})
	}
}

func TestPaths(t *testing.T) {
	nettest.RequireTool(t, "nft")
	natlab.RunPaths(t, func(host *nettest.Node) nat.Backend { return open(t, host, Config{}) })
}

func TestCounters(t *testing.T) {
	nettest.RequireTool(t, "nft")
	natlab.RunCounters(t, func(host *nettest.Node) nat.Backend { return open(t, host, Config{}) },
		func(host *nettest.Node) { host.Run("nft", "flush ruleset") })
}

func TestAccounts(t *testing.T) {
	nettest.RequireTool(t, "nft")
	natlab.RunAccounts(t, func(host *nettest.Node) nat.Backend { return open(t, host, Config{Account: true}) })
}

func TestUplinks(t *testing.T) {
	nettest.RequireTool(t, "nft")
	natlab.RunUplinks(t, func(host *nettest.Node) nat.Backend { return open(t, host, Config{}) })
}

func TestFilters(t *testing.T) {
	nettest.RequireTool(t, "iptables-nft")
	for _, v := range natlab.Variants("nft")[1:3] { // either engine, with and without br_netfilter
		t.Run(v.String(), func(t *testing.T) {
			natlab.RunFilters(t, v, func(l *natlab.Lab) natlab.Subject {
				return natlab.Subject{
					Backend: openAdmitted(t, l, "nft", Config{}),
					Refused: func(external string) int { return refused(t, l.Host, external) },
				}
			})
		})
	}
}

func TestLimits(t *testing.T) {
	nettest.RequireTool(t, "iptables-nft")
	for _, v := range natlab.Variants("nft")[1:3] {
		t.Run(v.String(), func(t *testing.T) {
			natlab.RunLimits(t, v, func(l *natlab.Lab) natlab.Subject {
				return natlab.Subject{Backend: openAdmitted(t, l, "nft", Config{})}
			})
		})
	}
}

// refused reads a counter as an administrator would.
func refused(t *testing.T, host *nettest.Node, external string) int {
	t.Helper()
	table := "ip"
	if strings.Contains(external, ":") {
		table = "ip6"
	}
	list := host.Run("nft", "list", "set", table, tableName, setRefused)
	var packets int
	_, count, _ := strings.Cut(list, " "+external+" counter ")
	if _, err := fmt.Sscanf(count, "packets %d", &packets); err != nil {
		t.Fatalf("no counter of %s: %v", external, err)
	}
	return packets
}
