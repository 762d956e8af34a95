package nettest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a question waits for its answer. Private links answer
// in well under a millisecond; a busy machine may need a hundred.
const patience = 700 * time.Millisecond

// Serve answers on a TCP and UDP port of all the node's addresses with the
// node's own name and the address that it saw the caller by.
func (n *Node) Serve(port int) {
	n.t.Helper()
	n.MustDo(func() error {
		addr := fmt.Sprintf(":%d", port)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		n.t.Cleanup(func() { _ = l.Close() })
		go n.serveTCP(l)
		for _, family := range []string{"udp4", "udp6"} {
			lc := net.ListenConfig{Control: wantPacketInfo}
			pc, err := lc.ListenPacket(context.Background(), family, addr)
			if err != nil {
				return err
			}
			n.t.Cleanup(func() { _ = pc.Close() })
			go n.serveUDP(pc.(*net.UDPConn))
		}
		return nil
	})
}

func (n *Node) answer(peer netip.AddrPort) string {
	return n.Name + " saw " + peer.Addr().Unmap().String()
}

func (n *Node) serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte(n.answer(c.RemoteAddr().(*net.TCPAddr).AddrPort())))
		_ = c.Close()
	}
}

// wantPacketInfo asks for each datagram's destination, so that an answer
// leaves from the address that was asked, whichever of the node's it is.
func wantPacketInfo(network, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		if network == "udp6" {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			return
		}
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	})
	if err != nil {
		return err
	}
	return serr
}

func (n *Node) serveUDP(c *net.UDPConn) {
	buf, oob := make([]byte, 65536), make([]byte, 256)
	for {
		size, oobn, _, peer, err := c.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		answer := n.answer(peer)
		if size > 1 {
			answer += fmt.Sprintf(" send %d bytes", size)
		}
		_, _, _ = c.WriteMsgUDPAddrPort([]byte(answer), oob[:oobn], peer)
	}
}

// Ask connects to addr ("192.0.2.7:80") by tcp or udp and returns who
// answered and whom it saw, as "web saw 192.0.2.9"; "" if nobody did.
func (n *Node) Ask(network, addr string) string {
	n.t.Helper()
	return n.AskBytes(network, addr, 1)
}

// AskBytes is Ask with a question of size bytes; a udp answer then says how
// many of them arrived, if more than one did.
func (n *Node) AskBytes(network, addr string, size int) string {
	n.t.Helper()
	var answer string
	err := n.Do(func() error {
		c, err := net.DialTimeout(network, addr, patience)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if network == "udp" {
			if _, err := c.Write(bytes.Repeat([]byte("?"), size)); err != nil {
				return err
			}
		}
		buf := make([]byte, 512)
		nr, err := c.Read(buf)
		answer = strings.TrimSpace(string(buf[:nr]))
		return err
	})
	if err != nil {
		n.t.Logf("%s asks %s %s: %v", n.Name, network, addr, err)
		return ""
	}
	n.t.Logf("%s asks %s %s: %s", n.Name, network, addr, answer)
	return answer
}

// Ping sends one IPv4 echo request and returns the TTL of the answer, 0 if
// none came: Linux sends with 64, and each router on the way takes one off.
func (n *Node) Ping(addr string) (ttl int) {
	n.t.Helper()
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		target := netip.MustParseAddr(addr).As4()
		id := uint16(time.Now().UnixNano())
		if err := unix.Sendto(fd, echoRequest(id), 0, &unix.SockaddrInet4{Addr: target}); err != nil {
			return err
		}
		for deadline := time.Now().Add(patience); ; {
			left := time.Until(deadline)
			if left <= 0 {
				return fmt.Errorf("no answer")
			}
			tv := unix.NsecToTimeval(left.Nanoseconds())
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
				return err
			}
			buf := make([]byte, 256)
			nr, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return err
			}
			// A raw IPv4 socket delivers the IP header too: TTL is its
			// byte 8, the sender bytes 12 to 15 (RFC 791 §3.1).
			const icmpEchoReply = 0
			if nr >= 28 && [4]byte(buf[12:16]) == target && buf[20] == icmpEchoReply && binary.BigEndian.Uint16(buf[24:]) == id {
				ttl = int(buf[8])
				return nil
			}
		}
	})
	n.t.Logf("%s pings %s: ttl %d, %v", n.Name, addr, ttl, err)
	return ttl
}

// echoRequest is an ICMP echo request (RFC 792) with sequence number 1 and no data.
func echoRequest(id uint16) []byte {
	p := []byte{8, 0, 0, 0, 0, 0, 0, 1}
	binary.BigEndian.PutUint16(p[4:], id)
	var sum uint32
	for i := 0; i < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	binary.BigEndian.PutUint16(p[2:], ^uint16(sum&0xffff+sum>>16))
	return p
}
