package e2e

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

// release makes what is shipped of a version for this machine, in dir, by the
// scripts of a tree.
func release(t testing.TB, tree, version, dir string) {
	t.Helper()
	cmd := onMachine("env", "VERSION="+version, "SOURCE_DATE_EPOCH=1700000000", tree+"/scripts/release.sh", dir, runtime.GOARCH)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("scripts/release.sh: %v\n%s", err, out)
	}
}

// TestPackage installs in each of the ways, on a machine of its own, upgrades
// under traffic, and removes without a trace.
func TestPackage(t *testing.T) {
	t.Parallel()
	nettest.Require(t, isRoot(), "root")
	shipped := t.TempDir()
	for _, version := range []string{"v0.0.1", "v0.0.2"} {
		release(t, "..", version, filepath.Join(shipped, version))
	}
	for name, test := range map[string]func(*testing.T, *lab){"deb": testDeb, "rpm": testRPM, "script": testInstallScript} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			if err := os.CopyFS(m.path("/root/shipped"), os.DirFS(shipped)); err != nil {
				t.Fatal(err)
			}
			test(t, m)
		})
	}
}

// TestRelease: two trees of the same make the same bytes, and the program
// needs nothing of the machine that it runs on.
func TestRelease(t *testing.T) {
	t.Parallel()
	nettest.RequireTool(t, "git")
	dir := t.TempDir()
	tree := filepath.Join(dir, "elsewhere")
	files, err := onMachine("git", "-C", "..", "ls-files", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(files)) {
		content, err := os.ReadFile("../" + name)
		if os.IsNotExist(err) {
			continue // deleted, and not yet committed
		}
		info, serr := os.Stat("../" + name)
		if err := errors.Join(err, serr, os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o700)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name), content, info.Mode()&0o700); err != nil {
			t.Fatal(err)
		}
	}
	release(t, "..", "v0.0.1", dir+"/one")
	release(t, tree, "v0.0.1", dir+"/two")
	made, err := os.ReadDir(dir + "/one")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range made {
		names = append(names, f.Name())
		one, err := os.ReadFile(filepath.Join(dir, "one", f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		two, err := os.ReadFile(filepath.Join(dir, "two", f.Name()))
		if err != nil || !bytes.Equal(one, two) {
			t.Errorf("%s is not the same: %v", f.Name(), err)
		}
	}
	for _, want := range []string{`\.deb$`, `\.rpm$`, `-linux-\w+\.tar\.gz$`, `-linux-\w+\.sbom\.json$`, `^SHA256SUMS$`} {
		if !slices.ContainsFunc(names, regexp.MustCompile(want).MatchString) {
			t.Errorf("nothing like %s is there: %q", want, names)
		}
	}
	if out, err := onMachine("tar", "-C", dir, "-xzf", dir+"/one/extip-0.0.1-linux-"+runtime.GOARCH+".tar.gz").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := elf.Open(dir + "/extip-0.0.1/extip")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = program.Close() }()
	if slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Error("the program is not static")
	}
}

// files lists the machine's files that a package could have to do with: what
// the system's own programs note about packages, logs and containers is not.
func (l *lab) files() string {
	l.t.Helper()
	var b strings.Builder
	root := l.path("/")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(path, root)
		if slices.Contains([]string{"/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/var/lib/docker", "/var/lib/containerd",
			"/var/lib/dpkg", "/var/lib/rpm", "/var/log", "/var/cache"}, name) {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size := info.Size()
		if d.IsDir() {
			size = 0
		}
		_, err = fmt.Fprintf(&b, "%s %s %d\n", info.Mode(), name, size)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return b.String()
}

// sameFiles fails the test with the difference if the machine's files are not
// as before.
func (l *lab) sameFiles(before string) {
	l.t.Helper()
	if diff := difference(before, l.files()); diff != "" {
		l.t.Errorf("the machine's files differ from before (-before +after):\n%s", diff)
	}
}

// testDeb takes the machine from nothing to an address in three commands, and
// through an upgrade, a crash, a hang, another backend, a reboot and a purge.
func testDeb(t *testing.T, m *lab) {
	old, next := m.only("/root/shipped/v0.0.1/*.deb"), m.only("/root/shipped/v0.0.2/*.deb")
	files := m.files()

	m.must("dpkg", "-i", old)
	m.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	web := m.run("web", "--restart", "always", "--network", "name=web,driver-opt=extip.address=203.0.113.60")
	works := func() {
		t.Helper()
		eventually(t, "the container runs", func() bool { return answer(m.outside, "203.0.113.60:80") == "web saw "+outsideAddr })
		ask(t, []question{
			{m.outside, "tcp", "203.0.113.60:80", "web saw " + outsideAddr},
			{m.container("web"), "tcp", outsideAddr + ":80", "outside saw 203.0.113.60"},
		})
	}
	works()
	if got := m.must("extip", "--version"); got != "v0.0.1" {
		t.Errorf("version %q", got)
	}
	if have := m.status(); have["203.0.113.60"] != "172.31.0.2 web web published" {
		t.Errorf("status: %q", have)
	}
	m.sandboxed()

	in, out := startFlow(t, m.outside, "203.0.113.60:80"), startFlow(t, web, outsideAddr+":80")
	pid := m.mainPID()
	m.must("dpkg", "-i", next)
	if m.mainPID() == pid || m.must("extip", "--version") != "v0.0.2" {
		t.Error("the upgrade did not start the new version")
	}
	works()
	pid = m.mainPID()
	m.must("systemctl", "kill", "--signal=KILL", "extip")
	// The call waits in the socket for the next one.
	m.docker("network", "create", "-d", "extip", "--subnet", "172.30.0.0/16", "-o", "extip.parent="+m.parent, "other")
	m.docker("network", "rm", "other")
	if m.mainPID() == pid {
		t.Error("it is not started again")
	}
	works()
	// A process that hangs is ended and started again.
	m.must("mkdir", "-p", "/run/systemd/system/extip.service.d")
	install(t, []byte("[Service]\nWatchdogSec=10\nTimeoutAbortSec=1\n"), m.path("/run/systemd/system/extip.service.d/watchdog.conf"))
	m.must("systemctl", "daemon-reload")
	m.must("systemctl", "restart", "extip")
	pid = m.mainPID()
	time.Sleep(12 * time.Second)
	if m.mainPID() != pid {
		t.Error("the watchdog bites a process that is well")
	}
	m.must("systemctl", "kill", "--signal=STOP", "extip")
	eventually(t, "the watchdog starts it again", func() bool { return m.mainPID() != pid })
	works()
	// Iptables as the backend, which writes and locks files and runs programs.
	m.must("sed", "-i", "$aEXTIP_BACKEND=iptables", "/etc/default/extip")
	m.must("systemctl", "restart", "extip")
	m.must("systemctl", "reload", "extip")
	if rules := m.must("iptables-save"); !strings.Contains(rules, "XIP-D") {
		t.Errorf("EXTIP_BACKEND=iptables has no effect:\n%s", rules)
	}
	works()
	lostNone(t, "an upgrade, a crash and a restart", map[string]*flow{"in": in, "out": out})

	m.reboot()
	works()
	if extip, engine := m.moment("ActiveEnter", "extip"), m.moment("InactiveExit", "docker"); extip == 0 || extip > engine {
		t.Errorf("extip was ready at %d µs, after the engine began to start at %d µs", extip, engine)
	}

	m.docker("rm", "-f", "web")
	m.docker("network", "rm", "web")
	m.must("dpkg", "-r", "extip")
	if _, err := m.try("systemctl", "is-active", "extip.socket", "extip.service"); err == nil {
		t.Error("it runs after it was removed")
	}
	m.must("dpkg", "-P", "extip")
	m.sameFiles(files)
	if left := ours(m.host.Dump()); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// testRPM: what the .rpm installs is the same, and it is removed again. The
// machine is not one of that kind, so its scripts are all that can fail.
func testRPM(t *testing.T, m *lab) {
	m.must("mkdir", "-p", "/usr/share/zsh/site-functions") // which is another package's, where there is rpm
	files := m.files()
	rpm := func(args ...string) { t.Helper(); m.must(append([]string{"rpm", "--nodeps"}, args...)...) }
	one, two := m.only("/root/shipped/v0.0.1/*.rpm"), m.only("/root/shipped/v0.0.2/*.rpm")
	rpm("-i", one)
	m.must("systemctl", "start", "extip")
	m.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	m.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.60")
	pid := m.mainPID()
	rpm("-U", two)
	if m.mainPID() == pid || m.must("extip", "--version") != "v0.0.2" {
		t.Error("the upgrade did not start the new version")
	}
	ask(t, []question{{m.outside, "tcp", "203.0.113.60:80", "web saw " + outsideAddr}})
	m.docker("rm", "-f", "web")
	m.docker("network", "rm", "web")
	rpm("-e", "extip")
	m.must("rm", "-r", "/var/lib/extip") // as the papers say
	m.sameFiles(files)
}

// testInstallScript installs, upgrades and removes without a package.
func testInstallScript(t *testing.T, m *lab) {
	for _, version := range []string{"0.0.1", "0.0.2"} {
		m.must("tar", "-C", "/root", "-xzf", m.only("/root/shipped/v"+version+"/*.tar.gz"))
	}
	files, before := m.files(), m.host.Dump()
	m.must("/root/extip-0.0.1/install.sh")
	m.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	web := m.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.60")
	m.sandboxed()
	in, out := startFlow(t, m.outside, "203.0.113.60:80"), startFlow(t, web, outsideAddr+":80")
	m.must("/root/extip-0.0.2/install.sh")
	if got := m.must("extip", "--version"); got != "v0.0.2" {
		t.Errorf("version %q", got)
	}
	ask(t, []question{{m.outside, "tcp", "203.0.113.60:80", "web saw " + outsideAddr}})
	lostNone(t, "an upgrade", map[string]*flow{"in": in, "out": out})
	if out, err := m.try("/root/extip-0.0.2/uninstall.sh", "--purge"); err == nil || !strings.Contains(out, "docker network rm web") {
		t.Errorf("uninstall.sh beside a network: %v, %s", err, out)
	}
	m.docker("rm", "-f", "web")
	m.docker("network", "rm", "web")
	m.must("/root/extip-0.0.2/uninstall.sh", "--purge")
	m.sameFiles(files)
	m.sameButOrder(before)
}

// only is the one file of the machine with a name like that.
func (l *lab) only(pattern string) string {
	l.t.Helper()
	return l.must("sh", "-c", `set -- $0; [ $# = 1 ] && echo "$1"`, pattern)
}

// moment is when a unit of systemd last entered or left a state, in
// microseconds of a clock that never turns back; 0 if it did not.
func (l *lab) moment(what, unit string) (µs int64) {
	l.t.Helper()
	text := l.must("systemctl", "show", "-P", what+"TimestampMonotonic", unit)
	if _, err := fmt.Sscan(text, &µs); err != nil {
		l.t.Fatalf("%s: %v", text, err)
	}
	return µs
}

// mainPID is the process of the running service.
func (l *lab) mainPID() string {
	l.t.Helper()
	var pid string
	eventually(l.t, "the service runs", func() bool {
		out, err := l.command("systemctl", "show", "-P", "MainPID", "extip").Output()
		pid = strings.TrimSpace(string(out))
		return err == nil && pid != "0"
	})
	return pid
}

// sandboxed fails the test if the service may do more than it was meant to.
func (l *lab) sandboxed() {
	l.t.Helper()
	status := l.must("cat", "/proc/"+l.mainPID()+"/status")
	for _, want := range []string{
		`CapEff:\s+0000000000003000\n`, // CAP_NET_ADMIN is bit 12, CAP_NET_RAW bit 13
		`CapBnd:\s+0000000000003000\n`,
		`NoNewPrivs:\s+1\n`,
		`Seccomp:\s+2\n`,
	} {
		if !regexp.MustCompile(want).MatchString(status) {
			l.t.Errorf("the process's status has no %s:\n%s", want, status)
		}
	}
}
