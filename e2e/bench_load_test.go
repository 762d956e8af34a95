package e2e

import (
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/internal/nettest"
)

// The server's ports: one byte for each connection, or each byte back, or
// nothing at all. By UDP each of them sends back what it gets.
const (
	accepts = 7001
	echoes  = 7002
	sinks   = 7003
)

// serveBench is the server at the end of every way, in the test's process.
func serveBench(t testing.TB, n *nettest.Node) {
	for port, serve := range map[int]func(net.Conn){
		accepts: func(c net.Conn) { _, _ = c.Write([]byte("!")); _ = c.Close() },
		echoes: func(c net.Conn) {
			go func() { _, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}); _ = c.Close() }()
		},
		sinks: func(c net.Conn) { go func() { drain(c); _ = c.Close() }() },
	} {
		n.MustDo(func() error {
			l, err := net.Listen("tcp4", fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					serve(c)
				}
			}()
			pc, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
			if err != nil {
				return err
			}
			go func() {
				buf := make([]byte, 64)
				for {
					size, from, err := pc.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					_, _ = pc.WriteToUDPAddrPort(buf[:size], from)
				}
			}()
			t.Cleanup(func() {
				_ = l.Close()
				_ = pc.Close()
			})
			return nil
		})
	}
}

func drain(c net.Conn) {
	buf := make([]byte, 1<<18)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

// useWay measures one way, once. Sizes are such that each takes a fraction of
// a second.
func (b *bench) useWay(l *lab, w *way) {
	l.outside.MustDo(func() error {
		count := b.pick(500, 1000)
		times := make([]float64, 0, count)
		began := time.Now()
		for range count {
			us, err := w.connectOnce()
			if err != nil {
				return err
			}
			times = append(times, us)
		}
		b.add(tcpRate, w.who, "per s", float64(count)/time.Since(began).Seconds())
		slices.Sort(times)
		b.add(tcpTime, w.who, "µs", quantile(times, 0.5))
		b.add(tcpTime+", p99", w.who, "µs", quantile(times, 0.99))

		flows := count
		if w.who == proxyWay {
			flows /= 10 // it keeps a socket of each for 90 seconds, and has so many
		}
		began = time.Now()
		for range flows {
			if err := w.datagram(); err != nil {
				return err
			}
		}
		b.add(udpRate, w.who, "per s", float64(flows)/time.Since(began).Seconds())

		rate, err := w.bulk(200 * time.Millisecond)
		if err != nil {
			return err
		}
		b.add(bulkRate, w.who, "Gbit/s", rate)
		rate, err = w.turns(b.pick(1000, 2000))
		b.add(turnRate, w.who, "per s", rate)
		return err
	})
}

// socket makes a socket without the runtime's poller in between, which would
// be a good part of what is measured.
func (w *way) socket(kind, port int) (int, *unix.SockaddrInet4, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, err
	}
	// Nobody waits for ever.
	patience := unix.NsecToTimeval((3 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return 0, nil, err
	}
	return fd, &unix.SockaddrInet4{Addr: w.to.As4(), Port: port + w.port}, nil
}

// read is a read that the runtime's signals don't end: with a time limit on the
// socket the kernel doesn't take it up again itself.
func read(fd int, buf []byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, buf); err != unix.EINTR {
			return n, err
		}
	}
}

// connectOnce makes a connection, waits for its first byte, and resets it, so
// that no port is left waiting.
func (w *way) connectOnce() (us float64, err error) {
	fd, to, err := w.socket(unix.SOCK_STREAM, accepts)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := unix.Connect(fd, to); err != nil {
		return 0, fmt.Errorf("connect to %s: %w", w.who, err)
	}
	if n, err := read(fd, make([]byte, 1)); n != 1 {
		return 0, fmt.Errorf("read from %s: %w", w.who, err)
	}
	return float64(time.Since(began).Nanoseconds()) / 1e3, nil
}

// datagram sends the first packet of a flow and waits for it to come back. The
// source ports go round, so that the flow is a new one.
func (w *way) datagram() error {
	fd, to, err := w.socket(unix.SOCK_DGRAM, accepts)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	w.serial++
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 10000 + w.serial%50000}); err != nil {
		return err
	}
	if err := unix.Sendto(fd, []byte("?"), 0, to); err != nil {
		return err
	}
	if n, err := read(fd, make([]byte, 8)); n != 1 {
		return fmt.Errorf("datagram from %s: %w", w.who, err)
	}
	return nil
}

// bulk sends for a while and returns Gbit/s.
func (w *way) bulk(long time.Duration) (float64, error) {
	fd, to, err := w.socket(unix.SOCK_STREAM, sinks)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Connect(fd, to); err != nil {
		return 0, err
	}
	chunk := make([]byte, 1<<17)
	sent := 0
	began := time.Now()
	for time.Since(began) < long {
		n, err := unix.Write(fd, chunk)
		if err != nil {
			return 0, err
		}
		sent += n
	}
	return float64(sent) * 8 / 1e9 / time.Since(began).Seconds(), nil
}

// turns sends a byte and waits for it, over and over, and returns how often a
// second.
func (w *way) turns(count int) (float64, error) {
	fd, to, err := w.socket(unix.SOCK_STREAM, echoes)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Connect(fd, to); err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return 0, err
	}
	buf := make([]byte, 1)
	began := time.Now()
	for range count {
		if _, err := unix.Write(fd, buf); err != nil {
			return 0, err
		}
		if n, err := read(fd, buf); n != 1 {
			return 0, fmt.Errorf("round trip with %s: %w", w.who, err)
		}
	}
	return float64(count) / time.Since(began).Seconds(), nil
}
