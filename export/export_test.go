package export

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extip/extip/internal/natlab"
	"github.com/extip/extip/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

func setup() Setup {
	s := Setup{State: natlab.FilterState()}
	for _, m := range s.Mappings {
		s.Aliases = append(s.Aliases, Alias{m.External, "eth0"})
	}
	return s
}

func write(t *testing.T, format string) string {
	t.Helper()
	var out strings.Builder
	if err := Write(&out, format, setup()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestStandalone runs what is exported on a host that has bridges, containers
// and nothing of extip, and asks everybody for everybody.
func TestStandalone(t *testing.T) {
	for _, format := range []string{"nft", "iptables"} {
		t.Run(format, func(t *testing.T) {
			l := natlab.New(t, natlab.Bare())
			for _, a := range setup().Aliases {
				l.Host.Run("ip", "addr", "flush", "dev", "eth0", "to", a.Address.String())
			}
			l.Host.Sysctl("ipv4.ip_forward", "0")
			file := filepath.Join(t.TempDir(), "exported")
			text := write(t, format)
			if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
			if format == "nft" {
				l.Host.Run("sh", "-ec", commentedCommands(text))
			}
			l.Host.Run(file)
			for _, a := range setup().Aliases {
				l.Host.AwaitAsked(a.On, netip.PrefixFrom(a.Address, a.Address.BitLen()).String())
			}
			l.Check(t, "allowed", natlab.Ours(natlab.FilterAllowed()))
			l.Check(t, "forbidden by filters", natlab.Ours(natlab.FilterForbidden()))
			l.Check(t, "forbidden", natlab.Ours(natlab.Forbidden()))
		})
	}
}

// commentedCommands are those in a file's comments.
func commentedCommands(file string) string {
	var commands strings.Builder
	for line := range strings.Lines(file) {
		if command, ok := strings.CutPrefix(line, "#\t"); ok {
			commands.WriteString(command)
		}
	}
	return commands.String()
}

func TestJSON(t *testing.T) {
	var d document
	if err := json.Unmarshal([]byte(write(t, "json")), &d); err != nil {
		t.Fatal(err)
	}
	s := setup()
	if len(d.Networks) != len(s.Networks) || len(d.Mappings) != len(s.Mappings) || len(d.Aliases) != len(s.Aliases) {
		t.Errorf("got %+v", d)
	}
	filters := 0
	for _, m := range d.Mappings {
		if m.Filter != nil && len(m.Filter.Ports)+len(m.Filter.Allow) > 0 {
			filters++
		}
	}
	if filters != 8 {
		t.Errorf("%d filters", filters)
	}
	if err := Write(&strings.Builder{}, "yaml", s); err == nil || !strings.Contains(err.Error(), "nft, iptables, json") {
		t.Errorf("of an unknown format: %v", err)
	}
}
