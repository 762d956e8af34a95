package nettest

import (
	"net/netip"
	"testing"
	"time"
)

// TestWitness: who answers for an address is heard, two that do for as long as
// they do, and nobody behind a port that is cut.
func TestWitness(t *testing.T) {
	lan := NewSegment(t)
	lan.Attach("one", "203.0.113.1/24")
	two := lan.Attach("two", "203.0.113.2/24")
	w := lan.Attach("outside", "203.0.113.200/24").Witness("eth0", netip.MustParseAddr("203.0.113.200"), netip.MustParseAddr("203.0.113.1"), 20*time.Millisecond)
	double := func(what string, since time.Time, want bool) {
		t.Helper()
		var longest time.Duration
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			var n int
			if longest, n = w.Double(since); n >= 10 && (longest > 0) == want {
				return
			}
		}
		t.Errorf("%s: answered twice for %s", what, longest)
	}
	double("one host", time.Now(), false)
	two.Run("ip", "addr", "add", "203.0.113.1/32", "dev", "eth0")
	double("two hosts", time.Now(), true)
	lan.Cut(two, "eth0")
	double("one of them cut off", time.Now().Add(100*time.Millisecond), false)
	lan.Heal(two, "eth0")
	double("and back", time.Now(), true)
}
