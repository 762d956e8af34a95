package nettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Provoke sends one UDP datagram of size bytes that may not be fragmented,
// with a TTL, and returns what comes back: the answer, or an ICMP error with
// who sent it and to what address it says the datagram went, such as
// "too big 1300, says 192.0.2.1 of 198.51.100.9"; "" if nothing came. What the
// node has learnt of the path's MTU is not heeded.
func (n *Node) Provoke(addr string, size, ttl int) string {
	n.t.Helper()
	to := netip.MustParseAddrPort(addr)
	var back string
	err := n.Do(func() (err error) {
		back, err = provoke(to, size, ttl, n.turns)
		return err
	})
	n.t.Logf("%s sends %d bytes to %s with ttl %d: %s %v", n.Name, size, addr, ttl, back, err)
	return back
}

func provoke(to netip.AddrPort, size, ttl, turns int) (string, error) {
	// Of IPv4 and IPv6.
	domain, level, hops, discover, errs := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TTL, unix.IP_MTU_DISCOVER, unix.IP_RECVERR
	if to.Addr().Is6() {
		domain, level, hops, discover, errs = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_MTU_DISCOVER, unix.IPV6_RECVERR
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	err = errors.Join(
		unix.SetsockoptInt(fd, level, hops, ttl),
		unix.SetsockoptInt(fd, level, discover, unix.IP_PMTUDISC_PROBE), // the same for IPv6
		unix.SetsockoptInt(fd, level, errs, 1),
		unix.Connect(fd, sockaddr(to.Addr(), int(to.Port()))),
	)
	if err != nil {
		return "", err
	}
	if _, err := unix.Write(fd, make([]byte, size)); err != nil {
		return "", err
	}
	wait := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for turns > 0 {
		_, err := unix.Poll(wait, int(turn.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return "", err
		case wait[0].Revents == 0:
			turns--
			continue
		}
		buf, oob := make([]byte, 2048), make([]byte, 256)
		if _, oobn, _, about, err := unix.Recvmsg(fd, buf, oob, unix.MSG_ERRQUEUE); err == nil {
			return describe(oob[:oobn], addrOf(about))
		}
		size, err := unix.Read(fd, buf)
		return strings.TrimSpace(string(buf[:max(0, size)])), err
	}
	return "", nil
}

// describe words the ICMP error that a socket told of, about a datagram to an
// address. It is a struct sock_extended_err with the sender after it
// (linux/errqueue.h).
func describe(oob []byte, about netip.Addr) (string, error) {
	told, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return "", err
	}
	for _, m := range told {
		const fixed = 16
		if len(m.Data) < fixed+unix.SizeofSockaddrInet4 {
			continue
		}
		origin, kind, code := m.Data[4], m.Data[5], m.Data[6]
		info := binary.NativeEndian.Uint32(m.Data[8:])
		sender := netip.AddrFrom4([4]byte(m.Data[fixed+4 : fixed+8]))
		if origin == unix.SO_EE_ORIGIN_ICMP6 && len(m.Data) >= fixed+unix.SizeofSockaddrInet6 {
			sender = netip.AddrFrom16([16]byte(m.Data[fixed+8 : fixed+24]))
		}
		return fmt.Sprintf("%s, says %s of %s", wording(origin, kind, code, info), sender, about), nil
	}
	return "", fmt.Errorf("an error without words")
}

// wording is of the types and codes of RFC 792 and RFC 4443.
func wording(origin, kind, code uint8, info uint32) string {
	switch [3]uint8{origin, kind, code} {
	case [3]uint8{unix.SO_EE_ORIGIN_ICMP, 3, 4}, [3]uint8{unix.SO_EE_ORIGIN_ICMP6, 2, 0}:
		return fmt.Sprintf("too big %d", info)
	case [3]uint8{unix.SO_EE_ORIGIN_ICMP, 11, 0}, [3]uint8{unix.SO_EE_ORIGIN_ICMP6, 3, 0}:
		return "expired"
	case [3]uint8{unix.SO_EE_ORIGIN_ICMP, 3, 3}, [3]uint8{unix.SO_EE_ORIGIN_ICMP6, 1, 4}:
		return "port unreachable"
	}
	return fmt.Sprintf("origin %d type %d code %d", origin, kind, code)
}
