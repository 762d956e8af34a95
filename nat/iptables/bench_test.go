package iptables

import (
	"fmt"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// benchmarks run fn on a node that holds some number of mappings.
func benchmarks(b *testing.B, fn func(b *testing.B, be nat.Backend, st nat.State) error) {
	for _, flavour := range []string{"nft", "legacy"} {
		for _, count := range []int{1, 1000, 10000} {
			b.Run(fmt.Sprintf("%s/%d", flavour, count), func(b *testing.B) {
				nettest.RequireTool(b, "iptables-"+flavour)
				node := nettest.NewNode(b, "host")
				st := nat.State{Networks: []nat.Network{nattest.Net(1)}}
				for i := range count {
					st.Mappings = append(st.Mappings, many(i))
				}
				be := open(b, node, flavour)
				if _, err := be.Sync(st); err != nil {
					b.Fatal(err)
				}
				if err := fn(b, be, st); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// One more mapping, and away with it: two calls.
func BenchmarkAddRemove(b *testing.B) {
	benchmarks(b, func(b *testing.B, be nat.Backend, _ nat.State) error {
		for b.Loop() {
			if err := be.Add(many(60001)); err != nil {
				return err
			}
			if err := be.Remove(many(60001)); err != nil {
				return err
			}
		}
		return nil
	})
}

func BenchmarkSyncUnchanged(b *testing.B) {
	benchmarks(b, func(b *testing.B, be nat.Backend, st nat.State) error {
		for b.Loop() {
			if repaired, err := be.Sync(st); err != nil || len(repaired) > 0 {
				return fmt.Errorf("repaired %q: %w", repaired, err)
			}
		}
		return nil
	})
}

// From nothing to everything and back: two calls.
func BenchmarkSyncAll(b *testing.B) {
	benchmarks(b, func(b *testing.B, be nat.Backend, st nat.State) error {
		for b.Loop() {
			if _, err := be.Sync(nat.State{}); err != nil {
				return err
			}
			if _, err := be.Sync(st); err != nil {
				return err
			}
		}
		return nil
	})
}
