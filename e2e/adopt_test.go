package e2e

import (
	"strings"
	"testing"
)

// TestAdopt: the five commands of the recipe that people typed are taken over,
// under traffic.
func TestAdopt(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) { adopted(t, options{backend: backend}) })
	}
}

func adopted(t *testing.T, o options) {
	lab := newLab(t, o)
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.100-203.0.113.110")
	running := lab.host.Dump()
	web := lab.run("web", "--network", "name=web,driver-opt=extip.address=none")
	inside := lab.inspectIP("web", "web")
	for _, typed := range []string{
		"ip addr add 203.0.113.56/24 dev " + lab.parent,
		"iptables -t nat -I PREROUTING -d 203.0.113.56 -j DNAT --to-destination " + inside,
		"iptables -t nat -I POSTROUTING -s " + inside + " ! -d 172.31.0.0/16 -j SNAT --to-source 203.0.113.56",
	} {
		lab.must("sh", "-c", typed)
	}
	saw := func() string { return lab.outside.Ask("tcp", "203.0.113.56:80") }
	eventually(t, "the recipe works", func() bool { return saw() == "web saw "+outsideAddr })
	in, out := startFlow(t, lab.outside, "203.0.113.56:80"), startFlow(t, web, outsideAddr+":80")
	if plan := lab.extip("adopt", "--dry-run"); !strings.Contains(plan, "203.0.113.56") || strings.Contains(lab.extip("status"), "203.0.113.56") {
		t.Errorf("a dry run: %s", plan)
	}
	t.Log(lab.extip("adopt"))
	ask(t, []question{
		{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr},
		{web, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
	})
	lostNone(t, "adopting it", map[string]*flow{"in": in, "out": out})
	if got := lab.extip("status"); !strings.Contains(got, "203.0.113.56") {
		t.Errorf("status: %s", got)
	}
	if got := lab.extip("adopt"); strings.Contains(got, "203.0.113.56") {
		t.Errorf("once more: %s", got)
	}
	lab.docker("rm", "-f", "web")
	lab.unchanged(running)
}
