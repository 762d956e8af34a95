package nettest

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Frames are made by hand here, for tests that do what no kernel would. Each
// function takes what comes next in the packet as its last argument.

// Broadcast is every station of a segment.
var Broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Ethernet is a frame.
func Ethernet(to, from net.HardwareAddr, etherType uint16, next []byte) []byte {
	b := append(bytes.Clone(to), from...)
	return append(binary.BigEndian.AppendUint16(b, etherType), next...)
}

// ARP says, of Ethernet and IPv4, that ip is at mac: op 1 asks who has target
// at the same time, op 2 answers.
func ARP(op uint16, mac net.HardwareAddr, ip netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, 1, 8, 0, 6, 4}, op)
	b = append(append(b, mac...), ip.AsSlice()...)
	return append(append(b, targetMAC...), target.AsSlice()...)
}

// IP is a packet of either family with a hop limit of 255.
func IP(from, to netip.Addr, protocol byte, next []byte) []byte {
	if from.Is6() {
		b := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(next)))
		b = append(append(b, protocol, 255), from.AsSlice()...)
		return append(append(b, to.AsSlice()...), next...)
	}
	const size = 20
	b := binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(size+len(next)))
	b = append(b, 0, 0, 0, 0, 255, protocol, 0, 0)
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, next...)
}

// UDP is a datagram without a checksum, which IPv4 allows.
func UDP(from, to uint16, next []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(next)))
	return append(append(b, 0, 0), next...)
}

// SYN is a packet that opens a TCP connection: RFC 9293 §3.1.
func SYN(from, to netip.AddrPort) []byte {
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, 2, 0xff, 0xff, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(b[16:], transportSum(from.Addr(), to.Addr(), unix.IPPROTO_TCP, b))
	return IP(from.Addr(), to.Addr(), unix.IPPROTO_TCP, b)
}

// ICMP6 is a packet with IPv6 header and checksum: RFC 4443 §2.3.
func ICMP6(from, to netip.Addr, kind, code byte, body []byte) []byte {
	message := append([]byte{kind, code, 0, 0}, body...)
	binary.BigEndian.PutUint16(message[2:], transportSum(from, to, unix.IPPROTO_ICMPV6, message))
	return IP(from, to, unix.IPPROTO_ICMPV6, message)
}

// transportSum is a checksum over a packet's addresses, too: RFC 9293 §3.1, RFC
// 8200 §8.1. Of short IPv4 packets it is the same as with IPv6's longer numbers.
func transportSum(from, to netip.Addr, protocol byte, packet []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(packet)))
	pseudo = append(pseudo, 0, 0, 0, protocol)
	return checksum(append(pseudo, packet...))
}

// Advertisement is ICMPv6 that says, overriding what is known, that an address
// is at a MAC: RFC 4861 §4.4.
func Advertisement(from, to, target netip.Addr, mac net.HardwareAddr) []byte {
	const override = 0x20
	body := append([]byte{override, 0, 0, 0}, target.AsSlice()...)
	return ICMP6(from, to, 136, 0, append(append(body, 2, 1), mac...))
}

// Solicitation is ICMPv6 that asks for an address's MAC: RFC 4861 §4.3.
func Solicitation(from, to, target netip.Addr) []byte {
	return ICMP6(from, to, 135, 0, append(make([]byte, 4), target.AsSlice()...))
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// Send puts frames on the wire as they are.
func (n *Node) Send(dev string, frames ...[]byte) {
	n.t.Helper()
	n.MustDo(func() error {
		fd, err := packetSocket(dev, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		for _, f := range frames {
			if _, err := unix.Write(fd, f); err != nil {
				return err
			}
		}
		return nil
	})
}

func packetSocket(dev string, protocol uint16) (fd int, err error) {
	i, err := net.InterfaceByName(dev)
	if err != nil {
		return -1, err
	}
	if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	// In network order, as is the protocol of bind(2).
	order := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: order, Ifindex: i.Index}); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// A Tap hears every frame that comes to an interface, whoever it is for.
type Tap struct {
	mu    sync.Mutex
	heard [][]byte
}

// Tap listens until the test ends.
func (n *Node) Tap(dev string) *Tap {
	n.t.Helper()
	t := &Tap{}
	var fd int
	n.MustDo(func() (err error) {
		if fd, err = packetSocket(dev, unix.ETH_P_ALL); err != nil {
			return err
		}
		tv := unix.NsecToTimeval((50 * time.Millisecond).Nanoseconds())
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	})
	buf := make([]byte, 65536)
	n.loop(fd, func() {
		if size, err := unix.Read(fd, buf); err == nil {
			t.mu.Lock()
			t.heard = append(t.heard, bytes.Clone(buf[:size]))
			t.mu.Unlock()
		}
	})
	return t
}

// loop calls fn, which doesn't wait for long, again and again until the test ends, and
// closes the socket then.
func (n *Node) loop(fd int, fn func()) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	n.t.Cleanup(func() {
		close(stop)
		<-stopped
		_ = unix.Close(fd)
	})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				fn()
			}
		}
	}()
}

// Heard tells whether a frame with these bytes has come.
func (t *Tap) Heard(mark []byte) bool { return t.Count(mark) > 0 }

// Count is how many frames with these bytes have come.
func (t *Tap) Count(mark []byte) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.heard {
		if bytes.Contains(f, mark) {
			n++
		}
	}
	return n
}
