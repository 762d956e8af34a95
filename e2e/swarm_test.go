package e2e

import (
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestSwarm: on a network that each of three nodes configures for itself, the
// address of a service follows its task to another node, whether the service names
// it, or has the nodes choose it once of a pool that they share.
func TestSwarm(t *testing.T) {
	t.Parallel()
	s := newSwarm(t)

	t.Run("each for itself", func(t *testing.T) {
		a := netip.MustParseAddr("203.0.113.60")
		s.create("fixed", "--constraint", "node.role==worker", "--network", "name=web,driver-opt=extip.address="+a.String())
		visitor := visit(t, s.outside, a)
		s.drain(t, "fixed", visitor)

		s.share()
		second := s.nodeOf("fixed")
		if who := greeting(s.outside, a); who != second {
			t.Errorf("with etcd %q answers", who)
		}
		s.claimed(t, map[string]string{a.String(): s.nodes[second].clusterHost})
		s.remove(t, "fixed")
	})
	if t.Failed() {
		return
	}

	t.Run("one pool", func(t *testing.T) {
		s.create("web", "--constraint", "node.role==worker", "--network", "name=web,driver-opt=extip.reservation=web")
		a := s.address(t)
		first := s.nodeOf("web")
		visitor := visit(t, s.outside, a)
		visitor.await(t, first, time.Now())

		// With this one's, they are as many as the pool has addresses.
		s.create("many", "--replicas", "6", "--network", "web")
		var have map[string]string
		eventually(t, "each task has an address", func() bool { have = claims(t, s.etcd); return len(have) == 7 })
		for _, task := range s.tasks("many") {
			if task.Status.Err != "" {
				t.Errorf("one was refused: %s", task.Status.Err)
			}
		}
		on := map[string]bool{}
		for address, host := range have {
			on[host] = true
			addr := netip.MustParseAddr(address)
			eventually(t, "a task answers on "+address, func() bool { return greeting(s.outside, addr) != "" })
			if node := s.nodes[greeting(s.outside, addr)]; node == nil || node.clusterHost != host {
				t.Errorf("%s is claimed by %s, and another node answers", address, host)
			}
		}
		if len(on) != 3 {
			t.Errorf("tasks are on the nodes %v only", on)
		}
		s.remove(t, "many", "web")

		second := s.drain(t, "web", visitor)
		s.claimed(t, map[string]string{a.String(): s.nodes[second].clusterHost})

		died := time.Now()
		s.nodes[second].cutPower()
		moved := s.await("web", second)
		took := visitor.await(t, moved.NodeID, died)
		s.claimed(t, map[string]string{a.String(): s.nodes[moved.NodeID].clusterHost})
		since := func(at time.Time) time.Duration { return at.Sub(died).Round(10 * time.Millisecond) }
		t.Logf("after the power was cut: the swarm has another task after %s, which a node starts after %s and which runs after %s; it answers after %s",
			since(moved.CreatedAt), since(moved.began), since(moved.Status.Timestamp), took.Round(10*time.Millisecond))
		if took-moved.began.Sub(died) > clusterTTL+2*time.Second+tardiness {
			t.Error("that is too long after the start")
		}
		s.remove(t, "web")
		n := s.nodes[moved.NodeID]
		// A dump of what is being removed fails, so it waits for what goes last.
		if !within(long, func() bool {
			out, err := n.command("sh", "-c", "ip -o link; nft list tables").Output()
			return err == nil && !strings.Contains(string(out), "xip") && !strings.Contains(string(out), "extip")
		}) || ours(n.host.Dump()) != "" {
			t.Errorf("left behind:\n%s", ours(n.host.Dump()))
		}
	})
}

// claimed fails the test unless these addresses are claimed by these hosts.
func (s *swarm) claimed(t *testing.T, want map[string]string) {
	t.Helper()
	if have := claims(t, s.etcd); !maps.Equal(have, want) {
		t.Errorf("claims %v, want %v", have, want)
	}
}

// address is the only one that is claimed.
func (s *swarm) address(t *testing.T) (a netip.Addr) {
	t.Helper()
	eventually(t, "one address is claimed", func() bool {
		have := claims(t, s.etcd)
		for text := range have {
			a = netip.MustParseAddr(text)
		}
		return len(have) == 1
	})
	return a
}

// remove removes a service, whose claims are gone then, unlike those of others.
func (s *swarm) remove(t *testing.T, service string, others ...string) {
	t.Helper()
	s.docker("service", "rm", service)
	eventually(t, "its claims are gone", func() bool { return len(claims(t, s.etcd)) == len(others) })
}

// drain takes the one task of a service from its node, and returns the node that
// it is on then.
func (s *swarm) drain(t *testing.T, service string, v *visitor) string {
	t.Helper()
	node := s.nodeOf(service)
	v.await(t, node, time.Now())
	began := time.Now()
	s.docker("node", "update", "--availability", "drain", node)
	moved := s.await(service, node)
	took := v.await(t, moved.NodeID, began)
	t.Logf("drained: the task runs elsewhere %s after, and answers %s after; nobody did for %s",
		moved.Status.Timestamp.Sub(began).Round(10*time.Millisecond), took.Round(10*time.Millisecond), v.silence(began).Round(10*time.Millisecond))
	s.docker("node", "update", "--availability", "active", node)
	return moved.NodeID
}
