package e2e

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

// downloadPort is where serveDownloads serves.
const downloadPort = 8888

// serveDownloads answers on a container's port with a line every few
// milliseconds, its name, until the client goes.
func serveDownloads(t *testing.T, from *nettest.Node) {
	t.Helper()
	from.ServeTCP(downloadPort, func(c net.Conn) {
		for {
			if _, err := fmt.Fprintln(c, from.Name); err != nil {
				return
			}
			time.Sleep(pace)
		}
	})
}

// A download runs from serveDownloads until it is stopped or breaks.
type download struct {
	conn  net.Conn
	lines atomic.Int64
	// server is the name in the first line; others are counted as wrong.
	server string
	wrong  atomic.Int64
	ended  chan struct{}
}

// startDownload returns once the first line is there.
func startDownload(t *testing.T, to *nettest.Node, addr string) *download {
	t.Helper()
	d := &download{ended: make(chan struct{})}
	to.MustDo(func() (err error) {
		d.conn, err = net.DialTimeout("tcp", net.JoinHostPort(addr, fmt.Sprint(downloadPort)), long)
		return err
	})
	t.Cleanup(func() { _ = d.conn.Close() })
	in := bufio.NewReader(d.conn)
	first, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	d.server = strings.TrimSpace(first)
	go func() {
		defer close(d.ended)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			d.lines.Add(1)
			if strings.TrimSpace(line) != d.server {
				d.wrong.Add(1)
			}
		}
	}()
	return d
}

// goesOn tells whether more lines come, all of them of the same server.
func (d *download) goesOn() bool {
	now := d.lines.Load()
	return within(long, func() bool { return d.lines.Load() > now+100 }) && d.wrong.Load() == 0
}

// broke tells whether the connection has ended, or nothing comes any more.
func (d *download) broke() bool {
	select {
	case <-d.ended:
		return true
	case <-time.After(2 * time.Second):
	}
	now := d.lines.Load()
	time.Sleep(time.Second)
	return d.lines.Load() == now
}
