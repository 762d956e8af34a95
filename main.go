// Command extip is a Docker network plugin that gives containers external IP
// addresses. This file joins the packages and holds no logic of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/extip/extip/admin/cli"
	"github.com/extip/extip/driver"
	"github.com/extip/extip/pool"
)

// version is set by the build, from git.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	if err != nil && err.Error() != "" {
		fmt.Fprintln(os.Stderr, "extip:", err)
	}
	os.Exit(cli.ExitCode(err))
}

func command() *cobra.Command {
	root := cli.New(version)
	root.AddCommand(serveCommand())
	return root
}

// serve runs the plugin until ctx ends.
func serve(ctx context.Context, c config) (rerr error) {
	log, err := c.logger()
	if err != nil {
		return err
	}
	defaults := driver.Defaults{Parent: c.parent}
	if defaults.Pool, err = pool.Parse(c.pool); err != nil {
		return fmt.Errorf("--pool=%s: %w", c.pool, err)
	}
	// The store's lock comes first: it tells a second plugin apart from a
	// left-over socket.
	records, member, err := openRecords(c, log)
	if err != nil {
		return err
	}
	defer func() { rerr = errors.Join(rerr, closeRecords(records, member)) }()
	kernel, err := open(c, log)
	if err != nil {
		return err
	}
	d, err := driver.New(kernel.Kernel, records, defaults, log)
	if err != nil {
		return err
	}
	// Bound before the kernel is made to match, served after: the engine's
	// calls wait in the socket, while without one each would be retried for
	// 15 seconds.
	sockets, err := listen(c.pluginSocket)
	if err != nil {
		return err
	}
	guard := driver.NewGuard(d, log)
	control, err := openControl(c, d, guard, kernel, log)
	if err != nil {
		return err
	}
	membership := share(member, kernel, d)
	// Watched from before Restore, so that nothing is missed.
	watchers, err := kernel.watch(d)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	// A lease goes on however long Restore takes.
	group.Go(func() error { return membership(ctx) })
	if err := d.Restore(); err != nil {
		log.WithError(err).Error("not everything could be restored")
	}
	debug.FreeOSMemory() // what the start needed, nothing needs again
	for _, s := range sockets {
		log.WithFields(logrus.Fields{"version": version, "socket": s.Addr(), "backend": kernel.backend}).Info("serving")
		group.Go(func() error { return guard.Serve(ctx, s) })
	}
	group.Go(func() error { return d.Run(ctx, c.reconcileInterval) })
	group.Go(func() error { return d.Retire(ctx) })
	group.Go(func() error { return manage(ctx, d) })
	for _, run := range append(watchers, control...) {
		group.Go(func() error { return run(ctx) })
	}
	group.Go(func() error { return d.Tend(ctx) })
	group.Go(func() error { return d.FollowLedger(ctx) })
	group.Go(func() error { return onHangup(ctx, func() { d.Hint("SIGHUP") }) })
	if c.engineSocket != "" {
		group.Go(func() error { return d.Audit(ctx, driver.NewEngineSocket(c.engineSocket)) })
	}
	err = group.Wait()
	log.Info("stopped; what is in the kernel stays")
	return errors.Join(err, kernel.close())
}

// onHangup calls fn for each SIGHUP until ctx ends.
func onHangup(ctx context.Context, fn func()) error {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangups:
			fn()
		}
	}
}
