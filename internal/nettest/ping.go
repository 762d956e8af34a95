package nettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// icmp is what differs between the families' echo requests and answers.
type icmp struct {
	domain, protocol    int
	level, wantTTL, ttl int   // socket option that asks for an answer's TTL, and what tells it
	request, reply      uint8 // types: RFC 792; RFC 4443 §4
}

func icmpOf(a netip.Addr) icmp {
	if a.Is4() {
		return icmp{unix.AF_INET, unix.IPPROTO_ICMP, unix.IPPROTO_IP, unix.IP_RECVTTL, unix.IP_TTL, 8, 0}
	}
	return icmp{unix.AF_INET6, unix.IPPROTO_ICMPV6, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, unix.IPV6_HOPLIMIT, 128, 129}
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: a.As16()}
}

// Ping returns the TTL of the answer to one ICMP echo request, which tells how
// far away the answer came from; 0 if there was none.
func (n *Node) Ping(addr string) (ttl int) {
	n.t.Helper()
	to := netip.MustParseAddr(addr)
	err := n.Do(func() (err error) {
		ttl, err = icmpOf(to).ping(to, n.turns)
		return err
	})
	n.t.Logf("%s pings %s: ttl %d, %v", n.Name, addr, ttl, err)
	return ttl
}

func (f icmp) ping(to netip.Addr, turns int) (ttl int, err error) {
	fd, err := unix.Socket(f.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, f.protocol)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptInt(fd, f.level, f.wantTTL, 1); err != nil {
		return 0, err
	}
	id := uint16(time.Now().UnixNano())
	if err := unix.Sendto(fd, f.echoRequest(id), 0, sockaddr(to, 0)); err != nil {
		return 0, err
	}
	tv := unix.NsecToTimeval(turn.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return 0, err
	}
	for turns > 0 {
		buf, oob := make([]byte, 256), make([]byte, 64)
		size, oobn, _, from, err := unix.Recvmsg(fd, buf, oob, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			turns--
			continue
		case err != nil:
			return 0, err
		}
		answer := buf[:size]
		if f.domain == unix.AF_INET && size > 0 {
			answer = answer[4*int(answer[0]&0xf):] // a raw IPv4 socket delivers the IP header, too
		}
		if len(answer) >= 8 && answer[0] == f.reply && binary.BigEndian.Uint16(answer[4:]) == id && addrOf(from) == to {
			return f.ttlIn(oob[:oobn])
		}
	}
	return 0, errors.New("no answer")
}

func addrOf(s unix.Sockaddr) netip.Addr {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(s.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(s.Addr)
	}
	return netip.Addr{}
}

// ttlIn is the TTL among what a socket told beside a packet.
func (f icmp) ttlIn(oob []byte) (int, error) {
	told, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, err
	}
	for _, m := range told {
		if int(m.Header.Level) == f.level && int(m.Header.Type) == f.ttl && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data)), nil
		}
	}
	return 0, fmt.Errorf("an answer without TTL")
}

// echoRequest leaves ICMPv6's checksum to the kernel, which knows the addresses.
func (f icmp) echoRequest(id uint16) []byte {
	p := []byte{f.request, 0, 0, 0, 0, 0, 0, 1}
	binary.BigEndian.PutUint16(p[4:], id)
	var sum uint32
	for i := 0; i < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	binary.BigEndian.PutUint16(p[2:], ^uint16(sum&0xffff+sum>>16))
	return p
}
