package nettest

import (
	"fmt"
	"io"
	"net"
	"time"
)

// Bulk is what ServeBulk sends, in bytes: many times what fits into a
// connection's first window.
const Bulk = 1 << 20

// ServeBulk sends Bulk bytes to whoever connects to a TCP port.
func (n *Node) ServeBulk(port int) {
	n.t.Helper()
	n.ServeTCP(port, func(c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		_, _ = c.Write(make([]byte, Bulk))
	})
}

// Fetch returns how many bytes come from a TCP address before the other end
// closes, or nothing has come for a while.
func (n *Node) Fetch(addr string) (size int) {
	n.t.Helper()
	err := n.Do(func() error {
		c, err := dial("tcp", addr, silence)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		for buf := make([]byte, 64<<10); ; {
			var got int
			err := within(n.turns, c, func() (err error) {
				got, err = c.Read(buf)
				return err
			})
			size += got
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	n.t.Logf("%s fetches from %s: %d bytes, %v", n.Name, addr, size, err)
	return size
}

// ServeTCP has serve talk to each who connects to a TCP port, and hangs up after.
func (n *Node) ServeTCP(port int, serve func(net.Conn)) {
	n.t.Helper()
	n.MustDo(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		n.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer func() { _ = c.Close() }()
					serve(c)
				}()
			}
		}()
		return nil
	})
}
