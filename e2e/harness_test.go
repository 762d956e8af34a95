package e2e

import "testing"

// TestHarness shows that the lab is what it claims to be, with nothing of
// extip in it: the engine's own bridge driver and a published port.
func TestHarness(t *testing.T) {
	t.Parallel()
	for _, flavour := range []string{"nft", "legacy"} {
		t.Run(flavour, func(t *testing.T) {
			lab := newLab(t, options{flavour: flavour, bare: true})
			lab.startEngine()
			before := lab.host.Dump()
			lab.docker("network", "create", "--subnet", "172.30.0.0/16", "plain")
			web := lab.run("web", "--network", "plain", "-p", "8080:8080")
			for _, tt := range []struct{ network, addr, want string }{
				{"tcp", hostAddr + ":8080", "web saw " + outsideAddr},
				{"tcp", hostAddr + ":80", ""},
			} {
				if got := lab.outside.Ask(tt.network, tt.addr); got != tt.want {
					t.Errorf("outside to %s %s: got %q, want %q", tt.network, tt.addr, got, tt.want)
				}
			}
			if got, want := web.Ask("tcp", outsideAddr+":80"), "outside saw "+hostAddr; got != want {
				t.Errorf("web to outside: got %q, want %q", got, want)
			}
			if got, want := lab.docker("exec", "web", "/probe", "ask", "udp", outsideAddr+":80"), "outside saw "+hostAddr; got != want {
				t.Errorf("web to outside: got %q, want %q", got, want)
			}
			lab.docker("rm", "-f", "web")
			lab.docker("network", "rm", "plain")
			lab.unchanged(before)
			lab.stopEngine()
			lab.startEngine()
			lab.killEngine()
			lab.startEngine()
			lab.unchanged(before)
		})
	}
}

// TestParents checks each kind of parent interface as a way to the host.
func TestParents(t *testing.T) {
	t.Parallel()
	for _, parent := range []string{"eth0", "bridge", "ovs"} {
		t.Run(parent, func(t *testing.T) {
			lab := newLab(t, options{parent: parent, bare: true})
			lab.host.Serve(80)
			for _, network := range []string{"tcp", "udp"} {
				if got, want := lab.outside.Ask(network, hostAddr+":80"), "host saw "+outsideAddr; got != want {
					t.Errorf("%s: got %q, want %q", network, got, want)
				}
			}
			if lab.outside.Ping(hostAddr) != 64 {
				t.Error("no answer to a ping")
			}
		})
	}
}
