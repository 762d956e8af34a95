package main_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/extip/extip"

// mayImport says which packages of this module each of them may import. The
// leaves know nothing of each other, so each can be read, tested and replaced
// alone; what joins them is above them.
var mayImport = map[string][]string{
	"":                    {"*"}, // main
	"admin":               {"doctor", "driver", "store"},
	"admin/cli":           {"admin", "doctor", "driver", "export"},
	"adopt":               {"link", "nat", "nat/iptables"},
	"announce":            {},
	"cluster":             {"store"},
	"doctor":              {"link", "nat", "nat/iptables", "nat/nftables"},
	"driver":              {"announce", "link", "nat", "pool", "store"},
	"e2e/probe":           {},
	"export":              {"nat", "nat/iptables", "nat/nftables"},
	"internal/admintest":  {"doctor", "driver", "nat", "store"},
	"internal/etcdtest":   {"internal/nettest"},
	"internal/hosttest":   {"announce", "link", "nat"},
	"internal/ledgertest": {"pool", "store"},
	"internal/natlab":     {"internal/nettest", "nat"},
	"internal/nattest":    {"internal/nettest", "nat"},
	"internal/nettest":    {},
	"link":                {},
	"nat":                 {},
	"nat/firewalld":       {},
	"nat/iptables":        {"nat"},
	"nat/nftables":        {"nat"},
	"pool":                {},
	"store":               {"pool"},
}

// doors says which packages may use a library of others. Each subsystem of
// the kernel has one door, so that whoever asks how something gets there has
// one place to look.
var doors = map[string][]string{
	"github.com/coreos/go-iptables":        {"nat", "nat/iptables"},
	"github.com/coreos/go-systemd/v22":     {""},
	"github.com/docker/go-plugins-helpers": {"", "driver"},
	"github.com/godbus/dbus":               {"nat/firewalld"},
	"github.com/google/nftables":           {"nat", "nat/nftables"},
	"github.com/mdlayher/netlink":          {"nat/nftables"},
	"github.com/moby/moby":                 {"admin/cli"},
	"github.com/prometheus":                {"admin"},
	"github.com/sirupsen/logrus":           {"", "admin", "driver"},
	"github.com/spf13":                     {"", "admin/cli"},
	"github.com/vishvananda/netlink":       {"link"},
	"go.etcd.io/bbolt":                     {"store"},
	"go.etcd.io/etcd":                      {"cluster"},
	"go.uber.org/zap":                      {"cluster"},
	"google.golang.org/grpc":               {"cluster"},
}

func TestLayout(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := within(fields[0])
		imports := fields[1:]
		if len(imports) == 0 {
			continue // nothing but tests, or nothing to say
		}
		allowed, known := mayImport[pkg]
		if !known {
			t.Errorf("the package %q is in no table of layout_test.go: say there what it may import", pkg)
		}
		for _, path := range imports {
			if sibling := within(path); path != sibling && !slices.Contains(allowed, sibling) && !slices.Contains(allowed, "*") {
				t.Errorf("%q must not import %q: it may import %q", pkg, sibling, allowed)
			}
			for library, users := range doors {
				if (path == library || strings.HasPrefix(path, library+"/")) && !slices.Contains(users, pkg) {
					t.Errorf("%q must not import %q: only %q may", pkg, path, users)
				}
			}
		}
	}
}

// within is a package's path inside this module; another module's path stays.
func within(path string) string {
	if path == module {
		return ""
	}
	return strings.TrimPrefix(path, module+"/")
}
