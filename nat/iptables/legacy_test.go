package iptables

import (
	"testing"

	"github.com/extip/extip/internal/nettest"
)

// TestLegacyBeside: only rules of the other flavour are beside.
func TestLegacyBeside(t *testing.T) {
	node := nettest.NewNode(t, "host")
	beside := func(flavour string) (is bool) {
		t.Helper()
		nettest.RequireTool(t, "iptables-"+flavour)
		node.MustDo(func() error {
			a, err := NewAdmission("iptables-" + flavour)
			if err == nil {
				is = a.LegacyBeside()
			}
			return err
		})
		return is
	}
	node.Run("iptables-nft", "-P", "FORWARD", "DROP")
	if beside("nft") {
		t.Error("there is no iptables-legacy yet")
	}
	node.Run("iptables-legacy", "-P", "FORWARD", "DROP")
	if !beside("nft") {
		t.Error("iptables-legacy is not seen beside iptables-nft")
	}
	if beside("legacy") {
		t.Error("iptables-legacy is beside itself")
	}
}
