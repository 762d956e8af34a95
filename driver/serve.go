package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	api "github.com/docker/go-plugins-helpers/network"
)

// drain is how long calls under way may take to end when the plugin stops;
// each takes milliseconds.
const drain = 5 * time.Second

// Listen binds the socket on which the engine finds the plugin, with mode 0600.
// A socket file that nobody listens on is left over and gives way; one that
// somebody does is an error. Call it before other goroutines make files: it
// changes the process's umask for a moment.
func Listen(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("driver: %s: another plugin serves it", path), c.Close())
	}
	if old, err := os.Lstat(path); err == nil && old.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("driver: %s: it is there, and no socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("driver: remove the left-over socket: %w", err)
	}
	// The engine makes this folder with the same mode.
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("driver: %w", err)
	}
	defer syscall.Umask(syscall.Umask(0o177))
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("driver: %w", err)
	}
	return l, nil
}

// Serve answers the engine on l until ctx ends, then lets the calls under way
// finish. What is in the kernel stays: traffic goes on without the plugin.
func (g *Guard) Serve(ctx context.Context, l net.Listener) error {
	l = limit(l, engineLimits())
	failed := make(chan error, 1)
	go func() { failed <- api.NewHandler(g).Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("driver: serve: %w", err)
	case <-ctx.Done():
	}
	closed := l.Close()
	<-failed
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	return errors.Join(closed, g.Wait(ending))
}
