package nftables

import (
	"strings"
	"testing"

	"github.com/extip/extip/internal/natlab"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// load has nft read a file on a node.
func load(t *testing.T, node *nettest.Node, file string) {
	t.Helper()
	cmd := node.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(file)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s\n%s", err, out, file)
	}
}

// What nft makes of an exported file is, expression by expression, what a
// backend would write; and loading it twice is loading it once.
func TestExport(t *testing.T) {
	node := newHost(t)
	for _, s := range []nat.State{natlab.State(), natlab.LimitState(), {Networks: natlab.State().Networks}} {
		file, err := Export(s)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			load(t, node, file)
			repaired, err := open(t, node, Config{}).Sync(s)
			if err != nil {
				t.Fatal(err)
			}
			if len(repaired) > 0 {
				t.Errorf("differs from what the backend makes: %q\n%s", repaired, file)
			}
		}
		// The test sees a difference of one word.
		load(t, node, strings.Replace(file, "established,related", "established", 1))
		if repaired, err := open(t, node, Config{}).Sync(s); err != nil || len(repaired) != 1 {
			t.Errorf("of one altered rule: %q, %v", repaired, err)
		}
	}
	if file, err := Export(nat.State{}); file != "" || err != nil {
		t.Errorf("of nothing: %q, %v", file, err)
	}
}
