package cluster

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestFence(t *testing.T) {
	start := time.Now()
	f := Fence{Host: "docker1", ProvenUntil: ProvenUntil(start, 10*time.Second)}
	for _, tt := range []struct {
		at                         time.Duration
		holder                     string
		proven, defend             bool
		yieldInUse, yieldOtherwise bool
	}{
		{0, "docker1", true, true, false, false},
		{8999 * time.Millisecond, "docker1", true, true, false, false},
		{9 * time.Second, "docker1", false, false, true, false},
		{0, "", true, false, true, false},
		{0, "docker2", true, false, true, true},
		{9 * time.Second, "docker2", false, false, true, true},
	} {
		now := start.Add(tt.at)
		got := []bool{f.Proven(now), f.MayDefend(now, tt.holder), f.MustYield(now, tt.holder, true), f.MustYield(now, tt.holder, false)}
		want := []bool{tt.proven, tt.defend, tt.yieldInUse, tt.yieldOtherwise}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("at %s, held by %q: %v, want %v", tt.at, tt.holder, got, want)
				break
			}
		}
	}
	if (Fence{Host: "docker1"}).MayDefend(start, "docker1") {
		t.Error("a host without a lease defends")
	}
}

// TestWake: whatever a lease's end and the times of looking are, one that isn't
// renewed is never taken for alive, and one that is, is seen to be.
func TestWake(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		ttl := time.Duration(3+r.IntN(20)) * time.Second
		zero := time.Now()
		ends := zero.Add(time.Duration(r.Int64N(int64(ttl))))
		renews := r.IntN(2) == 0
		next, term := ends.Add(-ttl*2/3), uint64(1) // of a host that renews
		var w Wake
		alive := false
		for now := zero; now.Before(zero.Add(2*ttl)) && !alive; now = now.Add(500 * time.Millisecond) {
			if !renews && r.IntN(30) == 0 { // a new leader gives it all its time again
				term, ends = term+1, now.Add(ttl)
			}
			for renews && !next.After(now) {
				ends, next = next.Add(ttl), next.Add(ttl/3)
			}
			if ends.Before(now) {
				break
			}
			asked, told := now.Add(-time.Duration(r.IntN(50))*time.Millisecond), now.Add(time.Duration(r.IntN(50))*time.Millisecond)
			alive = w.Alive(asked, told, ends.Sub(now).Truncate(time.Second), term)
		}
		if alive != renews {
			t.Errorf("seed %d: ttl %s, renewed %v, taken for alive: %v", seed, ttl, renews, alive)
		}
	}
}
