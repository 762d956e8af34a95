//go:build !race

package cluster

// slow is for the race detector.
const slow = false
