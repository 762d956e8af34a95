package nftables

import (
	"context"
	"testing"
	"time"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
)

// watch runs a watcher until the test ends; hints arrive on the channel.
func watch(t *testing.T, node *nettest.Node, b *Backend) <-chan struct{} {
	t.Helper()
	var w *Watcher
	node.MustDo(func() (err error) {
		w, err = b.Watch()
		return err
	})
	ctx, stop := context.WithCancel(context.Background())
	hints, ended := make(chan struct{}, 1000), make(chan error, 1)
	go func() { ended <- w.Run(ctx, func() { hints <- struct{}{} }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("watcher: %v", err)
		}
	})
	return hints
}

func await(t *testing.T, hints <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-hints:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s: nothing heard", what)
	}
}

func TestWatch(t *testing.T) {
	node := newHost(t)
	b := open(t, node, Config{})
	hints := watch(t, node, b)

	// Neither our own doings nor those of others elsewhere.
	st := someState()
	if _, err := b.Sync(st); err != nil {
		t.Fatal(err)
	}
	if err := b.Add(nattest.Map4(1, 3)); err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(nattest.Map4(1, 3)); err != nil {
		t.Fatal(err)
	}
	node.Run("nft", "add table ip other; add chain ip other extip; add table inet filter")
	node.Run("nft", "add element ip extip ext_addrs { 192.0.2.1 }")
	await(t, hints, "an element")
	if len(hints) > 0 {
		t.Errorf("%d hints too many", len(hints))
	}

	for _, command := range []string{
		"flush map ip extip ext2ctr", "add chain ip6 extip c", "add rule ip6 extip input accept",
		"add set ip extip s { type mark; }", "add counter ip extip c", "delete table ip extip", "flush ruleset",
	} {
		node.Run("nft", command)
		await(t, hints, command)
		if repaired, err := b.Repair(); err != nil || len(repaired) == 0 {
			t.Errorf("%s: repaired %q, %v", command, repaired, err)
		}
	}
}

// Rules that are flushed come back by themselves.
func TestWatchAndRepair(t *testing.T) {
	node := newHost(t)
	b := open(t, node, Config{})
	st := someState()
	if _, err := b.Sync(st); err != nil {
		t.Fatal(err)
	}
	want := dump(node)
	hints := watch(t, node, b)
	node.Run("nft", "flush", "ruleset")
	await(t, hints, "flush")
	start := time.Now()
	if _, err := b.Repair(); err != nil {
		t.Fatal(err)
	}
	t.Logf("repaired in %v", time.Since(start))
	if got := dump(node); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
