package iptables

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
)

func TestNew(t *testing.T) {
	node := nettest.NewNode(t, "host")
	nettest.RequireTool(t, "iptables")
	before := node.Dump()
	mixed := programs(t, "xtables-nft-multi", "xtables-nft-multi", "xtables-legacy-multi")
	alike := programs(t, "xtables-legacy-multi", "xtables-legacy-multi", "xtables-legacy-multi")
	for _, tt := range []struct{ path, want string }{ // want is in the error
		{"", ""},
		{"iptables-legacy", ""},
		{"iptables-nft", ""},
		{alike, ""},
		{mixed, "differ in flavour: nf_tables and legacy"},
		{"/nonexistent/iptables", "no such file"},
		{"sh", "is not named iptables"},
	} {
		err := node.Do(func() error {
			_, err := New(tt.path)
			return err
		})
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q: error %v, want %q", tt.path, err, tt.want)
		}
	}
	if after := node.Dump(); after != before {
		t.Errorf("looking for iptables left\n%s", after)
	}
}

// programs makes an iptables with its companions out of the multi-call
// binaries, and returns its path.
func programs(t *testing.T, iptables, save, restore string) string {
	t.Helper()
	dir := t.TempDir()
	for name, multi := range map[string]string{"iptables": iptables, "iptables-save": save, "iptables-restore": restore} {
		path, err := exec.LookPath(multi)
		nettest.Require(t, err == nil, "the program "+multi)
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "iptables")
}

// Without ip6tables IPv4 works, and a network that needs it is refused whole.
func TestWithoutIPv6(t *testing.T) {
	node := nettest.NewNode(t, "host")
	path := programs(t, "xtables-nft-multi", "xtables-nft-multi", "xtables-nft-multi")
	before := node.Dump()
	node.MustDo(func() error {
		b, err := New(path)
		if err != nil {
			return err
		}
		n := nattest.Net(1)
		if err := b.AddNetwork(n); err == nil || !strings.Contains(err.Error(), "ip6tables") {
			t.Errorf("a network of both families: error %v", err)
		}
		if after := node.Dump(); after != before {
			t.Errorf("left by the refused network:\n%s", after)
		}
		n.Subnets = n.Subnets[:1]
		if err := b.AddNetwork(n); err != nil {
			return err
		}
		return b.Add(nattest.Map4(1, 1))
	})
}
