package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/extip/extip/driver"
)

// listen returns the socket that a service manager has bound and passed, as
// systemd's socket units do, or else binds those at the comma-separated paths.
// A passed socket stays when the plugin stops: calls wait in it for the next
// one. It is called once.
func listen(paths string) ([]net.Listener, error) {
	sockets, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("the passed sockets: %w", err)
	}
	if len(sockets) > 0 {
		if slices.Contains(sockets, nil) {
			return nil, errors.New("a socket was passed that does not listen")
		}
		return sockets, nil
	}
	for path := range strings.SplitSeq(paths, ",") {
		socket, err := driver.Listen(strings.TrimSpace(path))
		if err != nil {
			for _, s := range sockets {
				err = errors.Join(err, s.Close())
			}
			return nil, err
		}
		sockets = append(sockets, socket)
	}
	return sockets, nil
}

// manage tells a service manager, where there is one, that the plugin is
// ready, that it is well, as often as the manager wants to hear it, and that it
// stops. It returns when ctx ends.
func manage(ctx context.Context, d *driver.Driver) error {
	// An error means that the manager does not listen, and nobody else would.
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	defer func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) }()
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("the watchdog's interval: %w", err)
	}
	if interval == 0 {
		<-ctx.Done()
		return nil
	}
	// Twice in the interval, as sd_watchdog_enabled(3) recommends.
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		well := make(chan struct{})
		go func() {
			d.Pass() // never returns if a call hangs
			close(well)
		}()
		select {
		case <-ctx.Done():
			return nil
		case <-well:
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
