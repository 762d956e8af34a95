package nettest

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"
)

// ServeEcho sends back whatever comes to a TCP port, until the other end closes.
func (n *Node) ServeEcho(port int) {
	n.t.Helper()
	n.ServeTCP(port, func(c net.Conn) {
		_, _ = io.Copy(c, c)
	})
}

// A Talk is a connection that stays.
type Talk struct {
	node *Node
	what string
	conn net.Conn
}

// Talk connects to an address. It ends with the test.
func (n *Node) Talk(network, addr string) *Talk {
	n.t.Helper()
	k := &Talk{node: n, what: network + " " + addr}
	n.MustDo(func() (err error) {
		k.conn, err = net.DialTimeout(network, addr, patience)
		return err
	})
	n.t.Cleanup(func() { _ = k.conn.Close() })
	return k
}

// Close ends the connection before the test does.
func (k *Talk) Close() { _ = k.conn.Close() }

// Say sends something and tells whether an answer comes. What is lost on a
// TCP connection is sent again, and may be answered later.
func (k *Talk) Say() bool {
	k.node.t.Helper()
	buf := make([]byte, 2048)
	err := k.conn.SetDeadline(time.Now().Add(patience))
	if err == nil {
		_, err = k.conn.Write([]byte("?"))
	}
	if err == nil {
		_, err = k.conn.Read(buf)
	}
	k.node.t.Logf("%s says something on %s: %v", k.node.Name, k.what, err)
	return err == nil
}

// Refused tells whether a TCP connection is refused, not just left unanswered.
func (n *Node) Refused(addr string) bool {
	n.t.Helper()
	err := n.Do(func() error {
		// IPv6 tells of a refusal when the question is asked again.
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	n.t.Logf("%s connects to %s: %v", n.Name, addr, err)
	return errors.Is(err, syscall.ECONNREFUSED)
}
