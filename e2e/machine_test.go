package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/extip/extip/internal/nettest"
)

// machineCommand makes a Debian with systemd and an engine, but for the names
// of the release and of its file.
var machineCommand = []string{"mmdebstrap", "--quiet", "--variant=minbase",
	"--include=systemd-sysv,docker.io,iptables,iproute2,rpm",
	"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "--format=tar"}

var makeMachine = sync.OnceValues(func() (string, error) { return cached("machine", machineCommand) })

// newMachine is newLab with a whole machine as the host: files of its own, a
// real systemd as its first process, and the distribution's engine as a
// service. It is fresh: nothing of extip is there. It goes with the test.
func newMachine(t testing.TB) *lab {
	t.Helper()
	nettest.Require(t, isRoot(), "root")
	nettest.Require(t, unifiedCgroup() != "", "control groups of version 2")
	for _, tool := range []string{"mmdebstrap", "nsenter", "unshare", "tar"} {
		nettest.RequireTool(t, tool)
	}
	lan := nettest.NewSegment(t)
	l := &lab{outside: lan.Attach("outside", outsideAddr+"/24"), t: t, lan: lan, dir: t.TempDir(), machine: true}
	l.outside.Serve(80)
	if err := os.Mkdir(l.root(), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", l.root(), "-xf", succeed(t, makeMachine)).CombinedOutput(); err != nil {
		t.Fatalf("unpack the machine: %v\n%s", err, out)
	}
	l.boot()
	l.importProbe()
	return l
}

// root is where the files of a machine are while it is off.
func (l *lab) root() string { return filepath.Join(l.dir, "root") }

// unifiedCgroup is where the control groups of version 2 are, if anywhere.
func unifiedCgroup() string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if exists(dir + "/cgroup.controllers") {
			return dir
		}
	}
	return ""
}

// machineBoot gives a machine what a kernel does, and becomes its systemd. It
// runs in new namespaces, with the machine's files in $0, and first tells its
// process id outside of them.
const machineBoot = `set -e
read -r pid rest </proc/self/stat
echo "$pid"
mount --make-rprivate /
mount --bind "$0" "$0"
cd "$0"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
hostname host
mkdir -p mnt
pivot_root . mnt
umount -l /mnt
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /sbin/init >/dev/null`

// startSystemd is startInit for a machine. The namespaces end when the test
// closes the shell's standard input or dies.
func (l *lab) startSystemd() {
	l.t.Helper()
	group := filepath.Join(unifiedCgroup(), fmt.Sprintf("extip-machine-%d-%s", os.Getpid(), filepath.Base(filepath.Dir(l.dir))))
	if err := os.MkdirAll(group, 0o755); err != nil {
		l.t.Fatal(err)
	}
	const start = `echo $$ >"$2/cgroup.procs"
unshare --mount --pid --uts --ipc --cgroup --fork --kill-child sh -c "$1" "$0" &
cat >/dev/null; kill -9 $!; wait`
	cmd := l.host.Command("sh", "-c", start, l.root(), machineBoot, group)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.shutDown = sync.OnceFunc(func() {
		if l.t.Failed() {
			_, _ = l.try("journalctl", "-b", "--no-pager", "-o", "cat", "-n", "60", "-u", "extip", "-u", "docker")
		}
		_ = stdin.Close()
		_ = cmd.Wait()
		removeCgroups(l.t, filepath.Base(group))
	})
	l.t.Cleanup(l.shutDown)
	if _, err := fmt.Fscanln(stdout, &l.init); err != nil {
		l.t.Fatalf("the machine did not boot: %v", err)
	}
	if !within(3*long, func() bool {
		out, err := l.command("systemctl", "is-system-running").Output()
		return err == nil && strings.TrimSpace(string(out)) == "running"
	}) {
		l.must("systemctl", "--no-pager", "list-units", "--failed")
		l.must("journalctl", "-b", "--no-pager", "-n", "60")
		l.t.Fatal("the machine did not boot")
	}
}
