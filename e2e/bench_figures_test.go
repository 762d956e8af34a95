package e2e

import (
	"strings"
	"testing"
)

// TestFigures holds the bench's arithmetic to numbers that can be checked by hand.
func TestFigures(t *testing.T) {
	r := &record{section: "s"}
	r.add("start", "ours", "ms", 4, 1, 3, 2)
	r.add("start", "theirs", "ms", 2, 1, 1, 4)
	r.compare("start", "ours", "theirs") // 2, 1, 3, 0.5 in turn
	r.compare("start", "ours", "nobody")
	f := r.find("s", "start", "ours")
	if f.P50 != 2.5 || f.Min != 1 || f.Max != 4 || f.Samples != 4 {
		t.Errorf("figure %+v", f)
	}
	if got := f.Ratios["theirs"]; got != 1.5 || len(f.Ratios) != 1 {
		t.Errorf("ratios %v, want 1.5 to theirs", f.Ratios)
	}
	for v, want := range map[float64]string{0: "0", 0.00123: "0.0012", 0.5: "0.500", 9.876: "9.88", 123.4: "123", 98765: "98765"} {
		if got := short(v); got != want {
			t.Errorf("short(%g) = %s, want %s", v, got, want)
		}
	}
	var b strings.Builder
	r.print(&b)
	if got := b.String(); !strings.Contains(got, "1.50 × theirs") {
		t.Errorf("printed:\n%s", got)
	}
}
