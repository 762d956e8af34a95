package nftables

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extip/extip/internal/natlab"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// follow runs Live on the lab's host while something is done there, and returns
// what was seen, a line each.
func follow(t *testing.T, host *nettest.Node, flow nat.Flow, during func(seen func() []string)) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	var lines []string
	ended := make(chan error, 1)
	go func() {
		ended <- host.Do(func() error {
			return Live(ctx, flow, func(s nat.Sighting) error {
				mu.Lock()
				defer mu.Unlock()
				lines = append(lines, fmt.Sprintf("%s | %s %s %s | %s | %s", s.Header, s.Family, s.Table, s.Chain, s.Rule, s.Verdict))
				return nil
			})
		})
	}()
	wait(t, "the rules are there", func() bool { return strings.Contains(host.Run("nft", "list", "ruleset"), "nftrace set 1") })
	during(func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string{}, lines...)
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := host.Run("nft", "list", "tables"); strings.Contains(got, liveTable) {
		t.Errorf("left: %s", got)
	}
	return lines
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within half a minute: %s", what)
		}
	}
}

// TestLive: what a packet meets is told, in both directions, of both families,
// and nothing of other packets.
func TestLive(t *testing.T) {
	nettest.RequireTool(t, "nft")
	natlab.RunLive(t, func(host *nettest.Node) nat.Backend { return open(t, host, Config{}) },
		func(host *nettest.Node, flow nat.Flow, during func(seen func() []string)) []string {
			return follow(t, host, flow, during)
		})
}

// What a process that was killed has left goes, and so does Live if its reader
// does.
func TestLiveEnds(t *testing.T) {
	node := newHost(t)
	node.Run("nft", "add table ip "+liveTable+"; add chain ip "+liveTable+" prerouting { type filter hook prerouting priority -400; }; add table ip6 "+liveTable+"; add table ip other")
	node.MustDo(EndLive)
	node.MustDo(EndLive)
	if got := node.Run("nft", "list", "tables"); got != "table ip other\n" {
		t.Errorf("left: %q", got)
	}
	node.Run("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
	node.Serve(80)
	gone := errors.New("gone")
	ended := make(chan error, 1)
	go func() {
		ended <- node.Do(func() error {
			m := natlab.State().Mappings[0]
			m.External = m.External.Next()
			return Live(t.Context(), nat.Flow{External: m.External, Internal: m.Internal}, func(nat.Sighting) error { return gone })
		})
	}()
	wait(t, "the rules are there", func() bool { return strings.Contains(node.Run("nft", "list", "ruleset"), "nftrace set 1") })
	node.Run("ip", "addr", "add", natlab.State().Mappings[0].External.Next().String()+"/32", "dev", "lo")
	node.Run("nft", "add chain ip other c { type filter hook output priority 0; }")
	node.Throw(natlab.State().Mappings[0].External.Next().String()+":80", 1)
	if err := <-ended; !errors.Is(err, gone) {
		t.Error(err)
	}
	if got := node.Run("nft", "list", "tables"); got != "table ip other\n" {
		t.Errorf("left: %q", got)
	}
}
