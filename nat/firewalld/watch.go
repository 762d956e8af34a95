// Package firewalld hears from firewalld, by way of D-Bus, when it has
// rewritten the host's rules: a reload empties the chains of iptables,
// everybody's, and forgets which interfaces it was told to put into a zone
// while it ran.
package firewalld

import (
	"cmp"
	"context"
	"time"

	"github.com/godbus/dbus/v5"
)

// Name and interface of firewalld (its firewalld.dbus(5)), and of the bus
// itself (D-Bus specification, "Message Bus Messages").
const (
	firewalldName = "org.fedoraproject.FirewallD1"
	reloaded      = "Reloaded"
	busName       = "org.freedesktop.DBus"
	ownerChanged  = "NameOwnerChanged"
)

// Bounds of the wait before another attempt to connect. An attempt costs next
// to nothing, but a bus that has gone is back after a restart or never.
const (
	defaultMinWait = time.Second
	defaultMaxWait = 30 * time.Second
)

// A Watcher notices when firewalld has reloaded, has been started or has
// ended. The zero value watches the system's bus.
type Watcher struct {
	// Address is the bus's, such as "unix:path=/run/dbus/system_bus_socket";
	// "" stands for the system's.
	Address string
	// MinWait and MaxWait are the bounds of the wait between attempts to
	// connect, which doubles with each that fails. 0 stands for one second
	// and for thirty.
	MinWait, MaxWait time.Duration
}

// Run calls changed when firewalld may have changed the rules, until ctx
// ends, and returns nil. A call is a hint. There is one after each connection
// to the bus, the first included: for what may have happened without one.
//
// A bus that is absent, or refuses us, is no error: without firewalld there
// may be none, and Run keeps looking for one.
func (w *Watcher) Run(ctx context.Context, changed func()) error {
	shortest, longest := cmp.Or(w.MinWait, defaultMinWait), cmp.Or(w.MaxWait, defaultMaxWait)
	wait := shortest
	for {
		if w.listen(ctx, changed) {
			wait = shortest
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, longest)
	}
}

// listen calls changed until the connection breaks or ctx ends. It tells
// whether there was a connection at all.
func (w *Watcher) listen(ctx context.Context, changed func()) (connected bool) {
	connect := dbus.ConnectSystemBus
	if w.Address != "" {
		connect = func(opts ...dbus.ConnOption) (*dbus.Conn, error) { return dbus.Connect(w.Address, opts...) }
	}
	conn, err := connect(dbus.WithContext(ctx)) // closed when ctx ends
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	signals := make(chan *dbus.Signal, 16) // closed when the connection is
	conn.Signal(signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(firewalldName), dbus.WithMatchInterface(firewalldName), dbus.WithMatchMember(reloaded)},
		{dbus.WithMatchSender(busName), dbus.WithMatchInterface(busName), dbus.WithMatchMember(ownerChanged), dbus.WithMatchArg(0, firewalldName)},
	} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			return false
		}
	}
	changed()
	for s := range signals {
		switch s.Name {
		case firewalldName + "." + reloaded, busName + "." + ownerChanged:
			if ctx.Err() == nil {
				changed()
			}
		}
	}
	return true
}
