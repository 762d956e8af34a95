package driver

import (
	"net/netip"
	"time"
)

// An Observer is told, once each, of what is counted. Its methods may be called
// concurrently and under any lock, so they must not wait.
type Observer interface {
	// Call: one of the engine's calls has ended.
	Call(method string, took time.Duration, err error)
	// Reconciled: a comparison of the kernel with the records has ended, that
	// found n things not as they should be. Restoring the rules at the start
	// is none, and takes no time here.
	Reconciled(cause string, took time.Duration, n int, err error)
	// Conflict: another host was heard to use an address of ours.
	Conflict(a netip.Addr)
	// Announced: neighbours are being told where an address is.
	Announced(a netip.Addr)
	// Lost: an address of ours was given up to another host of the cluster, or
	// to whoever used it while this host couldn't prove its claim.
	Lost(a netip.Addr)
	// TakenOver: another host of the cluster has handed an address over, or
	// gone on answering for one that it had lost, and given it up.
	TakenOver(a netip.Addr)
}

// unobserved is the Observer of who has none.
type unobserved struct{}

func (unobserved) Call(string, time.Duration, error)            {}
func (unobserved) Reconciled(string, time.Duration, int, error) {}
func (unobserved) Conflict(netip.Addr)                          {}
func (unobserved) Announced(netip.Addr)                         {}
func (unobserved) Lost(netip.Addr)                              {}
func (unobserved) TakenOver(netip.Addr)                         {}

// Observe makes o the Driver's Observer. It is called before Restore.
func (d *Driver) Observe(o Observer) { d.observer = o }

// Observe makes o the Guard's Observer. It is called before Serve.
func (g *Guard) Observe(o Observer) { g.observer = o }
