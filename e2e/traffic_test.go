package e2e

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

// A flow is one datagram flow from a machine to an address, with a packet
// every two milliseconds and an answer to each, until it is stopped. A server
// that can't keep up gets fewer, as they would be lost in its socket's buffer.
type flow struct {
	conn     net.Conn
	sent     atomic.Int64
	answered atomic.Int64
	stopping chan struct{}
	quieten  func() // closes stopping

	sender, reader sync.WaitGroup
}

const pace = 2 * time.Millisecond

// Of window packets without an answer, one more is sent only every so many
// ticks: the least buffer holds 200 or so.
const window, rarely = 100, 100

// startFlow returns once the first answer is there.
func startFlow(t *testing.T, from *nettest.Node, addr string) *flow {
	t.Helper()
	f := &flow{stopping: make(chan struct{})}
	f.quieten = sync.OnceFunc(func() { close(f.stopping) })
	from.MustDo(func() (err error) {
		f.conn, err = net.Dial("udp", addr)
		return err
	})
	f.reader.Go(func() {
		buf := make([]byte, 256)
		for {
			_, err := f.conn.Read(buf)
			switch {
			case err == nil:
				f.answered.Add(1)
			case errors.Is(err, net.ErrClosed):
				return
			}
			// An ICMP error of a moment without an answer is no end.
		}
	})
	f.sender.Go(func() {
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for ticks := 0; ; ticks++ {
			select {
			case <-f.stopping:
				return
			case <-tick.C:
				if f.sent.Load()-f.answered.Load() >= window && ticks%rarely != 0 {
					continue
				}
				if _, err := f.conn.Write([]byte("?")); err == nil {
					f.sent.Add(1)
				}
			}
		}
	})
	t.Cleanup(f.end)
	eventually(t, "the flow to "+addr+" is answered", func() bool { return f.answered.Load() > 0 })
	return f
}

// stop ends the flow and tells how many packets were sent and how many of
// them, or of their answers, were lost. It waits for those on their way.
func (f *flow) stop() (sent, lost int64) {
	f.quieten()
	f.sender.Wait()
	within(long/2, func() bool { return f.answered.Load() >= f.sent.Load() })
	f.end()
	return f.sent.Load(), f.sent.Load() - f.answered.Load()
}

// end ends the flow, whatever is on its way.
func (f *flow) end() {
	f.quieten()
	f.sender.Wait()
	_ = f.conn.Close()
	f.reader.Wait()
}

// lostNone stops flows and fails the test if any of them lost a packet while
// something happened.
func lostNone(t *testing.T, while string, flows map[string]*flow) {
	t.Helper()
	for name, f := range flows {
		sent, lost := f.stop()
		t.Logf("%s, %s: %d packets sent, %d lost", while, name, sent, lost)
		if lost > 0 {
			t.Errorf("%s: %d of %d packets were lost", name, lost, sent)
		}
	}
}

// repairTime makes damage and tells how long, from its end, new connections
// from a machine to addr stay without their answer.
func repairTime(t *testing.T, from *nettest.Node, addr, want string, damage func()) time.Duration {
	t.Helper()
	works := make(chan time.Time, 1)
	var damaged atomic.Bool
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			if !damaged.Load() {
				continue
			}
			began := time.Now()
			done.Go(func() {
				if answer(from, addr) == want {
					select {
					case works <- began:
					default:
					}
				}
			})
		}
	})
	damage()
	ended := time.Now()
	damaged.Store(true)
	defer done.Wait()
	defer close(stop)
	select {
	case at := <-works:
		return at.Sub(ended)
	case <-time.After(long):
		t.Fatalf("%s is not repaired", addr)
		return 0
	}
}

// answer asks by a datagram flow of its own, quietly.
func answer(from *nettest.Node, addr string) string {
	return datagram(from, 0, addr, 300*time.Millisecond)
}

// fromPort asks by a datagram from a given port, as a client does that keeps
// its socket while the server is restarted.
func fromPort(from *nettest.Node, port int, addr string) string {
	return datagram(from, port, addr, long/2)
}

// datagram sends one from a port, any if it is 0, and returns what is answered
// in time.
func datagram(from *nettest.Node, port int, addr string, patience time.Duration) string {
	return exchange(from, "udp", port, addr, patience)
}

// exchange is datagram for a connection over tcp, too.
func exchange(from *nettest.Node, network string, port int, addr string, patience time.Duration) string {
	var text string
	_ = from.Do(func() error {
		d := net.Dialer{LocalAddr: &net.UDPAddr{Port: port}, Timeout: patience}
		if network == "tcp" {
			d.LocalAddr = &net.TCPAddr{Port: port}
		}
		c, err := d.Dial(network, addr)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("?")); err != nil {
			return err
		}
		buf := make([]byte, 256)
		n, err := c.Read(buf)
		text = string(buf[:n])
		return err
	})
	return text
}
