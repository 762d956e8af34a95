package cli

import (
	"math"
	"testing"
)

func TestBrief(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 9999: "9999", 10000: "10k", 10499: "10k", 999499: "999k", 999500: "1.0M", 9949999: "9.9M", 9950000: "10M", 1234567: "1.2M",
		12345678901: "12G", math.MaxUint64: "18E",
	} {
		if got := brief(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
