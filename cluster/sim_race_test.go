//go:build race

package cluster

// slow: the race detector makes a history take ten times as long, and has nothing to
// find in what runs one at a time. make simulate runs it without.
const slow = true
