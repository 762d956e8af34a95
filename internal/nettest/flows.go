package nettest

import (
	"net"
	"strings"
	"time"
)

// Flows opens UDP flows to a port that is served, each from a port of its own
// until the test ends, and returns how many of them were answered, by whom. So
// many answers are waited for longer as are expected.
func (n *Node) Flows(addr string, count, expected int) map[string]int {
	n.t.Helper()
	answers := make(chan string, count)
	n.MustDo(func() error {
		for range count {
			c, err := net.Dial("udp", addr)
			if err != nil {
				return err
			}
			n.t.Cleanup(func() { _ = c.Close() })
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			go func() {
				buf := make([]byte, 512)
				if size, err := c.Read(buf); err == nil {
					name, _, _ := strings.Cut(string(buf[:size]), " ")
					answers <- name
				}
			}()
		}
		return nil
	})
	by, total := map[string]int{}, 0
	for left := sure; left > 0 && total < count; {
		if total >= expected {
			left = min(left, silence)
		}
		select {
		case name := <-answers:
			by[name]++
			total++
		case <-time.After(turn):
			left--
		}
	}
	n.t.Logf("%s opens %d flows to %s: answered by %v", n.Name, count, addr, by)
	return by
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
