package nettest

import (
	"net"
	"strings"
	"time"
)

// Flows opens UDP flows to a port that is served, each from a port of its own
// until the test ends, and returns how many of them were answered, by whom.
func (n *Node) Flows(addr string, count int) map[string]int {
	n.t.Helper()
	answers := map[string]int{}
	n.MustDo(func() error {
		var conns []net.Conn
		for range count {
			c, err := net.Dial("udp", addr)
			if err != nil {
				return err
			}
			n.t.Cleanup(func() { _ = c.Close() })
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			conns = append(conns, c)
		}
		// All were asked by now, so that one wait does for all.
		over, ended := make(chan struct{}), make(chan struct{})
		defer func() { close(over); <-ended }()
		go func() {
			defer close(ended)
			if pass(n.turns, over) {
				for _, c := range conns {
					_ = c.SetReadDeadline(time.Now())
				}
			}
		}()
		buf := make([]byte, 512)
		for _, c := range conns {
			if size, err := c.Read(buf); err == nil {
				name, _, _ := strings.Cut(string(buf[:size]), " ")
				answers[name]++
			}
		}
		return nil
	})
	n.t.Logf("%s opens %d flows to %s: answered by %v", n.Name, count, addr, answers)
	return answers
}

// Spray sends datagrams of one flow to an address that need not answer.
func (n *Node) Spray(addr string, count int) {
	n.t.Helper()
	n.MustDo(func() error {
		c, err := net.Dial("udp", addr)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		for range count {
			_, _ = c.Write([]byte("!")) // an error is that of one before
		}
		return nil
	})
}
