package iptables

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// eachFlavour runs a test with either of the kernel's rule engines.
func eachFlavour(t *testing.T, test func(t *testing.T, flavour string)) {
	for _, flavour := range []string{"nft", "legacy"} {
		t.Run(flavour, func(t *testing.T) {
			nettest.RequireTool(t, "iptables-"+flavour)
			test(t, flavour)
		})
	}
}

// on is a backend whose calls take effect on a node.
type on struct {
	node *nettest.Node
	b    nat.Backend
}

func open(t testing.TB, node *nettest.Node, flavour string) nat.Backend {
	t.Helper()
	o := on{node: node}
	node.MustDo(func() (err error) {
		o.b, err = New("iptables-" + flavour)
		return err
	})
	return o
}

func (o on) do(fn func() error) error       { return o.node.Do(fn) }
func (o on) AddNetwork(n nat.Network) error { return o.do(func() error { return o.b.AddNetwork(n) }) }
func (o on) RemoveNetwork(n nat.Network) error {
	return o.do(func() error { return o.b.RemoveNetwork(n) })
}
func (o on) Add(ms ...nat.Mapping) error    { return o.do(func() error { return o.b.Add(ms...) }) }
func (o on) Remove(ms ...nat.Mapping) error { return o.do(func() error { return o.b.Remove(ms...) }) }
func (o on) Sync(s nat.State) (repaired []string, err error) {
	err = o.do(func() (err error) {
		repaired, err = o.b.Sync(s)
		return err
	})
	return repaired, err
}

func (o on) Repair() (repaired []string, err error) {
	err = o.do(func() (err error) {
		repaired, err = o.b.Repair()
		return err
	})
	return repaired, err
}

func (o on) Check() (differences []string, err error) {
	err = o.do(func() (err error) {
		differences, err = o.b.Check()
		return err
	})
	return differences, err
}

func (o on) Counters() (counters map[netip.Addr]nat.Counters, err error) {
	err = o.do(func() (err error) {
		counters, err = o.b.Counters()
		return err
	})
	return counters, err
}

func TestConformance(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		nattest.Run(t, func(t *testing.T) nattest.Subject {
			node := nettest.NewNode(t, "host")
			return nattest.Subject{
				Backend: open(t, node, flavour),
				Dump:    node.Dump,
				Wipe:    func() { wipe(node, flavour) },
				Reopen:  func() nat.Backend { return open(t, node, flavour) },
			}
		})
	})
}

// wipe takes all rules away, whoever's they are.
func wipe(node *nettest.Node, flavour string) {
	for _, tool := range []string{"iptables-", "ip6tables-"} {
		for _, table := range []string{"nat", "mangle", "filter"} {
			node.Run(tool+flavour, "-t", table, "-F")
			node.Run(tool+flavour, "-t", table, "-X")
		}
	}
}

// Every rule of ours says so and whose it is.
func TestEveryRuleIsMarked(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		node := nettest.NewNode(t, "host")
		b := open(t, node, flavour)
		if _, err := b.Sync(nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: []nat.Mapping{nattest.Map4(1, 1)}}); err != nil {
			t.Fatal(err)
		}
		save := node.Run("iptables-" + flavour + "-save")
		for line := range strings.Lines(save) {
			if strings.HasPrefix(line, "-A") && !strings.Contains(line, "--comment extip") && !strings.Contains(line, `--comment "extip:`) {
				t.Errorf("unmarked: %s", line)
			}
		}
		if !strings.Contains(save, `"extip:ep1x1"`) || !strings.Contains(save, `"extip:net1"`) {
			t.Error("no owner's id in\n" + save)
		}
	})
}
