package nftables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A Watcher hears of changes that others make to our tables.
type Watcher struct {
	socket   *netlink.Conn
	own      uint32 // port of the backend's socket
	families []family
}

// Watch begins to collect, in the calling thread's network namespace, what
// changes from now on; Run delivers it.
func (b *keeper) Watch() (*Watcher, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("nat: watch: %w", err)
	}
	w := &Watcher{socket: c, own: b.kernel.port, families: b.families}
	if err := errors.Join(c.SetReadBuffer(buffer), c.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		return nil, errors.Join(fmt.Errorf("nat: watch: %w", err), c.Close())
	}
	return w, nil
}

// Run calls changed after somebody else has changed our tables, or may have,
// until ctx ends; then the Watcher is closed. Calls come one at a time, some
// perhaps for one and the same transaction: they are hints to Repair.
func (w *Watcher) Run(ctx context.Context, changed func()) (err error) {
	stop := context.AfterFunc(ctx, func() { _ = w.socket.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		stop()
		err = errors.Join(err, w.socket.Close())
	}()
	for {
		messages, err := w.socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed() // some were lost
		case err != nil:
			return fmt.Errorf("nat: watch: %w", err)
		case w.concerns(messages):
			changed()
		}
	}
}

// concerns tells whether any message is about our tables and not of our own
// doing. Each carries the port of whoever asked for the change; the process
// id that the kernel tells, too, is that of one of its threads.
func (w *Watcher) concerns(messages []netlink.Message) bool {
	for _, m := range messages {
		// The table's name is attribute 1 of tables, chains, rules, sets,
		// elements and all else that can be in one.
		if m.Header.PID != w.own && m.Header.Type != messageType(unix.NFT_MSG_NEWGEN) &&
			payload(m).find(unix.NFTA_TABLE_NAME).string() == tableName &&
			slices.ContainsFunc(w.families, func(f family) bool { return f.proto() == m.Data[0] }) {
			return true
		}
	}
	return false
}
