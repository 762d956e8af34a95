package e2e

import (
	"strings"
	"testing"
)

// TestMainJob is what extip is for: the outside machine reaches the container
// on its external address, whatever the protocol and port, and is seen as who
// it is; the container goes out and is seen by its external address. On each
// kind of parent, and without a trace afterwards.
func TestMainJob(t *testing.T) {
	t.Parallel()
	for _, parent := range []string{"eth0", "bridge", "ovs"} {
		t.Run(parent, func(t *testing.T) {
			lab := newLab(t, options{parent: parent})
			before := lab.host.Dump()
			lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
			web := lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.60")
			ask(t, []question{
				{lab.outside, "tcp", "203.0.113.60:80", "web saw " + outsideAddr},
				{lab.outside, "tcp", "203.0.113.60:8080", "web saw " + outsideAddr},
				{lab.outside, "udp", "203.0.113.60:80", "web saw " + outsideAddr},
				{lab.outside, "icmp", "203.0.113.60", "ttl 63"}, // 64 would be the host
				{web, "tcp", outsideAddr + ":80", "outside saw 203.0.113.60"},
				{web, "udp", outsideAddr + ":80", "outside saw 203.0.113.60"},
				{web, "icmp", outsideAddr, "ttl 63"},
			})
			// The same from a process that the engine started.
			for _, network := range []string{"tcp", "udp"} {
				if got, want := lab.docker("exec", "web", "/probe", "ask", network, outsideAddr+":80"), "outside saw 203.0.113.60"; got != want {
					t.Errorf("%s from the container: got %q, want %q", network, got, want)
				}
			}
			lab.docker("rm", "-f", "web")
			lab.docker("network", "rm", "web")
			lab.unchanged(before)
			ask(t, []question{{lab.outside, "icmp", "203.0.113.60", ""}})
		})
	}
}

// TestPool hands out what the network may, and says so when there is no more.
func TestPool(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.57")
	one := lab.run("one", "--network", "web")
	two := lab.run("two", "--network", "web")
	ask(t, []question{
		{one, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
		{two, "tcp", outsideAddr + ":80", "outside saw 203.0.113.57"},
	})
	before := lab.host.Dump()
	refused(t, lab, []string{"203.0.113.56-203.0.113.57"}, "--network", "web")
	lab.unchanged(before)
	lab.docker("rm", "-f", "one")
	three := lab.run("three", "--network", "web")
	ask(t, []question{
		{three, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
		{lab.outside, "udp", "203.0.113.56:80", "three saw " + outsideAddr},
	})
}

// TestClaim has two containers ask for one address.
func TestClaim(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	lab.network("other", "172.30.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	lab.run("first", "--network", "name=web,driver-opt=extip.address=203.0.113.60")
	owner := lab.docker("inspect", "-f", "{{.NetworkSettings.Networks.web.EndpointID}}", "first")[:12]
	before := lab.host.Dump()
	for _, network := range []string{"web", "other"} {
		refused(t, lab, []string{"203.0.113.60", owner}, "--network", "name="+network+",driver-opt=extip.address=203.0.113.60")
		lab.unchanged(before)
	}
	ask(t, []question{{lab.outside, "tcp", "203.0.113.60:80", "first saw " + outsideAddr}})
}

// refused fails the test unless `docker run` with these arguments is refused
// with a message that has all the words.
func refused(t *testing.T, lab *lab, words []string, args ...string) {
	t.Helper()
	args = append([]string{"run", "-d", "--name", "refused"}, args...)
	out, err := lab.tryDocker(append(args, probeImage, "/probe", "sleep")...)
	lab.docker("rm", "-f", "refused")
	if err == nil {
		t.Errorf("docker %q was not refused", args)
	}
	for _, word := range words {
		if !strings.Contains(out, word) {
			t.Errorf("the refusal does not mention %s: %s", word, out)
		}
	}
}

// TestGatewaySource has the container see its bridge's address as the client.
func TestGatewaySource(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62", "extip.source=gateway")
	before := lab.host.Dump()
	lab.run("hidden", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	lab.run("plain", "--network", "name=web,driver-opt=extip.address=203.0.113.57,driver-opt=extip.source=client")
	ask(t, []question{
		{lab.outside, "tcp", "203.0.113.56:80", "hidden saw 172.31.0.1"},
		{lab.outside, "udp", "203.0.113.56:80", "hidden saw 172.31.0.1"},
		{lab.outside, "icmp", "203.0.113.56", "ttl 63"},
		{lab.container("hidden"), "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
		{lab.outside, "tcp", "203.0.113.57:80", "plain saw " + outsideAddr},
	})
	lab.docker("rm", "-f", "hidden", "plain")
	lab.unchanged(before)
}
