package e2e

import (
	"regexp"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nettest"
)

// TestRecipe has real services on their standard ports at the same time, as
// in the recipe that extip grew out of: sshd in one container, Apache in
// another, each on an external address of its own, asked by the programs that
// people use.
func TestRecipe(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"ssh", "ssh-keygen", "curl"} {
		nettest.RequireTool(t, tool)
	}
	for _, flavour := range []string{"nft", "legacy"} {
		t.Run(flavour, func(t *testing.T) {
			lab := newLab(t, options{backend: "iptables", flavour: flavour})
			lab.importRecipe()
			key := lab.dir + "/key"
			lab.must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
			before := lab.host.Dump()

			lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
			lab.docker("run", "-d", "--name", "shell", "--hostname", "shell",
				"--network", "name=web,driver-opt=extip.address=203.0.113.56",
				"-v", key+".pub:/root/.ssh/authorized_keys:ro",
				recipeImage, "sh", "-c", "mkdir -p /run/sshd && exec /usr/sbin/sshd -D -e")
			lab.docker("run", "-d", "--name", "site", "--hostname", "site",
				"--network", "name=web,driver-opt=extip.address=203.0.113.57",
				recipeImage, "apache2ctl", "-D", "FOREGROUND")

			ssh := []string{"ssh", "-F", "/dev/null", "-i", key, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
				"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "root@203.0.113.56", "hostname; echo $SSH_CONNECTION"}
			eventually(t, "ssh reaches the container, which sees who is there", func() bool {
				out, err := lab.outside.Try(ssh...)
				return err == nil && strings.Contains(out, "shell\n"+outsideAddr+" ")
			})
			eventually(t, "curl reaches Apache on port 80", func() bool {
				out, err := lab.outside.Try("curl", "-sSI", "--noproxy", "*", "-m", "10", "http://203.0.113.57/")
				return err == nil && strings.Contains(out, "Server: Apache")
			})
			if log := lab.docker("exec", "site", "cat", "/var/log/apache2/access.log"); !strings.HasPrefix(log, outsideAddr+" ") {
				t.Errorf("Apache did not see %s: %s", outsideAddr, log)
			}
			for name, external := range map[string]string{"shell": "203.0.113.56", "site": "203.0.113.57"} {
				got := lab.docker("exec", name, "bash", "-c", "cat < /dev/tcp/"+outsideAddr+"/80")
				if want := "outside saw " + external; got != want {
					t.Errorf("from %s: got %q, want %q", name, got, want)
				}
			}

			rules := lab.must("iptables", "-t", "nat", "-L", "-n")
			for name, external := range map[string]string{"shell": "203.0.113.56", "site": "203.0.113.57"} {
				internal := lab.inspectIP(name, "web")
				for _, want := range []string{
					`(?m)^DNAT .*\b` + regexp.QuoteMeta(external) + `\b.* to:` + regexp.QuoteMeta(internal) + `\b`,
					`(?m)^SNAT .*\b` + regexp.QuoteMeta(internal) + `\b.* to:` + regexp.QuoteMeta(external) + `\b`,
				} {
					if !regexp.MustCompile(want).MatchString(rules) {
						t.Errorf("iptables -t nat -L -n has no line like %s", want)
					}
				}
			}

			lab.docker("rm", "-f", "shell", "site")
			lab.docker("network", "rm", "web")
			lab.unchanged(before)
		})
	}
}
