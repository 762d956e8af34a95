package driver

import (
	"errors"
	"net"
	"sync"
	"time"
)

// limits bound what connections to the engine's socket may cost. The handler of
// go-plugins-helpers has none of its own, and shows no way to set some.
type limits struct {
	// connections at a time; more wait. An engine has as many as it makes
	// calls at a time, and six that are idle.
	connections int
	// request is the longest, in bytes: some 8 MB are those of a container
	// that publishes all ports one by one.
	request int64
	// answer is how long a request may take, from its first byte to the
	// answer's: the slowest, a Join that probes by RFC 5227, takes 7 s. There
	// is no limit to a connection's idleness: an engine that finds it closed
	// repeats its call without a body.
	answer time.Duration
}

var errTooLong = errors.New("the request is too long")

// engineLimits are far from what an engine does.
func engineLimits() limits {
	return limits{connections: 1024, request: 64 << 20, answer: time.Minute}
}

// limited is a listener whose connections keep to the limits; one that doesn't
// is closed.
type limited struct {
	net.Listener
	limits
	slots  chan struct{}
	closed chan struct{}
	close  func()
}

func limit(l net.Listener, to limits) net.Listener {
	closed := make(chan struct{})
	return &limited{Listener: l, limits: to, slots: make(chan struct{}, to.connections), closed: closed, close: sync.OnceFunc(func() { close(closed) })}
}

// Close implements net.Listener.
func (l *limited) Close() error {
	l.close()
	return l.Listener.Close()
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, limits: l.limits, left: l.request, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

// A limitedConn is a connection on which requests and answers take turns. What
// is read after something was written is the next request.
type limitedConn struct {
	net.Conn
	limits
	free func()

	mu    sync.Mutex
	left  int64 // of the request, in bytes
	timer *time.Timer
}

// Read implements net.Conn.
func (c *limitedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 && c.timer == nil {
		// No deadline: the server sets those itself.
		c.timer = time.AfterFunc(c.answer, func() { _ = c.Close() })
	}
	if c.left -= int64(n); c.left < 0 {
		return n, errTooLong
	}
	return n, err
}

// Write implements net.Conn.
func (c *limitedConn) Write(b []byte) (int, error) {
	c.answered()
	return c.Conn.Write(b)
}

func (c *limitedConn) answered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = c.request
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	c.answered()
	c.free()
	return c.Conn.Close()
}
