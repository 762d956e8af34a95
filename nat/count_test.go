package nat_test

import (
	"net/netip"
	"testing"

	"github.com/extip/extip/nat"
)

// TestTally: sums go on when counters begin anew, whoever says so or doesn't;
// they end when the address does; and what can't be known is not counted twice.
func TestTally(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	mapped := map[netip.Addr]bool{a: true}
	var tally nat.Tally[string]
	shows := func(n uint64) []nat.Reading[string] {
		return []nat.Reading[string]{
			{Counter: "in", External: a, What: nat.Incoming, Shows: nat.Traffic{Packets: n, Bytes: 10 * n}},
			{Counter: "sent", External: a, What: nat.Sent, Shows: nat.Traffic{Packets: 2 * n, Bytes: 20 * n}},
			{Counter: "in b", External: b, What: nat.Incoming, Shows: nat.Traffic{Packets: 1}},
		}
	}
	for _, step := range []struct {
		what   string
		before func() // the reading begins
		during func()
		shows  uint64
		want   uint64
	}{
		{what: "the first", shows: 3, want: 3},
		{what: "nothing new", shows: 3, want: 3},
		{what: "more", shows: 5, want: 5},
		{what: "anew, by us", before: func() { tally.Restart("in", "sent") }, shows: 6, want: 11},
		{what: "anew while it was read", during: func() { tally.Restart("in", "sent") }, shows: 9, want: 11},
		{what: "and after", shows: 4, want: 15},
		{what: "put back by somebody", shows: 2, want: 15},
		{what: "and on from there", shows: 3, want: 16},
		{what: "the address went and came", before: func() { tally.Forget(a); tally.Restart("in", "sent") }, shows: 1, want: 1},
	} {
		if step.before != nil {
			step.before()
		}
		tally.Begin()
		if step.during != nil {
			step.during()
		}
		sums := tally.End(shows(step.shows), mapped)
		got := sums[a]
		if got.Incoming != step.want || got.Sent == nil || *got.Sent != (nat.Traffic{Packets: 2 * step.want, Bytes: 20 * step.want}) || got.Received != nil {
			t.Errorf("%s: %+v and %+v, want %d", step.what, got, got.Sent, step.want)
		}
		if len(sums) != 1 {
			t.Errorf("%s: sums of what is not mapped: %v", step.what, sums)
		}
	}
	// A counter that a reading misses is not read as new by the next.
	tally.Begin()
	tally.End(nil, mapped)
	tally.Begin()
	if got := tally.End(shows(1), mapped)[a]; got.Incoming != 1 {
		t.Errorf("missed once: %+v", got)
	}
}
