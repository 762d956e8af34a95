package e2e

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nettest"
)

// TestCompose brings the examples up and down: each service has its address,
// also after its container was made anew, and nothing is left.
func TestCompose(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	_, err := lab.command("docker-compose", "version").Output()
	nettest.Require(t, err == nil, "the program docker-compose")
	before := lab.host.Dump()
	examples, err := filepath.Abs("../packaging/compose")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		file      string
		www, mail string // mail's is found out if it is empty
		version   int    // the oldest that can, as composeVersion has it
	}{
		{"networks.yaml", "203.0.113.60", "203.0.113.61", 1027},
		{"addresses.yaml", "203.0.113.60", "", 2028},
	} {
		t.Run(tt.file, func(t *testing.T) {
			if have := lab.composeVersion(); have < tt.version {
				t.Skipf("Compose is %d, and this example for %d and newer", have, tt.version)
			}
			compose := func(args ...string) string {
				t.Helper()
				return lab.must(append([]string{"env", "IMAGE=" + serverImage, "PARENT=" + lab.parent,
					"docker-compose", "-p", "example", "-f", filepath.Join(examples, tt.file)}, args...)...)
			}
			lab.importServer()
			works := func(mail string) {
				t.Helper()
				for service, external := range map[string]string{"www": tt.www, "mail": mail} {
					id := compose("ps", "-q", service)[:12]
					eventually(t, service+" runs", func() bool { return answer(lab.outside, external+":80") == id+" saw "+outsideAddr })
					ask(t, []question{{lab.container(id), "tcp", outsideAddr + ":80", "outside saw " + external}})
				}
			}
			compose("up", "-d")
			mail := tt.mail
			if mail == "" {
				mail = lab.externalOf(compose("ps", "-q", "mail"))
			}
			works(mail)
			compose("up", "-d", "--force-recreate")
			works(mail)
			compose("rm", "-s", "-f", "mail")
			if tt.mail == "" {
				lab.run("other", "--network", "example_external") // takes another one
			}
			compose("up", "-d")
			works(mail)
			if tt.mail == "" {
				lab.docker("rm", "-f", "other")
			}
			compose("down")
			lab.unchanged(before)
		})
	}
}

// serverImage is the probe that answers on port 80 of itself.
const serverImage = "server"

func (l *lab) importServer() {
	l.t.Helper()
	l.must("sh", "-c", `docker create --name server `+probeImage+` /probe serve 80 8080 && docker export server |
		docker import -c 'CMD ["/probe", "serve", "80", "8080"]' - `+serverImage+` && docker rm server`)
}

// externalOf is whom the outside sees when a container goes out.
func (l *lab) externalOf(container string) string {
	l.t.Helper()
	seen := l.docker("exec", container, "/probe", "ask", "udp", outsideAddr+":80")
	found := regexp.MustCompile(`outside saw (\S+)`).FindStringSubmatch(seen)
	if found == nil {
		l.t.Fatalf("the outside saw %q", seen)
	}
	return found[1]
}

// composeVersion is 1029 for 1.29.2.
func (l *lab) composeVersion() int {
	l.t.Helper()
	out := l.must("docker-compose", "version", "--short")
	var major, minor int
	if _, err := fmt.Sscanf(strings.TrimPrefix(out, "v"), "%d.%d", &major, &minor); err != nil {
		l.t.Fatalf("no version in %q: %v", out, err)
	}
	return 1000*major + minor
}
