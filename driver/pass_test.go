package driver

import (
	"errors"
	"testing"
	"time"

	api "github.com/docker/go-plugins-helpers/network"
)

// TestPass: it waits for a call that hangs in the kernel, and for nothing else.
func TestPass(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.62")
	if err := l.run(epID, "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	l.Pass()
	hangs, goOn := make(chan struct{}), make(chan struct{})
	l.store.Intercept = func(what string) error {
		close(hangs)
		<-goOn
		return errors.New("enough")
	}
	left := make(chan struct{})
	go func() {
		_ = l.Leave(&api.LeaveRequest{NetworkID: netID, EndpointID: epID})
		close(left)
	}()
	<-hangs
	passed := make(chan struct{})
	go func() {
		l.Pass()
		close(passed)
	}()
	select {
	case <-passed:
		t.Error("it passed a lock that is held")
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	<-left
	<-passed
}
