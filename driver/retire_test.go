package driver

import (
	"strings"
	"testing"
	"time"

	api "github.com/docker/go-plugins-helpers/network"
)

// TestReconcileLeavesRetired: a reconciliation that has seen a link before it was
// removed does not make it again.
func TestReconcileLeavesRetired(t *testing.T) {
	l := runningLab(t)
	l.retiring.Store(true)
	if err := l.Leave(&api.LeaveRequest{NetworkID: netID, EndpointID: epID}); err != nil {
		t.Fatal(err)
	}
	r := &repair{Driver: l.Driver, began: time.Now()}
	var err error
	if r.found, err = l.kernel.Survey(); err != nil {
		t.Fatal(err)
	}
	if err := l.DeleteEndpoint(&api.DeleteEndpointRequest{NetworkID: netID, EndpointID: epID}); err != nil {
		t.Fatal(err)
	}
	// As Retire does, before it has recorded it.
	if err := l.withEndpoint(netID, epID, func(n *network, e *endpoint) error { return down(l.plumbing(n.rec, e.rec)) }); err != nil {
		t.Fatal(err)
	}
	r.endpointsAgain()
	if got := l.host.String(); strings.Contains(got, vethName) {
		t.Errorf("repaired %q:\n%s", r.lines, got)
	}
}
