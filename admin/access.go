package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/driver"
)

// Access says who may use the API: root and the user that the plugin runs as
// always, and a group.
type Access struct {
	// Group is a group id; -1 for none.
	Group int
}

// NewAccess finds a group by its name or number; "" is none.
func NewAccess(group string) (Access, error) {
	if group == "" {
		return Access{-1}, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		// Where there is no /etc/group, as in a managed plugin, numbers do.
		id, nerr := strconv.ParseUint(group, 10, 31)
		if nerr != nil {
			return Access{}, fmt.Errorf("%w; a number is allowed, too", err)
		}
		return Access{int(id)}, nil
	}
	id, err := strconv.Atoi(g.Gid)
	return Access{id}, err
}

// Listen binds the socket at path, as driver.Listen does, for those whom access
// lets in: with mode 0600, or 0660 and the group. The group must reach it; if
// its folder is closed to all others, which ours is, it is opened for passage.
func (a Access) Listen(path string) (net.Listener, error) {
	l, err := driver.Listen(path)
	if err != nil || a.Group < 0 {
		return l, err
	}
	if err := a.open(path); err != nil {
		return nil, errors.Join(fmt.Errorf("admin: let group %d in: %w", a.Group, err), l.Close())
	}
	return l, nil
}

func (a Access) open(path string) error {
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm() == 0o700 {
		if err := give(dir, a.Group, 0o710); err != nil {
			return err
		}
	}
	return give(path, a.Group, 0o660)
}

// give makes a file the group's. Not every plugin may do that; one that runs
// with that group need not.
func give(path string, group int, mode fs.FileMode) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Gid != uint32(group) {
		if err := os.Chown(path, -1, group); err != nil {
			return err
		}
	}
	return os.Chmod(path, mode)
}

// A peer is the process at the other end of a connection, as the kernel knows
// it from when it connected.
type peer struct {
	pid    int32
	uid    uint32
	groups []uint32
}

// nobody is a peer that could not be found out.
var nobody = peer{pid: -1, uid: ^uint32(0)}

// admits tells whether a peer is let in. The socket's mode says the same, until
// somebody changes that.
func (a Access) admits(p peer) bool {
	if p.pid < 0 {
		return false
	}
	return p.uid == 0 || p.uid == uint32(os.Geteuid()) || a.Group >= 0 && slices.Contains(p.groups, uint32(a.Group))
}

type peerKey struct{}

// withPeer notes who is at the other end of a connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	p, err := askPeer(c)
	if err != nil {
		p = nobody
	}
	return context.WithValue(ctx, peerKey{}, p)
}

func peerOf(ctx context.Context) peer {
	if p, ok := ctx.Value(peerKey{}).(peer); ok {
		return p
	}
	return nobody
}

func askPeer(c net.Conn) (p peer, err error) {
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return p, fmt.Errorf("%T is no unix socket", c)
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return p, err
	}
	var asked error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			asked = err
			return
		}
		p.pid, p.uid = cred.Pid, cred.Uid
		p.groups, asked = peerGroups(fd)
		p.groups = append(p.groups, cred.Gid)
	})
	return p, errors.Join(err, asked)
}

// peerGroups are the supplementary groups of whoever is at the other end of a
// socket. The library has no call for this option of unix(7).
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4], nil
		case unix.ERANGE:
			groups = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}
