package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/etcdtest"
	"github.com/extip/extip/internal/nettest"
)

// clusterTTL is how long a host's lease lasts in the lab; ten seconds is usual.
const clusterTTL = 5 * time.Second

// A trio is three docker hosts on one segment, and three etcd on machines of
// their own behind another: so a host can be cut off from the one or the other.
type trio struct {
	t       *testing.T
	outside *nettest.Node
	lan     *nettest.Segment
	back    *nettest.Segment
	etcd    etcdtest.Nodes
	hosts   map[string]*lab // docker1, docker2, docker3
}

func newTrio(t *testing.T) *trio {
	t.Helper()
	back := nettest.NamedSegment(t, "back")
	var places []etcdtest.Place
	for i := 1; i <= 3; i++ {
		ip := fmt.Sprintf("198.51.100.%d", i)
		places = append(places, etcdtest.Place{On: back.Attach(fmt.Sprintf("etcd%d", i), ip+"/24"), IP: ip})
	}
	first := newLab(t, options{bare: true})
	s := &trio{t: t, outside: first.outside, lan: first.lan, back: back, etcd: etcdtest.Start(t, places...), hosts: map[string]*lab{
		"docker1": first, "docker2": first.neighbour("203.0.113.11"), "docker3": first.neighbour("203.0.113.12"),
	}}
	for name, l := range s.hosts {
		l.opts.plugin = []string{"--cluster", s.etcd.URL(), "--cluster-host", name, "--cluster-ttl", clusterTTL.String()}
		s.start(name)
		l.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.90")
	}
	return s
}

// start has a host that is switched on run its engine and plugin.
func (s *trio) start(name string) {
	s.t.Helper()
	l := s.hosts[name]
	s.back.Plug(l.host, "eth1", "198.51.100.1"+name[len(name)-1:]+"/24")
	l.plugin = l.newPlugin()
	l.startPlugin()
	l.startEngine()
}

// cut is what a host is cut off from; heal undoes it.
func (s *trio) cut(host string, from ...*nettest.Segment) {
	s.t.Helper()
	for _, seg := range from {
		seg.Cut(s.hosts[host].host, s.dev(seg))
	}
}

func (s *trio) heal(host string, from ...*nettest.Segment) {
	s.t.Helper()
	for _, seg := range from {
		seg.Heal(s.hosts[host].host, s.dev(seg))
	}
}

func (s *trio) dev(seg *nettest.Segment) string {
	if seg == s.back {
		return "eth1"
	}
	return "eth0"
}

// reserved are the arguments of a container of host that uses a reservation, and
// says in its answers where it runs.
func reserved(reservation string) []string {
	return []string{"--network", "name=web,driver-opt=extip.reservation=" + reservation}
}

// external is the one external address of a host's container.
func (s *trio) external(host, container string) netip.Addr {
	s.t.Helper()
	for a, what := range s.hosts[host].status() {
		if strings.Contains(what, " "+container+" ") {
			return netip.MustParseAddr(a)
		}
	}
	s.t.Fatalf("%s has no external address on %s", container, host)
	return netip.Addr{}
}

// state is what status says of an address on a host, "" if it isn't there.
func (s *trio) state(host string, a netip.Addr) string {
	s.t.Helper()
	fields := strings.Fields(s.hosts[host].status()[a.String()])
	if len(fields) == 0 {
		return ""
	}
	return fields[len(fields)-1]
}

// witness is a neighbour that hears who answers for an address.
func (s *trio) witness(a netip.Addr) *nettest.Witness {
	s.t.Helper()
	return s.outside.Witness("eth0", netip.MustParseAddr(outsideAddr), a, 20*time.Millisecond)
}

// claims are the addresses that are claimed by what etcd has, and the hosts that
// have them.
func claims(t *testing.T, etcd *etcdtest.Node) map[string]string {
	t.Helper()
	var got struct {
		KVs []struct{ Key, Value []byte }
	}
	const prefix = "/extip/v1/claims/"
	if err := json.Unmarshal([]byte(etcd.Ctl("get", "-w", "json", "--prefix", prefix)), &got); err != nil {
		t.Fatal(err)
	}
	hosts := map[string]string{}
	for _, kv := range got.KVs {
		var claim struct{ Host string }
		if err := json.Unmarshal(kv.Value, &claim); err != nil {
			t.Fatalf("%s: %v", kv.Key, err)
		}
		hosts[strings.TrimPrefix(string(kv.Key), prefix)] = claim.Host
	}
	return hosts
}
