package e2e

import (
	"slices"
	"strings"
	"testing"
)

// TestSwarm: a service of one replica, on a network that each of three nodes
// configures for itself, keeps its external address when its node dies.
func TestSwarm(t *testing.T) {
	t.Parallel()
	// The name has no registry behind it: an engine of a swarm asks for an
	// image before it uses the one that it has.
	const image = "127.0.0.1:9/probe"
	manager := newManaged(t, options{}, "extip/plugin:one")
	nodes := map[string]*managed{"": manager}
	for _, address := range []string{"203.0.113.11", "203.0.113.12"} {
		nodes[address] = &managed{lab: manager.neighbour(address), t: t, name: manager.name}
		nodes[address].startEngine()
	}
	for _, n := range nodes {
		n.build(n.name, "1")
		n.docker("plugin", "enable", n.name)
		n.docker("tag", probeImage, image)
		n.docker("network", "create", "--config-only", "--subnet", "172.31.0.0/16",
			"-o", "extip.parent="+n.parent, "-o", "extip.pool=203.0.113.56-203.0.113.62", "here")
	}
	manager.docker("swarm", "init", "--advertise-addr", hostAddr, "--dispatcher-heartbeat", "3s")
	token := manager.docker("swarm", "join-token", "-q", "worker")
	workers := map[string]*managed{} // by the node's id
	for address, n := range nodes {
		if n != manager {
			n.docker("swarm", "join", "--advertise-addr", address, "--token", token, hostAddr+":2377")
			workers[n.docker("info", "-f", "{{.Swarm.NodeID}}")] = n
		}
	}

	manager.docker("network", "create", "-d", manager.name, "--scope", "swarm", "--config-from", "here", "web")
	manager.docker("service", "create", "--detach", "--no-resolve-image", "--name", "web", "--hostname", "web",
		"--endpoint-mode", "dnsrr", "--constraint", "node.role==worker",
		"--network", "name=web,driver-opt=extip.address=203.0.113.60", image, "/probe", "serve", "80")
	runs := func() bool { return answer(manager.outside, "203.0.113.60:80") == "web saw "+outsideAddr }
	if !within(3*long, runs) {
		manager.docker("service", "ps", "--no-trunc", "web")
		t.Fatal("the service doesn't run")
	}
	first := manager.nodeOf("web")
	if workers[first] == nil {
		t.Fatalf("it runs on %q", first)
	}
	workers[first].cutPower()
	if !within(5*long, runs) {
		manager.docker("service", "ps", "--no-trunc", "web")
		t.Fatal("the service doesn't run again")
	}
	second := manager.nodeOf("web")
	if second == first || workers[second] == nil {
		t.Errorf("first it was on %q, now on %q", first, second)
	}
	manager.docker("service", "rm", "web")
	n := workers[second]
	// A dump of what is being removed fails, so it waits for what goes last.
	if !within(long, func() bool {
		out, err := n.command("sh", "-c", "ip -o link; nft list tables").Output()
		return err == nil && !strings.Contains(string(out), "xip") && !strings.Contains(string(out), "extip")
	}) || ours(n.host.Dump()) != "" {
		t.Errorf("left behind:\n%s", ours(n.host.Dump()))
	}
}

// nodeOf is the id of the node on which a service's one task runs.
func (m *managed) nodeOf(service string) string {
	m.t.Helper()
	tasks := strings.Fields(m.docker("service", "ps", "-q", "--filter", "desired-state=running", service))
	var nodes []string
	for _, task := range tasks {
		nodes = append(nodes, m.docker("inspect", "--type", "task", "-f", "{{.NodeID}}", task))
	}
	if len(slices.Compact(nodes)) != 1 {
		m.t.Fatalf("%s runs on the nodes %q", service, nodes)
	}
	return nodes[0]
}
