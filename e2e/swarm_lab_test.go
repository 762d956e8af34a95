package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/extip/extip/internal/etcdtest"
	"github.com/extip/extip/internal/nettest"
)

// swarmImage has no registry behind it: an engine of a swarm asks for an image
// before it uses the one that it has.
const swarmImage = "127.0.0.1:9/probe"

// A swarm is a manager and two workers on one segment, with the network web, and
// an etcd behind another.
type swarm struct {
	*managed // the manager
	etcd     *etcdtest.Node
	nodes    map[string]*swarmNode // all three, by their ids
}

type swarmNode struct {
	*managed
	clusterHost string
}

func newSwarm(t *testing.T) *swarm {
	t.Helper()
	back := nettest.NamedSegment(t, "back")
	const etcdAddr = "198.51.100.1"
	s := &swarm{
		managed: newManaged(t, options{}, "extip/plugin:one"),
		etcd:    etcdtest.Start(t, etcdtest.Place{On: back.Attach("etcd", etcdAddr+"/24"), IP: etcdAddr})[0],
		nodes:   map[string]*swarmNode{},
	}
	var token string
	for i, address := range []string{hostAddr, "203.0.113.11", "203.0.113.12"} {
		n := s.managed
		if i > 0 {
			n = &managed{lab: s.neighbour(address), t: t, name: s.name}
			n.startEngine()
		}
		back.Plug(n.host, "eth1", fmt.Sprintf("198.51.100.1%d/24", i))
		n.build(n.name, "1")
		n.docker("plugin", "enable", n.name)
		n.docker("tag", probeImage, swarmImage)
		n.docker("network", "create", "--config-only", "--subnet", "172.31.0.0/16",
			"-o", "extip.parent="+n.parent, "-o", "extip.pool=203.0.113.56-203.0.113.62", "here")
		if i == 0 {
			n.docker("swarm", "init", "--advertise-addr", address, "--dispatcher-heartbeat", "3s")
			token = n.docker("swarm", "join-token", "-q", "worker")
		} else {
			n.docker("swarm", "join", "--advertise-addr", address, "--token", token, hostAddr+":2377")
		}
		s.nodes[n.docker("info", "-f", "{{.Swarm.NodeID}}")] = &swarmNode{n, fmt.Sprintf("docker%d", i+1)}
	}
	s.docker("network", "create", "-d", s.name, "--scope", "swarm", "--config-from", "here", "web")
	return s
}

// share has the nodes share their addresses by etcd from now on.
func (s *swarm) share() {
	s.t.Helper()
	for _, n := range s.nodes {
		n.docker("plugin", "disable", "-f", n.name)
		n.docker("plugin", "set", n.name, "EXTIP_CLUSTER="+etcdtest.Nodes{s.etcd}.URL(), "EXTIP_CLUSTER_HOST="+n.clusterHost, "EXTIP_CLUSTER_TTL="+clusterTTL.String())
		n.docker("plugin", "enable", n.name)
	}
}

// create creates a service, of one replica unless args say otherwise, whose tasks
// answer with the ids of their nodes.
func (s *swarm) create(service string, args ...string) {
	s.t.Helper()
	args = append([]string{"service", "create", "--detach", "--no-resolve-image", "--name", service, "--hostname", "{{.Node.ID}}",
		"--endpoint-mode", "dnsrr"}, args...)
	s.docker(append(args, swarmImage, "/probe", "serve", "80")...)
	if !within(3*long, func() bool { return s.running(service, "") != nil }) {
		s.docker("service", "ps", "--no-trunc", service)
		s.t.Fatalf("%s doesn't run", service)
	}
}

// A task is what the manager says of one, and when its node began to start it.
type task struct {
	ID, NodeID   string
	CreatedAt    time.Time
	DesiredState string
	Status       struct {
		Timestamp  time.Time // of the state
		State, Err string
	}
	began time.Time
}

// tasks are those of a service that the manager wants, or did.
func (s *swarm) tasks(service string) (list []task) {
	s.t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return net.Dial("unix", s.path("/run/docker.sock"))
		},
	}}
	r, err := client.Get("http://engine/tasks?filters=" + url.QueryEscape(fmt.Sprintf(`{"service":[%q]}`, service)))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	if err := json.NewDecoder(r.Body).Decode(&list); err != nil {
		s.t.Fatalf("tasks of %s: %s: %v", service, r.Status, err)
	}
	return list
}

// running is a task of a service that runs, and shall, on another node than one;
// nil if there is none.
func (s *swarm) running(service, but string) *task {
	s.t.Helper()
	for _, t := range s.tasks(service) {
		if t.Status.State == "running" && t.DesiredState == "running" && t.NodeID != but {
			return &t
		}
	}
	return nil
}

// nodeOf is the id of the node on which a service's one task runs.
func (s *swarm) nodeOf(service string) string {
	s.t.Helper()
	t := s.running(service, "")
	if t == nil {
		s.t.Fatalf("%s doesn't run", service)
	}
	return t.NodeID
}

// await waits until a service's one task has left a node and runs on another one.
func (s *swarm) await(service, left string) task {
	s.t.Helper()
	began := map[string]time.Time{}
	refused := map[string]bool{}
	var moved *task
	if !within(5*long, func() bool {
		for _, t := range s.tasks(service) {
			if t.Status.State == "starting" {
				began[t.ID] = t.Status.Timestamp
			}
			if t.Status.Err != "" && !refused[t.ID] {
				refused[t.ID] = true
				s.t.Logf("a task on %s %s: %s", t.NodeID, t.Status.State, t.Status.Err)
			}
		}
		moved = s.running(service, left)
		return moved != nil
	}) {
		s.docker("service", "ps", "--no-trunc", service)
		s.t.Fatalf("%s doesn't run again", service)
	}
	moved.began = began[moved.ID]
	return *moved
}
