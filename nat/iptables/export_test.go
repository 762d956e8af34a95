package iptables

import (
	"strings"
	"testing"

	"github.com/extip/extip/internal/natlab"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// What is exported, loaded, is what a backend would write.
func TestExport(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		node := nettest.NewNode(t, "host")
		s := natlab.LimitState()
		v4, v6, err := Export(s)
		if err != nil {
			t.Fatal(err)
		}
		for program, rules := range map[string]string{"iptables-": v4, "ip6tables-": v6} {
			cmd := node.Command(program+flavour+"-restore", "--noflush")
			cmd.Stdin = strings.NewReader(rules)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s\n%s", program, err, out, rules)
			}
		}
		backend := open(t, node, flavour)
		if repaired, err := backend.Sync(s); err != nil || len(repaired) > 0 {
			t.Errorf("differs from what the backend makes: %q, %v\n%s\n%s", repaired, err, v4, v6)
		}
		// The test sees a difference of one rule.
		node.Run("iptables-"+flavour, "-t", "nat", "-D", "XIP-HAIRPIN", "2")
		if repaired, err := open(t, node, flavour).Sync(s); err != nil || len(repaired) != 1 {
			t.Errorf("of one rule less: %q, %v", repaired, err)
		}
	})
	if v4, v6, err := Export(nat.State{}); v4+v6 != "" || err != nil {
		t.Errorf("of nothing: %q, %q, %v", v4, v6, err)
	}
}
