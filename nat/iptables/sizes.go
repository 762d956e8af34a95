package iptables

import (
	"context"
	"errors"
	"math/bits"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sizes is the watch of iptables-legacy. The kernel tells nobody of changes,
// but what a table's size is, for one getsockopt: 0.7 µs, however large it is. (A look
// by iptables-save takes milliseconds, and a fork.)
//
// Asking for a table that isn't there would make it (xt_find_table_lock in
// net/netfilter/x_tables.c), with hooks that all packets then pass. So only
// tables are watched that iptables-save has shown, or that we have written to.
type sizes struct {
	sockets map[family]*os.File
	known   map[place]size // as last read, with what we have written since
}

// A place is a table of a family.
type place struct {
	family family
	table  string
}

// A size is a table's, without what an empty one has.
type size struct{ entries, bytes int }

func openSizes(tools []*tool) (watch, error) {
	z := &sizes{sockets: map[family]*os.File{}, known: map[place]size{}}
	for _, t := range tools {
		if err := z.open(*t); err != nil {
			z.close()
			return nil, err
		}
	}
	return z, nil
}

// open begins to watch the tables of a family. Where there is no IPv6 there
// is nothing to watch.
func (z *sizes) open(t tool) error {
	domain := unix.AF_INET
	if t.family.v6 {
		domain = unix.AF_INET6
	}
	// Any socket of the family will do. An unbound UDP socket receives nothing.
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) && t.family.v6 {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	z.sockets[t.family] = os.NewFile(uintptr(fd), "udp")
	text, err := t.run("", t.save)
	if err != nil && !t.family.v6 {
		return err
	}
	z.read(t.family, parse(text))
	return nil
}

func (z *sizes) close() {
	for _, s := range z.sockets {
		_ = s.Close()
	}
}

func (z *sizes) read(f family, have map[string]held) {
	for _, table := range []string{tableNat, tableMangle, tableFilter} {
		delete(z.known, place{f, table})
		if h, ok := have[table]; ok {
			z.learn(place{f, table}, h.entries())
		}
	}
}

// learn notes how many entries a table should have now. If it has another
// number, somebody has been quicker, and the next look will tell.
func (z *sizes) learn(p place, entries int) {
	z.known[p] = size{entries: entries, bytes: z.now(p).bytes}
}

// write adds to the sizes known what b adds. After an error they stay, and
// the next look may tell of half a write of our own.
func (z *sizes) write(f family, b *batch, restore func() error) error {
	if err := restore(); err != nil {
		return err
	}
	for _, s := range b.used() {
		p := place{f, s.table}
		z.learn(p, z.known[p].entries+s.grows)
	}
	return nil
}

func (z *sizes) run(ctx context.Context, w *Watcher, changed func()) error {
	interval := w.Interval
	if interval == 0 {
		interval = defaultInterval
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		w.writer.lock()
		differs := z.look()
		w.writer.unlock()
		if differs {
			changed()
		}
	}
}

// look tells whether a table's size isn't what is known, once per change.
func (z *sizes) look() (differs bool) {
	for p, known := range z.known {
		if now := z.now(p); now != known {
			z.known[p] = now
			differs = true
		}
	}
	return differs
}

// unreadable is the size of a table that the kernel doesn't tell.
var unreadable = size{entries: -1}

// now is a table's size now.
func (z *sizes) now(p place) size {
	s := z.sockets[p.family]
	if s == nil {
		return unreadable
	}
	conn, err := s.SyscallConn()
	if err != nil {
		return unreadable
	}
	var info getInfo
	copy(info.name[:], p.table)
	var serr error
	if err := conn.Control(func(fd uintptr) { serr = info.ask(int(fd), p.family) }); err != nil || serr != nil {
		return unreadable
	}
	return info.size()
}

// getInfo is struct ipt_getinfo of linux/netfilter_ipv4/ip_tables.h, and
// struct ip6t_getinfo of linux/netfilter_ipv6/ip6_tables.h.
type getInfo struct {
	name       [32]byte
	validHooks uint32 // bit set: which built-in chains there are
	hookEntry  [5]uint32
	underflow  [5]uint32
	entries    uint32
	bytes      uint32
}

// getInfoOption is IPT_SO_GET_INFO, and IP6T_SO_GET_INFO.
const getInfoOption = 64

func (i *getInfo) ask(fd int, f family) error {
	level := unix.IPPROTO_IP
	if f.v6 {
		level = unix.IPPROTO_IPV6
	}
	size := uint32(unsafe.Sizeof(*i))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfoOption,
		uintptr(unsafe.Pointer(i)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return os.NewSyscallError("getsockopt", errno)
	}
	return nil
}

// size leaves out what an empty table has: a policy per built-in chain and
// an end. Its bytes count only beside entries: an empty table is like none.
func (i *getInfo) size() size {
	entries := int(i.entries) - bits.OnesCount32(i.validHooks) - 1
	if entries == 0 {
		return size{}
	}
	return size{entries: entries, bytes: int(i.bytes)}
}
