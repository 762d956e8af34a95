package e2e

import "testing"

// TestTraffic is the table of who reaches whom and whom it sees, beside an
// engine with a published port of its own. The host answers on port 80 too,
// so whatever leaks to it is seen.
func TestTraffic(t *testing.T) {
	t.Parallel()
	eachVariant(t, func(t *testing.T, o options) {
		lab := newLab(t, o)
		lab.host.Serve(80)
		lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
		lab.network("db", "172.30.0.0/16", "extip.pool=203.0.113.64-203.0.113.70")
		web1 := lab.run("web1", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
		web2 := lab.run("web2", "--network", "name=web,driver-opt=extip.address=203.0.113.57")
		bare := lab.run("bare", "--network", "name=web,driver-opt=extip.address=none")
		db1 := lab.run("db1", "--network", "name=db,driver-opt=extip.address=203.0.113.64")
		pub := lab.run("pub", "-p", "8080:8080")
		inWeb1, inWeb2, inDB1 := lab.inspectIP("web1", "web"), lab.inspectIP("web2", "web"), lab.inspectIP("db1", "db")
		inPub := lab.inspectIP("pub", "bridge")
		for _, subnet := range []string{"172.31.0.0/16", "172.30.0.0/16"} {
			lab.outside.Run("ip", "route", "add", subnet, "via", hostAddr)
		}

		ask(t, []question{
			// What is published by the engine stays apart from what is external.
			{lab.outside, "tcp", hostAddr + ":8080", "pub saw " + outsideAddr},
			{lab.outside, "tcp", hostAddr + ":80", "host saw " + outsideAddr},
			{lab.outside, "udp", hostAddr + ":80", "host saw " + outsideAddr},
			{lab.outside, "tcp", "203.0.113.56:8080", "web1 saw " + outsideAddr},
			{lab.outside, "tcp", "203.0.113.57:8080", "web2 saw " + outsideAddr},
			{lab.outside, "tcp", "203.0.113.64:80", "db1 saw " + outsideAddr},

			// A container is the same to its neighbours as to the world.
			{web1, "tcp", "203.0.113.56:80", "web1 saw 203.0.113.56"},
			{web1, "udp", "203.0.113.56:80", "web1 saw 203.0.113.56"},
			{web2, "tcp", "203.0.113.56:80", "web1 saw 203.0.113.57"},
			{web2, "udp", "203.0.113.56:80", "web1 saw 203.0.113.57"},
			{db1, "tcp", "203.0.113.56:80", "web1 saw 203.0.113.64"},
			{web1, "udp", "203.0.113.64:80", "db1 saw 203.0.113.56"},
			{web1, "tcp", hostAddr + ":8080", "pub saw 203.0.113.56"},

			// What has no external address is seen as its gateway or host.
			{bare, "tcp", outsideAddr + ":80", "outside saw " + hostAddr},
			{bare, "tcp", "203.0.113.56:80", "web1 saw 172.31.0.1"},
			{pub, "tcp", outsideAddr + ":80", "outside saw " + hostAddr},
			{pub, "tcp", "203.0.113.56:80", "web1 saw 172.31.0.1"},
			{lab.host, "tcp", "203.0.113.56:80", "web1 saw 172.31.0.1"},
			{lab.host, "udp", "203.0.113.56:80", "web1 saw 172.31.0.1"},

			// Inside a network nothing is translated.
			{web1, "tcp", inWeb2 + ":80", "web2 saw " + inWeb1},
			{bare, "udp", inWeb1 + ":80", "web1 saw " + lab.inspectIP("bare", "web")},

			// Nobody gets at internal addresses from elsewhere, and
			// nobody answers on an address without an owner.
			{lab.outside, "tcp", inWeb1 + ":80", ""},
			{lab.outside, "udp", inDB1 + ":80", ""},
			{pub, "tcp", inWeb1 + ":80", ""},
			{web1, "tcp", inPub + ":80", ""},
			{web1, "tcp", inDB1 + ":80", ""},
			{db1, "udp", inWeb1 + ":80", ""},
			{lab.outside, "tcp", "203.0.113.58:80", ""},
		})
	})
}
