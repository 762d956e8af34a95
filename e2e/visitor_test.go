package e2e

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

// A visitor connects to an address again and again, and notes who answers.
type visitor struct {
	mu     sync.Mutex
	visits []encounter
}

// An encounter is one connection.
type encounter struct {
	at  time.Time // when it was answered, or when it was clear that it would not be
	who string    // "" if nobody did
}

// visit connects from a machine by TCP until the test ends.
func visit(t *testing.T, from *nettest.Node, a netip.Addr) *visitor {
	t.Helper()
	v := &visitor{}
	stop, stopped := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-stopped })
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			who := greeting(from, a)
			v.mu.Lock()
			v.visits = append(v.visits, encounter{time.Now(), who})
			v.mu.Unlock()
		}
	}()
	return v
}

// greeting is the name of the container that a connection reaches, "" if it reaches
// none.
func greeting(from *nettest.Node, a netip.Addr) (who string) {
	_ = from.Do(func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, 80).String(), 300*time.Millisecond)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("?")); err != nil {
			return err
		}
		buf := make([]byte, 128)
		n, err := c.Read(buf)
		who, _, _ = strings.Cut(string(buf[:n]), " ")
		return err
	})
	return who
}

// first is when a name answered first after a time.
func (v *visitor) first(who string, after time.Time) (at time.Time, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, visit := range v.visits {
		if visit.who == who && visit.at.After(after) {
			return visit.at, true
		}
	}
	return at, false
}

// await waits until a name answers, and returns how long after a time that was.
func (v *visitor) await(t *testing.T, who string, after time.Time) time.Duration {
	t.Helper()
	var at time.Time
	if !within(time.Minute, func() (ok bool) { at, ok = v.first(who, after); return ok }) {
		t.Fatalf("%s doesn't answer", who)
	}
	return at.Sub(after)
}

// failures counts the visits after a time that a name did not answer, and all.
func (v *visitor) failures(who string, after time.Time) (failed, all int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, visit := range v.visits {
		if visit.at.After(after) {
			if all++; visit.who != who {
				failed++
			}
		}
	}
	return failed, all
}

// silence is the longest time after another in which nobody answered.
func (v *visitor) silence(after time.Time) (longest time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	last := after
	for _, visit := range v.visits {
		if visit.who != "" && visit.at.After(after) {
			longest = max(longest, visit.at.Sub(last))
			last = visit.at
		}
	}
	return longest
}
