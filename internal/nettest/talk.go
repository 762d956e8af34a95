package nettest

import (
	"errors"
	"io"
	"net"
	"syscall"
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
		k.conn, err = dial(network, addr, sure)
		return err
	})
	n.t.Cleanup(func() { _ = k.conn.Close() })
	return k
}

// Close ends the connection before the test does.
func (k *Talk) Close() { _ = k.conn.Close() }

// Say sends something and tells whether an answer comes, which is waited for
// longer if it is expected: what is lost on a TCP connection is sent again,
// each time later, and may be answered then.
func (k *Talk) Say(expected bool) bool {
	k.node.t.Helper()
	turns := silence
	if expected {
		turns = sure
	}
	err := within(turns, k.conn, func() error {
		if _, err := k.conn.Write([]byte("?")); err != nil {
			return err
		}
		_, err := k.conn.Read(make([]byte, 2048))
		return err
	})
	k.node.t.Logf("%s says something on %s: %v", k.node.Name, k.what, err)
	return err == nil
}

// Refused tells whether a TCP connection is refused, not just left unanswered.
func (n *Node) Refused(addr string) bool {
	n.t.Helper()
	err := n.Do(func() error {
		// IPv6 tells of a refusal when the question is asked again.
		c, err := dial("tcp", addr, sure)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	n.t.Logf("%s connects to %s: %v", n.Name, addr, err)
	return errors.Is(err, syscall.ECONNREFUSED)
}
