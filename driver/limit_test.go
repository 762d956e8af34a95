package driver

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
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

// answer reads what comes within a second; "" if that is nothing, or the end.
func answer(c net.Conn) string {
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 4096)
	n, _ := c.Read(b)
	return string(b[:n])
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
	dial := serveLimited(t, limits{connections: 2, request: 10000, answer: 200 * time.Millisecond})
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
		time.Sleep(300 * time.Millisecond) // idleness has none
	}
	two := dial()
	_, _ = io.WriteString(two, request(1<<20))
	if got := answer(two); strings.Contains(got, " 200 ") {
		t.Errorf("a request that is too long: answer %q", got)
	}
	slow := dial()
	write(slow, "POST / HTTP/1.1\r\n")
	if got := answer(slow); got != "" {
		t.Errorf("half a request: answer %q", got)
	}
	if _, err := slow.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection of half a request is not closed: %v", err)
	}
	// A third connection waits for one of the first to end.
	second, third := dial(), dial()
	write(second, request(1))
	if got := answer(second); !strings.HasSuffix(got, "1") {
		t.Errorf("the second connection: %q", got)
	}
	write(third, request(1))
	if got := answer(third); got != "" {
		t.Errorf("a third connection at a time: %q", got)
	}
	_ = one.Close()
	if got := answer(third); !strings.HasSuffix(got, "1") {
		t.Errorf("after one has ended: %q", got)
	}
}
