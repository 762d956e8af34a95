package nettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

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
		c, err := dial(network, addr, silence)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		return within(n.turns, c, func() error {
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
	})
	if err != nil {
		n.t.Logf("%s asks %s %s: %v", n.Name, network, addr, err)
		return ""
	}
	n.t.Logf("%s asks %s %s: %s", n.Name, network, addr, answer)
	return answer
}

// Throw sends one datagram of size bytes, and does not wait for an answer.
func (n *Node) Throw(addr string, size int) {
	n.t.Helper()
	n.MustDo(func() error {
		c, err := net.Dial("udp", addr)
		if err != nil {
			return err
		}
		_, err = c.Write(make([]byte, size))
		return errors.Join(err, c.Close())
	})
}
