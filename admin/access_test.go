package admin

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/internal/admintest"
	"github.com/extip/extip/internal/nettest"
)

// isRoot tells the machine's root, which can be anybody, from a user
// namespace's, which is alone there.
func isRoot() bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	fields := strings.Fields(string(ids))
	return os.Geteuid() == 0 && err == nil && len(fields) >= 3 && fields[2] != "1"
}

// as runs fn as another user, in a thread that is not used any more after.
func as(t *testing.T, uid, gid uint32, groups []uint32, fn func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var first unsafe.Pointer
		if len(groups) > 0 {
			first = unsafe.Pointer(&groups[0])
		}
		// The raw calls change this thread alone.
		_, _, e1 := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0)
		_, _, e2 := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
		_, _, e3 := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		for _, e := range []unix.Errno{e1, e2, e3} {
			if e != 0 {
				done <- e
				return
			}
		}
		fn()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// get asks for the version on a connection that is made right here.
func get(socket string) string {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return "can't connect"
	}
	defer func() { _ = c.Close() }()
	_, _ = c.Write([]byte("GET /v1/version HTTP/1.0\r\n\r\n"))
	buf := make([]byte, 1<<10)
	n, _ := c.Read(buf)
	status, _, _ := strings.Cut(string(buf[:n]), "\r\n")
	return strings.TrimPrefix(status, "HTTP/1.0 ")
}

func TestAccess(t *testing.T) {
	nettest.Require(t, isRoot(), "root")
	const group = 54321
	for _, tt := range []struct {
		name   string
		access Access
		// opened: somebody has let everybody in by the file's mode.
		opened   bool
		uid, gid uint32
		groups   []uint32
		want     string
	}{
		{"root", Access{-1}, false, 0, 0, nil, "200 OK"},
		{"somebody", Access{-1}, false, 65534, 65534, nil, "can't connect"},
		{"somebody, opened", Access{-1}, true, 65534, 65534, nil, "403 Forbidden"},
		{"of the group", Access{group}, false, 65534, group, nil, "200 OK"},
		{"among others of the group", Access{group}, false, 65534, 65534, []uint32{7, group}, "200 OK"},
		{"not of the group", Access{group}, false, 65534, 65534, []uint32{7}, "can't connect"},
		{"not of the group, opened", Access{group}, true, 65534, 65534, []uint32{7}, "403 Forbidden"},
		{"root with a group", Access{group}, false, 0, 0, nil, "200 OK"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			socket, _ := serve(t, admintest.Example(), tt.access)
			dir := filepath.Dir(socket)
			// The test's own folders are closed.
			for d := filepath.Dir(dir); strings.HasPrefix(filepath.Base(filepath.Dir(d)), "Test") || filepath.Base(d) == "001"; d = filepath.Dir(d) {
				chmod(t, d, 0o711)
				chmod(t, filepath.Dir(d), 0o711)
			}
			if tt.opened {
				chmod(t, dir, 0o755)
				chmod(t, socket, 0o666)
			}
			got := ""
			as(t, tt.uid, tt.gid, tt.groups, func() { got = get(socket) })
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestNewAccess(t *testing.T) {
	for group, want := range map[string]int{"": -1, "root": 0, "4242": 4242} {
		if a, err := NewAccess(group); err != nil || a.Group != want {
			t.Errorf("%q: %v, %v", group, a, err)
		}
	}
	if _, err := NewAccess("no-such-group"); err == nil || !strings.Contains(err.Error(), "no-such-group") {
		t.Errorf("an unknown group: %v", err)
	}
}

// TestListen: a socket that is left over gives way, and nothing else does.
func TestListen(t *testing.T) {
	path := t.TempDir() + "/extip/admin.sock"
	l, err := Access{-1}.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Access{-1}).Listen(path); err == nil {
		t.Error("two listen at once")
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil || !exists(path) {
		t.Fatal(err)
	}
	if l, err = (Access{os.Getegid()}).Listen(path); err != nil {
		t.Fatalf("over a left-over socket: %v", err)
	}
	for path, want := range map[string]os.FileMode{path: 0o660, filepath.Dir(path): 0o710} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %v", path, info.Mode(), err, want)
		}
	}
	if err := l.Close(); err != nil || exists(path) {
		t.Errorf("after the end: %v", err)
	}
	precious := t.TempDir() + "/precious"
	if err := os.WriteFile(precious, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Access{-1}.Listen(precious)
	if b, rerr := os.ReadFile(precious); err == nil || rerr != nil || string(b) != "data" {
		t.Errorf("over a file: %v", errors.Join(err, rerr))
	}
}
