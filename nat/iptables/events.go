package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// events is the watch of iptables-nft. The kernel tells a multicast group of
// everything that a transaction changes, and then of the generation of the
// rules that it has made (nf_tables_commit in net/netfilter/nf_tables_api.c).
// Each transaction makes one generation, numbered consecutively within a
// network namespace: if the number has grown by exactly as much as we wrote,
// nobody else wrote meanwhile, and these generations are ours.
type events struct {
	heard *os.File // socket, member of the group
	asked *os.File // socket, for the present generation
	own   []span   // ascending; what heard has passed is dropped
}

// A span is the generations after first, up to and including last.
type span struct{ first, last uint32 }

// has counts as serial numbers do: a generation's follows the highest.
func (s span) has(gen uint32) bool { return gen-s.first-1 < s.last-s.first }

// eventBuffer holds the events of some ten thousand rules, in bytes.
const eventBuffer = 8 << 20

func openEvents() (watch, error) {
	heard, err := netlinkSocket(1 << (unix.NFNLGRP_NFTABLES - 1))
	if err != nil {
		return nil, err
	}
	asked, err := netlinkSocket(0)
	if err != nil {
		return nil, errors.Join(err, heard.Close())
	}
	return &events{heard: heard, asked: asked}, nil
}

func netlinkSocket(groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer); err != nil {
		// The right to administer a user namespace isn't enough; a
		// smaller buffer does.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

func (e *events) close() {
	_ = e.heard.Close()
	_ = e.asked.Close()
}

func (e *events) read(family, map[string]held) {}

// write makes the generations of a write ours, unless there is any doubt.
func (e *events) write(_ family, b *batch, restore func() error) error {
	before, berr := e.generation()
	if err := restore(); err != nil {
		return err
	}
	after, aerr := e.generation()
	if wrote := len(b.used()); berr == nil && aerr == nil && after-before == uint32(wrote) {
		e.own = append(e.own, span{first: before, last: after})
	}
	return nil
}

// isOwn tells whether a generation is ours, after a write of ours that is
// going on. It is asked in ascending order.
func (e *events) isOwn(gen uint32, w writer) bool {
	w.lock()
	defer w.unlock()
	for len(e.own) > 0 && int32(gen-e.own[0].last) > 0 {
		e.own = e.own[1:]
	}
	return len(e.own) > 0 && e.own[0].has(gen)
}

// generation asks for the number of the present generation. It takes
// 6 µs: the kernel answers before the question's write returns.
func (e *events) generation() (uint32, error) {
	const kind = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	ask := make([]byte, unix.SizeofNlMsghdr+nfHeader)
	binary.NativeEndian.PutUint32(ask[0:], uint32(len(ask)))
	binary.NativeEndian.PutUint16(ask[4:], kind)
	binary.NativeEndian.PutUint16(ask[6:], unix.NLM_F_REQUEST)
	if _, err := e.asked.Write(ask); err != nil {
		return 0, err
	}
	conn, err := e.asked.SyscallConn()
	if err != nil {
		return 0, err
	}
	buf, n, nerr := make([]byte, 4096), 0, error(nil)
	err = conn.Read(func(fd uintptr) bool {
		n, nerr = unix.Read(int(fd), buf)
		return true // never wait: callers hold the lock
	})
	if err := errors.Join(err, nerr); err != nil {
		return 0, err
	}
	messages, err := syscall.ParseNetlinkMessage(buf[:n])
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		if gen, ok := generationIn(m); ok {
			return gen, nil
		}
	}
	return 0, fmt.Errorf("no generation in the kernel's answer")
}

func (e *events) run(ctx context.Context, w *Watcher, changed func()) error {
	stop := context.AfterFunc(ctx, func() { _ = e.heard.Close() })
	defer stop()
	buf := make([]byte, 64<<10) // datagrams are 8 KiB at most: NLMSG_GOODSIZE in linux/netlink.h
	concerned := false          // by what the transaction has changed so far
	for {
		n, err := e.heard.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			if err := e.drain(buf); err != nil {
				return err
			}
			concerned = false
			changed()
			continue
		case err != nil:
			return err
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			changed()
			continue
		}
		for _, m := range messages {
			gen, ok := generationIn(m)
			if !ok {
				concerned = concerned || concerns(m)
				continue
			}
			if concerned && !e.isOwn(gen, w.writer) {
				changed()
			}
			concerned = false
		}
	}
}

// drain reads all that waits. After the kernel has said that its queue was
// full it drops events, without saying so again, until the queue is empty
// (NETLINK_S_CONGESTED in net/netlink/af_netlink.c).
func (e *events) drain(buf []byte) error {
	conn, err := e.heard.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		for {
			if _, err := unix.Read(int(fd), buf); errors.Is(err, unix.EAGAIN) {
				return true
			}
		}
	})
}

// nfHeader is the size of struct nfgenmsg, which begins with the family.
const nfHeader = 4

// generationIn is the generation that a message tells of, if any.
func generationIn(m syscall.NetlinkMessage) (gen uint32, ok bool) {
	if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
		return 0, false
	}
	id := attribute(m, unix.NFTA_GEN_ID)
	if len(id) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(id), true
}

// concerns tells whether a change may be to our rules, or to what is before
// them. Programs that rewrite their own chains or tables all day don't matter.
func concerns(m syscall.NetlinkMessage) bool {
	chain := 0
	switch m.Header.Type &^ (unix.NFNL_SUBSYS_NFTABLES << 8) {
	case unix.NFT_MSG_DELTABLE:
	case unix.NFT_MSG_DELCHAIN:
		chain = unix.NFTA_CHAIN_NAME
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		chain = unix.NFTA_RULE_CHAIN
	default:
		return false
	}
	if len(m.Data) < nfHeader || m.Data[0] != unix.AF_INET && m.Data[0] != unix.AF_INET6 {
		return false
	}
	// The table's name is the first attribute of all three.
	table := unix.ByteSliceToString(attribute(m, unix.NFTA_TABLE_NAME))
	return slices.Contains([]string{tableNat, tableMangle, tableFilter}, table) &&
		(chain == 0 || isPlace(unix.ByteSliceToString(attribute(m, chain))))
}

// isPlace tells whether a chain is ours or one that we jump from.
func isPlace(chain string) bool {
	for _, j := range slices.Concat(natJumps(), earlyJumps(), isolateJumps(), forwardJumps()) {
		if chain == j.from {
			return true
		}
	}
	return strings.HasPrefix(chain, ourPrefix) || strings.HasPrefix(chain, chainForward)
}

// attribute is the value of a message's attribute of that type; nil if there is none.
func attribute(m syscall.NetlinkMessage, kind int) []byte {
	for b := m.Data[min(nfHeader, len(m.Data)):]; len(b) >= unix.SizeofNlAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return nil
		}
		if int(binary.NativeEndian.Uint16(b[2:])) == kind {
			return b[unix.SizeofNlAttr:size]
		}
		b = b[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
	}
	return nil
}
