package nftables

import (
	"slices"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// newHost is a node with the program that looks at our tables.
func newHost(t testing.TB) *nettest.Node {
	t.Helper()
	nettest.RequireTool(t, "nft")
	return nettest.NewNode(t, "host")
}

// open makes a backend on a node. Its socket stays there, so that its methods
// may be called from anywhere.
func open(t testing.TB, node *nettest.Node, c Config) *Backend {
	t.Helper()
	var b *Backend
	node.MustDo(func() (err error) {
		b, err = New(c)
		return err
	})
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// dump is our tables as nft lists them, without counters; "" if there are
// none. What nft lists in the order of creation is sorted.
func dump(node *nettest.Node) string {
	var out []string
	for _, f := range families() {
		list, err := node.Command("nft", "-s", "list", "table", f.String(), tableName).Output()
		if err != nil {
			continue
		}
		head, body, _ := strings.Cut(strings.TrimSuffix(string(list), "}\n"), "\n")
		blocks := strings.Split(strings.TrimSpace(body), "\n\n")
		for i := range blocks {
			blocks[i] = "\t" + strings.TrimSpace(blocks[i]) + "\n"
		}
		slices.Sort(blocks)
		out = append(out, head+"\n"+strings.Join(blocks, "\n")+"}\n")
	}
	return strings.Join(out, "\n")
}

func subject(t *testing.T, c Config) nattest.Subject {
	node := newHost(t)
	return nattest.Subject{
		Backend: open(t, node, c),
		Dump:    func() string { return dump(node) },
		Wipe:    func() { node.Run("nft", "flush", "ruleset") },
		Reopen:  func() nat.Backend { return open(t, node, c) },
	}
}

func TestConformance(t *testing.T) {
	nattest.Run(t, func(t *testing.T) nattest.Subject { return subject(t, Config{}) })
}

// To find out whether the kernel will do leaves nothing in it.
func TestNewLeavesNothing(t *testing.T) {
	node := newHost(t)
	for _, c := range []Config{{}, {Owner: true}} {
		open(t, node, c)
		if got := node.Run("nft", "list", "ruleset"); got != "" {
			t.Errorf("%+v: left\n%s", c, got)
		}
	}
}
