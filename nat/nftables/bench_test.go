package nftables

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/nat"
)

// many is the i-th of up to 65536 mappings.
func many(i int) nat.Mapping {
	return nat.Mapping{
		Endpoint: "many",
		External: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}),
		Internal: netip.AddrFrom4([4]byte{172, 30, byte(i >> 8), byte(i)}),
		Egress:   true,
	}
}

func manyState(count int) nat.State {
	st := nat.State{Networks: []nat.Network{nattest.Net(1)}}
	for i := range count {
		st.Mappings = append(st.Mappings, many(i))
	}
	return st
}

// benchmarks run fn with a backend that holds some number of mappings.
func benchmarks(b *testing.B, fn func(b *testing.B, be *Backend, st nat.State) error) {
	for _, count := range []int{1, 1000, 10000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			be, st := open(b, newHost(b), Config{}), manyState(count)
			if _, err := be.Sync(st); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			if err := fn(b, be, st); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// One more mapping, and away with it: two calls.
func BenchmarkAddRemove(b *testing.B) {
	benchmarks(b, func(b *testing.B, be *Backend, _ nat.State) error {
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

// To another container and back: two calls.
func BenchmarkMove(b *testing.B) {
	benchmarks(b, func(b *testing.B, be *Backend, _ nat.State) error {
		there := many(0)
		there.Internal = many(60001).Internal
		for b.Loop() {
			if err := be.Add(there); err != nil {
				return err
			}
			if err := be.Add(many(0)); err != nil {
				return err
			}
		}
		return nil
	})
}

func BenchmarkSyncUnchanged(b *testing.B) {
	benchmarks(b, func(b *testing.B, be *Backend, st nat.State) error {
		for b.Loop() {
			if repaired, err := be.Sync(st); err != nil || len(repaired) > 0 {
				return fmt.Errorf("repaired %q: %w", repaired, err)
			}
		}
		return nil
	})
}

// As after a restart, or a change of somebody else's: everything is read.
func BenchmarkSyncUnchangedRead(b *testing.B) {
	benchmarks(b, func(b *testing.B, be *Backend, st nat.State) error {
		for b.Loop() {
			be.agreed = false
			if repaired, err := be.Sync(st); err != nil || len(repaired) > 0 {
				return fmt.Errorf("repaired %q: %w", repaired, err)
			}
		}
		return nil
	})
}

func BenchmarkRepairUnchanged(b *testing.B) {
	benchmarks(b, func(b *testing.B, be *Backend, _ nat.State) error {
		for b.Loop() {
			if repaired, err := be.Repair(); err != nil || len(repaired) > 0 {
				return fmt.Errorf("repaired %q: %w", repaired, err)
			}
		}
		return nil
	})
}

func BenchmarkSyncFromNothing(b *testing.B) {
	benchmarks(b, func(b *testing.B, be *Backend, st nat.State) error {
		for b.Loop() {
			b.StopTimer()
			if _, err := be.Sync(nat.State{}); err != nil {
				return err
			}
			b.StartTimer()
			if _, err := be.Sync(st); err != nil {
				return err
			}
		}
		return nil
	})
}

// What a scrape of metrics asks for.
func BenchmarkCounters(b *testing.B) {
	benchmarks(b, func(b *testing.B, be *Backend, st nat.State) error {
		for b.Loop() {
			if counters, err := be.Counters(); err != nil || len(counters) != len(st.Mappings) {
				return fmt.Errorf("%d counters: %w", len(counters), err)
			}
		}
		return nil
	})
}
