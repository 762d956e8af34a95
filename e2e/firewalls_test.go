package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/extip/extip/internal/nettest"
)

// unpackFirewalls returns a folder with the files of firewalld and ufw, and of
// what they need that the machine lacks, as they lie below /. They are
// unpacked and never installed: packages of firewalls switch themselves on.
var unpackFirewalls = sync.OnceValues(func() (string, error) {
	const script = `set -e
cd "$0"
mkdir -p debs/partial root/usr/lib
ln -sfn usr/lib root/lib
get() { apt-get -q -y --no-install-recommends --download-only -o Debug::NoLocking=1 -o Dir::Cache::archives="$0/debs" install firewalld ufw; }
get || { apt-get -q update && get; }
for deb in debs/*.deb; do dpkg-deb --fsys-tarfile "$deb" | tar -C root -x --keep-directory-symlink; done
cp -n root/usr/share/ufw/iptables/*.rules root/usr/share/ufw/*.init root/usr/share/ufw/ufw.conf root/etc/ufw
ln -s /bin/true root/usr/sbin/modprobe # the machine's modules are none of theirs
rm -rf debs`
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		cache = "/var/cache"
	}
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(append(release, script...))
	dir := filepath.Join(cache, "extip", fmt.Sprintf("firewalls-%x", key[:6]))
	if exists(dir) {
		return dir + "/root", nil
	}
	partial := dir + ".partial"
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return "", err
	}
	if out, err := onMachine("sh", "-c", script, partial).CombinedOutput(); err != nil {
		return "", fmt.Errorf("unpack the firewalls: %w\n%s", err, out)
	}
	return dir + "/root", os.Rename(partial, dir)
})

// newWalled is newLab for a host with the files of firewalld and ufw, neither
// of which runs. What they change of files is the lab's own.
func newWalled(t testing.TB, o options) *lab {
	t.Helper()
	nettest.RequireTool(t, "apt-get")
	nettest.RequireTool(t, "python3")
	o.bare = true
	l := newLab(t, o)
	root := succeed(t, unpackFirewalls)
	l.must("sh", "-c", `mkdir -p /run/overlay/upper /run/overlay/work &&
		mount -t overlay overlay -o lowerdir="$0/usr":/usr /usr &&
		mount -t overlay overlay -o lowerdir="$0/etc":/etc,upperdir=/run/overlay/upper,workdir=/run/overlay/work /etc`, root)
	return l
}

const systemBus = "/run/dbus/system_bus_socket"

// startFirewalld gives the host a message bus of its own, and firewalld.
func (l *lab) startFirewalld() *daemon {
	l.t.Helper()
	nettest.RequireTool(l.t, "dbus-daemon")
	const config = `<busconfig><type>system</type><listen>unix:path=` + systemBus + `</listen><auth>EXTERNAL</auth>` +
		`<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>`
	l.must("mkdir", "-p", "/run/dbus")
	install(l.t, []byte(config), l.path("/run/dbus/config"))
	l.newDaemon("dbus-daemon", systemBus, "dbus-daemon", "--nofork", "--nopidfile", "--config-file=/run/dbus/config").start()
	d := l.newDaemon("firewalld", "", "firewalld", "--nofork", "--nopid", "--log-file=/run/firewalld.log")
	l.runFirewalld(d)
	return d
}

// runFirewalld returns when firewalld's rules are there.
func (l *lab) runFirewalld(d *daemon) {
	l.t.Helper()
	d.start()
	eventually(l.t, "firewalld runs", func() bool { out, _ := l.try("firewall-cmd", "--state"); return out == "running" })
}
