package link

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestMACs: the host answers by what neither is ours nor only a port.
func TestMACs(t *testing.T) {
	_, node, h := newHost(t, "192.0.2.2/24")
	do(t, node, func() error { return h.EnsureBridge(bridge) }, func() error { return h.EnsureVeth(web) })
	node.Bridge("br-ex", "192.0.2.3/24")
	node.Run("ip", "link", "add", "port", "type", "veth", "peer", "name", "other")
	node.Run("ip", "link", "set", "port", "master", "br-ex")
	macs, err := h.MACs()
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, mac := range macs {
		got = append(got, mac.String())
	}
	// The other end of a veth pair of ours is moved into a container later.
	for _, name := range []string{"eth0", "br-ex", "other", web.Peer} {
		want = append(want, strings.Fields(node.Run("ip", "-br", "link", "show", "dev", name))[2])
	}
	slices.Sort(got)
	slices.Sort(want)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
