package driver

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	api "github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"

	"github.com/extip/extip/announce"
)

// observed notes what an Observer is told, without the times.
type observed struct{ lines []string }

func (o *observed) Call(method string, _ time.Duration, err error) {
	o.lines = append(o.lines, fmt.Sprintf("%s %v", method, err))
}

func (o *observed) Reconciled(cause string, _ time.Duration, n int, err error) {
	o.lines = append(o.lines, fmt.Sprintf("reconciled after %s: %d %v", cause, n, err))
}

func (o *observed) Conflict(a netip.Addr)  { o.lines = append(o.lines, "conflict "+a.String()) }
func (o *observed) Announced(a netip.Addr) { o.lines = append(o.lines, "announced "+a.String()) }
func (o *observed) Lost(a netip.Addr)      { o.lines = append(o.lines, "lost "+a.String()) }
func (o *observed) TakenOver(a netip.Addr) { o.lines = append(o.lines, "taken over "+a.String()) }

func TestObserver(t *testing.T) {
	l := newLab(t)
	o := &observed{}
	l.Observe(o)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.62")
	if err := l.run(epID, "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	l.host.Take(vethName)
	l.host.Flush()
	if _, err := l.Reconcile("a test"); err != nil {
		t.Fatal(err)
	}
	l.Conflict(announce.Conflict{Parent: "br-ex", Address: external, MAC: stranger, Defended: true})
	log := logrus.New()
	log.SetOutput(io.Discard)
	g := NewGuard(l, log)
	g.Observe(o)
	_, _ = g.GetCapabilities()
	_ = g.DeleteNetwork(&api.DeleteNetworkRequest{})
	want := []string{
		"announced 203.0.113.56", "reconciled after a test: ", "conflict 203.0.113.56", "GetCapabilities <nil>",
		"DeleteNetwork DeleteNetwork: the request names no network",
	}
	if !slices.EqualFunc(want, o.lines, func(want, got string) bool { return strings.HasPrefix(got, want) }) || strings.Contains(o.lines[1], ": 0") {
		t.Errorf("told %q", o.lines)
	}
}

// panics stands for a mistake of ours.
type panics struct{ api.Driver }

func (panics) Leave(*api.LeaveRequest) error { panic(errors.New("a mistake")) }

// TestObserverOfPanics: what the engine is told was an error is one.
func TestObserverOfPanics(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	o := &observed{}
	g := NewGuard(panics{}, log)
	g.Observe(o)
	if err := g.Leave(&api.LeaveRequest{NetworkID: "n", EndpointID: "e"}); err == nil || len(o.lines) != 1 || !strings.Contains(o.lines[0], "internal error") {
		t.Errorf("%v, told %q", err, o.lines)
	}
}
