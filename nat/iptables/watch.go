package iptables

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// defaultInterval is between two looks at the legacy tables. A look at
// all six takes 5 µs (see sizes), and a lost rule is to be back in a second.
const defaultInterval = 500 * time.Millisecond

// A Watcher notices when somebody else changes the rules: a firewall that is
// reloaded, an administrator's flush. It hears of each change where the kernel
// tells (iptables-nft), and counts entries where it doesn't (iptables-legacy);
// there, a change that leaves a table's number of entries and its size as
// they were goes unnoticed.
type Watcher struct {
	// Interval is between two looks at the tables of iptables-legacy; 0
	// stands for 500 ms. To be set before Run.
	Interval time.Duration

	writer writer
	watch  watch
}

// A writer writes rules with its tools, one write at a time.
type writer interface {
	lock()
	unlock()
	tools() []*tool // of both families; guarded by the lock
}

// A ledger knows which changes of the kernel's rules are our own. It is
// guarded by the writer's lock.
type ledger interface {
	// read is told what iptables-save has just found.
	read(f family, have map[string]held)
	// write runs restore, which writes b.
	write(f family, b *batch, restore func() error) error
}

// A watch is a flavour's way to notice changes.
type watch interface {
	ledger
	// run calls changed until ctx ends. It asks the ledger, guarded by the
	// writer's lock, but calls changed without it.
	run(ctx context.Context, w *Watcher, changed func()) error
	close()
}

var errWatched = errors.New("there is a watcher already")

// Watch begins to collect what others change from now on, in the network
// namespace of the calling thread; Run delivers it. A Backend has one Watcher
// at a time: from Watch until Run returns.
func (b *Backend) Watch() (*Watcher, error) { return watchFor(b) }

// Watch is Backend.Watch for what lets traffic pass. A hint may be about other
// rules of iptables.
func (a *Admission) Watch() (*Watcher, error) { return watchFor(a) }

func watchFor(w writer) (*Watcher, error) {
	w.lock()
	defer w.unlock()
	tools := w.tools()
	if tools[0].ledger != nil {
		return nil, fmt.Errorf("nat: watch: %w", errWatched)
	}
	open := openEvents
	if tools[0].legacy {
		open = func() (watch, error) { return openSizes(tools) }
	}
	opened, err := open()
	if err != nil {
		return nil, fmt.Errorf("nat: watch: %w", err)
	}
	record(tools, opened)
	return &Watcher{writer: w, watch: opened}, nil
}

func record(tools []*tool, l ledger) {
	for _, t := range tools {
		t.ledger = l
	}
}

// Run calls changed when somebody else may have changed the rules, until ctx
// ends and a write that is going on. A call is a hint: several may come for
// one change, or for none. Those who want to know look, with Repair, which
// changed itself may call.
func (w *Watcher) Run(ctx context.Context, changed func()) error {
	err := w.watch.run(ctx, w, changed)
	w.writer.lock()
	record(w.writer.tools(), nil)
	w.writer.unlock()
	w.watch.close()
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("nat: watch: %w", err)
	}
	return nil
}
