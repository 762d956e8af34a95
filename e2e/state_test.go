package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestSecondPlugin: one state file has one writer, and the second one says so
// and takes nothing away from the first.
func TestSecondPlugin(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	for _, args := range [][]string{
		{"--state", lab.dir + "/extip.db"},      // the same state
		{"--state", lab.dir + "/another.db"},    // the same socket
		{"--state", "/proc/version/extip.db"},   // no folder
		{"--pool", "x", "--state", "/run/x.db"}, // a value that is none
		{"--log-level", "loud"},                 // another
		{"--reconcile-interval", "0s"},          // out of range
		{"--parent", "br-ex", "an", "argument"}, // more than is wanted
		{"--no-such-flag"},
	} {
		out, err := lab.try(append([]string{"extip", "serve"}, args...)...)
		if err == nil || !strings.HasPrefix(out, "extip: ") || strings.Contains(out, "panic") {
			t.Errorf("%v: %v, %s", args, err, out)
		}
	}
	if out, _ := lab.try("extip", "serve", "--state", lab.dir+"/extip.db"); !strings.Contains(out, "second extip") {
		t.Errorf("the message: %s", out)
	}
	lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	ask(t, []question{{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr}})
}

// TestFullDisk: nothing new, with a clear error, while what there is goes on;
// and when there is room again, everything does.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	const state = "/run/state"
	lab := newLab(t, options{bare: true, plugin: []string{"--state", state + "/extip.db"}})
	lab.must("mkdir", state)
	lab.must("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", state)
	lab.startEngine()
	lab.startPlugin()
	before := lab.host.Dump()
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	lab.try("dd", "if=/dev/zero", "of="+state+"/filler", "bs=4k")
	running := lab.host.Dump()
	in := startFlow(t, lab.outside, "203.0.113.56:80")
	// The file has some room inside, so the first ones may still succeed.
	var made []string
	for i := 0; ; i++ {
		name := fmt.Sprintf("more%d", i)
		out, err := lab.tryDocker("run", "-d", "--name", name, "--network", "name=web,driver-opt=extip.address=none", probeImage, "/probe", "sleep")
		made = append(made, name)
		if err != nil {
			if !strings.Contains(out, "no space left on device") {
				t.Errorf("the refusal: %s", out)
			}
			break
		}
		if i > 40 {
			t.Fatal("the disk doesn't become full")
		}
	}
	t.Logf("%d containers before the disk was full", len(made)-1)
	lab.docker(append([]string{"rm", "-f"}, made...)...)
	lab.unchanged(running)
	lab.must("rm", state+"/filler")
	lab.run("more", "--network", "name=web,driver-opt=extip.address=203.0.113.57")
	ask(t, []question{
		{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr},
		{lab.outside, "tcp", "203.0.113.57:80", "more saw " + outsideAddr},
	})
	lostNone(t, "a full disk", map[string]*flow{"in": in})
	lab.docker("rm", "-f", "web", "more")
	lab.docker("network", "rm", "web")
	lab.unchanged(before)
}

// TestDamagedState: the file is set aside, the records come from the kernel,
// and no packet is lost.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	lab := newLab(t, options{})
	before := lab.host.Dump()
	lab.network("web", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.62")
	lab.run("web", "--network", "name=web,driver-opt=extip.address=203.0.113.56")
	lab.run("mail", "--network", "name=web,driver-opt=extip.address=203.0.113.60,driver-opt=extip.source=gateway")
	running := lab.host.Dump()
	in := startFlow(t, lab.outside, "203.0.113.56:80")
	lab.stopPlugin()
	if err := os.WriteFile(lab.dir+"/extip.db", []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	lab.startPlugin()
	lab.unchanged(running)
	if aside := lab.must("sh", "-c", "cat "+lab.dir+"/extip.db.damaged-*"); aside != "not a database" {
		t.Errorf("set aside: %q", aside)
	}
	refused(t, lab, []string{"203.0.113.60", "taken by"}, "--network", "name=web,driver-opt=extip.address=203.0.113.60")
	lab.run("new", "--network", "web")
	lostNone(t, "a damaged state file", map[string]*flow{"in": in})
	ask(t, []question{
		{lab.outside, "tcp", "203.0.113.56:80", "web saw " + outsideAddr},
		{lab.outside, "tcp", "203.0.113.60:80", "mail saw 172.31.0.1"},
	})
	lab.docker("rm", "-f", "web", "mail", "new")
	lab.docker("network", "rm", "web")
	lab.unchanged(before)
}
