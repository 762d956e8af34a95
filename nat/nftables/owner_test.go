package nftables

import (
	"slices"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// openOwner makes a backend that owns its tables.
func openOwner(t *testing.T, node *nettest.Node) *Backend {
	t.Helper()
	b := open(t, node, Config{Owner: true})
	nettest.Require(t, b.flags != 0, "tables with an owner that stay without it (Linux 6.9)")
	return b
}

func TestOwnerConformance(t *testing.T) {
	nattest.Run(t, func(t *testing.T) nattest.Subject {
		node := newHost(t)
		b := openOwner(t, node)
		return nattest.Subject{
			Backend: b,
			Dump:    func() string { return dump(node) },
			Wipe: func() {
				// Nobody else can.
				bt := newBatch()
				for _, f := range families() {
					bt.deleteTable(f)
				}
				if err := b.kernel.commit(bt); err != nil {
					t.Fatal(err)
				}
			},
			Reopen: func() nat.Backend {
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				return openOwner(t, node)
			},
		}
	})
}

// The table's life: owned, orphaned, adopted.
func TestOwner(t *testing.T) {
	node := newHost(t)
	b := openOwner(t, node)
	st := someState()
	if _, err := b.Sync(st); err != nil {
		t.Fatal(err)
	}
	want := dump(node)
	unharmed := func(when string) {
		t.Helper()
		node.Run("nft", "flush", "ruleset")
		for _, command := range []string{"delete table ip extip", "flush chain ip extip forward", "add element ip extip ext_addrs { 192.0.2.1 }"} {
			if _, err := node.Try("nft", command); err == nil {
				t.Errorf("%s: somebody else could %s", when, command)
			}
		}
		if got := dump(node); got != want {
			t.Errorf("%s: tables are\n%s\nwant\n%s", when, got, want)
		}
	}
	unharmed("owned")

	// A second process can't, and says why.
	second := openOwner(t, node)
	if _, err := second.Sync(st); err == nil || !strings.Contains(err.Error(), "belongs to another process") {
		t.Errorf("second process: error %v", err)
	}
	// What the first can't be asked any more, it leaves to the second.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if got := dump(node); stripFlags(got) != stripFlags(want) {
		t.Errorf("orphaned: tables are\n%s\nwant\n%s", got, want)
	}
	if repaired, err := second.Sync(st); err != nil || len(repaired) > 0 {
		t.Errorf("adopted: %q, %v", repaired, err)
	}
	unharmed("adopted")
	if err := second.Add(nattest.Map4(1, 3)); err != nil {
		t.Error(err)
	}
	if err := second.Remove(nattest.Map4(1, 3)); err != nil {
		t.Error(err)
	}
	unharmed("adopted and changed")

	// A process without the wish to own can go on with what is left.
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	third := open(t, node, Config{})
	if repaired, err := third.Sync(st); err != nil || len(repaired) > 0 {
		t.Errorf("without owner: %q, %v", repaired, err)
	}
	if err := third.Add(nattest.Map4(1, 3)); err != nil {
		t.Error(err)
	}
}

// stripFlags takes away what an owner adds to a listing, and the order.
func stripFlags(dump string) string {
	var out []string
	for line := range strings.Lines(dump) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), " #")
		if line != "" && !strings.HasPrefix(line, "flags") {
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// Tables that have no owner are taken over, in one transaction.
func TestOwnerTakesOver(t *testing.T) {
	node := newHost(t)
	st := someState()
	if _, err := open(t, node, Config{}).Sync(st); err != nil {
		t.Fatal(err)
	}
	want := []string{"ip: table was made anew: flags 0x0", "ip6: table was made anew: flags 0x0"}
	if repaired, err := openOwner(t, node).Sync(st); err != nil || !slices.Equal(repaired, want) {
		t.Errorf("repaired %q, %v; want %q", repaired, err, want)
	}
	before := dump(node)
	node.Run("nft", "flush", "ruleset")
	if got := dump(node); got != before || got == "" {
		t.Errorf("after a flush\n%s\nwant\n%s", got, before)
	}
}

// The price of ownership: while the owner lives, a saved rule set that names
// our tables is refused as a whole; and what nft before 1.1 saves of tables
// whose owner is gone, it can't read.
func TestOwnerAndSavedRules(t *testing.T) {
	node := newHost(t)
	b := openOwner(t, node)
	st := someState()
	if _, err := b.Sync(st); err != nil {
		t.Fatal(err)
	}
	node.Run("sh", "-c", "nft list ruleset > /run/owned; echo add table ip admin >> /run/owned")
	if _, err := node.Try("nft", "-f", "/run/owned"); err == nil {
		t.Error("nft no longer refuses what is owned")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	node.Run("sh", "-c", "nft list ruleset > /run/orphan")
	if _, err := node.Try("nft", "-c", "-f", "/run/orphan"); err == nil && strings.Contains(node.Run("nft", "--version"), "v1.0.") {
		t.Error("nft no longer refuses what is orphaned")
	}
	// Whatever comes of a load, the next process goes on from there.
	node.Run("sh", "-c", "nft flush ruleset; nft -f /run/owned && nft list table ip admin")
	next := openOwner(t, node)
	if _, err := next.Sync(st); err != nil {
		t.Error(err)
	}
	next.agreed = false
	if repaired, err := next.Repair(); err != nil || len(repaired) > 0 {
		t.Errorf("after the load: %q, %v", repaired, err)
	}
}
