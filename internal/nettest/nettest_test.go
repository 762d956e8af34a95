package nettest

import (
	"net"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func TestSegment(t *testing.T) {
	lan := NewSegment(t)
	a := lan.Attach("a", "192.0.2.2/24", "2001:db8::2/64")
	b := lan.Attach("b", "192.0.2.9/24", "2001:db8::9/64")
	b.Serve(80)
	b.Run("ip", "addr", "add", "192.0.2.10/32", "dev", "eth0")
	for _, tt := range []struct{ network, addr, want string }{
		{"tcp", "192.0.2.9:80", "b saw 192.0.2.2"},
		{"udp", "192.0.2.9:80", "b saw 192.0.2.2"},
		{"udp", "192.0.2.10:80", "b saw 192.0.2.2"},
		{"tcp", "[2001:db8::9]:80", "b saw 2001:db8::2"},
		{"udp", "[2001:db8::9]:80", "b saw 2001:db8::2"},
		{"tcp", "192.0.2.9:81", ""},
		{"tcp", "192.0.2.11:80", ""},
	} {
		if got := a.Ask(tt.network, tt.addr); got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.network, tt.addr, got, tt.want)
		}
	}
	if got := a.AskBytes("udp", "192.0.2.9:80", 5000); got != "b saw 192.0.2.2 send 5000 bytes" {
		t.Errorf("fragments: got %q", got)
	}
	if got := a.Ping("192.0.2.9"); got != 64 {
		t.Errorf("ping: ttl %d, want 64", got)
	}
	if got := a.Ping("2001:db8::9"); got != 64 {
		t.Errorf("IPv6 ping: ttl %d, want 64", got)
	}
	for _, nobody := range []string{"192.0.2.11", "2001:db8::11"} {
		if got := a.Ping(nobody); got != 0 {
			t.Errorf("ping of nobody: ttl %d", got)
		}
	}
}

// TestPatient: what is late is an answer for who is patient only.
func TestPatient(t *testing.T) {
	n := NewNode(t, "n")
	n.ServeTCP(80, func(c net.Conn) {
		time.Sleep(2 * silence * turn)
		_, _ = c.Write([]byte("at last"))
	})
	if got := n.Ask("tcp", "127.0.0.1:80"); got != "" {
		t.Errorf("got %q", got)
	}
	if got := n.Patient().Ask("tcp", "127.0.0.1:80"); got != "at last" {
		t.Errorf("got %q", got)
	}
}

func TestContainerAndDump(t *testing.T) {
	lan := NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24")
	peer := lan.Attach("peer", "192.0.2.9/24")
	before := host.Dump()
	host.Bridge("br0", "172.31.0.1/16")
	host.Sysctl("ipv4.ip_forward", "1")
	web := host.Container("web", "br0", "172.31.0.2/16", "172.31.0.1")
	peer.Run("ip", "route", "add", "172.31.0.0/16", "via", "192.0.2.2")
	web.Serve(80)
	if got, want := peer.Ask("tcp", "172.31.0.2:80"), "web saw 192.0.2.9"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := peer.Ping("172.31.0.2"); got != 63 {
		t.Errorf("ping through a router: ttl %d, want 63", got)
	}
	if host.Dump() == before {
		t.Error("a bridge and a container leave the dump unchanged")
	}
	host.Run("ip", "link", "del", "vweb")
	host.Run("ip", "link", "del", "br0")
	host.Sysctl("ipv4.ip_forward", "0")
	if after := host.Dump(); after != before {
		t.Errorf("dump after removal:\n%s\nbefore:\n%s", after, before)
	}
}

func TestStripRules(t *testing.T) {
	const save = `# Generated
*nat
:PREROUTING ACCEPT [4:240]
COMMIT
*filter
:FORWARD DROP [0:0]
COMMIT
*mangle
:FORWARD ACCEPT [1:2]
:OURS - [0:0]
-A FORWARD -j OURS
COMMIT
`
	const want = "*filter\n:FORWARD DROP\n*mangle\n:FORWARD ACCEPT\n:OURS -\n-A FORWARD -j OURS"
	if got := StripRules(save); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
