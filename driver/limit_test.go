package driver

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// serveLimited answers every request with its length.
func serveLimited(t *testing.T, to limits) (dial func() net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
		fmt.Fprint(w, len(b))
	})}
	go func() { _ = server.Serve(limit(l, to)) }()
	t.Cleanup(func() { _ = server.Close() })
	return func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
}

func request(size int) string {
	return fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size))
}

// answer reads what comes; "" if that is the end.
func answer(c net.Conn) string {
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 4096)
	n, _ := c.Read(b)
	return string(b[:n])
}

// silent fails the test if something comes within a while.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	b := make([]byte, 4096)
	if n, err := c.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%q, %v", b[:n], err)
	}
}

// TestLimitedListenerCloses: also while a connection waits for another to end.
func TestLimitedListenerCloses(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "sock"))
	if err != nil {
		t.Fatal(err)
	}
	l = limit(l, limits{})
	accepted := make(chan error)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
}

func TestLimits(t *testing.T) {
	dial := serveLimited(t, limits{connections: 2, request: 10000, answer: time.Minute})
	write := func(c net.Conn, s string) {
		t.Helper()
		if _, err := io.WriteString(c, s); err != nil {
			t.Fatal(err)
		}
	}
	one := dial()
	for range 3 { // each request has its own limit
		write(one, request(9000))
		if got := answer(one); !strings.HasSuffix(got, "9000") {
			t.Errorf("answer %q", got)
		}
	}
	two := dial()
	_, _ = io.WriteString(two, request(1<<20))
	if got := answer(two); strings.Contains(got, " 200 ") {
		t.Errorf("a request that is too long: answer %q", got)
	}
	// A third connection waits for one of the first to end.
	second, third := dial(), dial()
	write(second, request(1))
	if got := answer(second); !strings.HasSuffix(got, "1") {
		t.Errorf("the second connection: %q", got)
	}
	write(third, request(1))
	silent(t, third)
	_ = one.Close()
	if got := answer(third); !strings.HasSuffix(got, "1") {
		t.Errorf("after one has ended: %q", got)
	}
}

// TestAnswerLimit: half a request ends its connection after a while; one that
// waits for the next request doesn't end.
func TestAnswerLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			name, request string
			ends          bool
		}{{"half", "POST / HTTP/1.1\r\n", true}, {"whole", request(1), false}} {
			ours, theirs := net.Pipe()
			c := &limitedConn{Conn: theirs, limits: limits{answer: 200 * time.Millisecond, request: 10000}, left: 10000, free: func() {}}
			go func() { _, _ = io.WriteString(ours, tt.request) }()
			if _, err := c.Read(make([]byte, 4096)); err != nil {
				t.Fatal(err)
			}
			if !tt.ends {
				go func() { _, _ = ours.Read(make([]byte, 4096)) }()
				if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
			}
			_ = ours.SetReadDeadline(time.Now().Add(time.Hour))
			_, err := ours.Read(make([]byte, 1))
			if ended := errors.Is(err, io.EOF); ended != tt.ends {
				t.Errorf("%s: %v", tt.name, err)
			}
			_, _ = ours.Close(), c.Close()
		}
	})
}
