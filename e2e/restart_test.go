package e2e

import "testing"

// TestPluginRestart ends the plugin, politely and not, under a running
// container: packets flow all the while, and what is removed afterwards
// leaves no trace.
func TestPluginRestart(t *testing.T) {
	lab := newLab(t, options{})
	before := lab.host.Dump()
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	web := lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	works := func() {
		t.Helper()
		ask(t, []question{
			{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr},
			{lab.outside, "udp", "203.0.113.56:80", "web saw " + outsideAddr},
			{web, "tcp", outsideAddr + ":80", "outside saw 203.0.113.56"},
		})
	}
	running := lab.host.Dump()
	for _, end := range []func(){lab.stopPlugin, lab.killPlugin} {
		end()
		works()
		lab.startPlugin()
		works()
		lab.unchanged(running)
	}
	lab.docker("rm", "-f", "web")
	lab.docker("network", "rm", "web")
	lab.unchanged(before)
}
