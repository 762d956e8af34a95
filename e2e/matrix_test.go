package e2e

import "testing"

// TestTraffic is the table of who reaches whom and whom it sees, beside an
// engine with a published port of its own. The host answers on port 80 too,
// so whatever leaks to it is seen.
func TestTraffic(t *testing.T) {
	for _, flavour := range []string{"nft", "legacy"} {
		t.Run(flavour, func(t *testing.T) {
			lab := newLab(t, options{flavour: flavour})
			lab.host.Serve(80)
			lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
			lab.network("db", "172.30.0.0/16", "extip.pool=203.0.113.64-203.0.113.70")
			a := lab.run("a", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
			b := lab.run("b", "--network", "name=web,driver-opt=extip.address=203.0.113.57")
			n := lab.run("n", "--network", "name=web,driver-opt=extip.address=none")
			c := lab.run("c", "--network", "name=db,driver-opt=extip.address=203.0.113.64")
			d := lab.run("d", "-p", "8080:8080")
			ina, inb, inc := lab.inspectIP("a", "web"), lab.inspectIP("b", "web"), lab.inspectIP("c", "db")
			ind := lab.inspectIP("d", "bridge")
			for _, subnet := range []string{"172.31.0.0/16", "172.30.0.0/16"} {
				lab.outside.Run("ip", "route", "add", subnet, "via", hostAddr)
			}

			ask(t, []question{
				// What is published by the engine stays apart from what is external.
				{lab.outside, "tcp", hostAddr + ":8080", "d saw " + outsideAddr},
				{lab.outside, "tcp", hostAddr + ":80", "host saw " + outsideAddr},
				{lab.outside, "udp", hostAddr + ":80", "host saw " + outsideAddr},
				{lab.outside, "tcp", "203.0.113.56:8080", "a saw " + outsideAddr},
				{lab.outside, "tcp", "203.0.113.57:8080", "b saw " + outsideAddr},
				{lab.outside, "tcp", "203.0.113.64:80", "c saw " + outsideAddr},

				// A container is the same to its neighbours as to the world.
				{a, "tcp", "203.0.113.56:80", "a saw 203.0.113.56"},
				{a, "udp", "203.0.113.56:80", "a saw 203.0.113.56"},
				{b, "tcp", "203.0.113.56:80", "a saw 203.0.113.57"},
				{b, "udp", "203.0.113.56:80", "a saw 203.0.113.57"},
				{c, "tcp", "203.0.113.56:80", "a saw 203.0.113.64"},
				{a, "udp", "203.0.113.64:80", "c saw 203.0.113.56"},
				{a, "tcp", hostAddr + ":8080", "d saw 203.0.113.56"},

				// What has no external address is seen as its gateway or host.
				{n, "tcp", outsideAddr + ":80", "outside saw " + hostAddr},
				{n, "tcp", "203.0.113.56:80", "a saw 172.31.0.1"},
				{d, "tcp", outsideAddr + ":80", "outside saw " + hostAddr},
				{d, "tcp", "203.0.113.56:80", "a saw 172.31.0.1"},
				{lab.host, "tcp", "203.0.113.56:80", "a saw 172.31.0.1"},
				{lab.host, "udp", "203.0.113.56:80", "a saw 172.31.0.1"},

				// Inside a network nothing is translated.
				{a, "tcp", inb + ":80", "b saw " + ina},
				{n, "udp", ina + ":80", "a saw " + lab.inspectIP("n", "web")},

				// Nobody gets at internal addresses from elsewhere, and
				// nobody answers on an address without an owner.
				{lab.outside, "tcp", ina + ":80", ""},
				{lab.outside, "udp", inc + ":80", ""},
				{d, "tcp", ina + ":80", ""},
				{a, "tcp", ind + ":80", ""},
				{a, "tcp", inc + ":80", ""},
				{c, "udp", ina + ":80", ""},
				{lab.outside, "tcp", "203.0.113.58:80", ""},
			})
		})
	}
}
