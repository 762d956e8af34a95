package announce

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// A socket sends and receives the packets of one protocol on all interfaces
// of the network namespace that it was opened in.
type socket struct {
	file     *os.File
	conn     syscall.RawConn
	protocol uint16
	// sight makes of a packet what it says of an address.
	sight func(packet []byte, sender mac) (sighting, bool)
	// bound says whether it receives. It never stops again, as that waits
	// for all processors; a filter that passes nothing is as good.
	bound bool
}

// queueBytes is the size of each socket's queues: a thousand packets, which
// take a multiple of their length in the kernel. A segment that is scanned
// brings that many at once.
const queueBytes = 1 << 20

func openSocket(protocol uint16, sight func([]byte, mac) (sighting, bool)) (*socket, error) {
	// Protocol 0: until it is bound this socket receives nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("announce: open packet socket: %w", err)
	}
	// Without CAP_NET_ADMIN the queues stay as they are.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queueBytes)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, queueBytes)
	s := &socket{file: os.NewFile(uintptr(fd), "packet socket"), protocol: protocol, sight: sight}
	if s.conn, err = s.file.SyscallConn(); err != nil {
		return nil, fmt.Errorf("announce: packet socket: %w", err)
	}
	return s, nil
}

// control calls fn with the descriptor, which stays open meanwhile.
func (s *socket) control(fn func(fd int) error) error {
	var err error
	if cerr := s.conn.Control(func(fd uintptr) { err = fn(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// bind lets the socket receive what its filter passes.
func (s *socket) bind() error {
	if s.bound {
		return nil
	}
	err := s.control(func(fd int) error {
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(s.protocol)})
	})
	s.bound = err == nil
	return err
}

// restrict lets the socket receive only from these interfaces.
func (s *socket) restrict(indexes []int) error {
	program := filter(s.protocol, indexes)
	return s.control(func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
}

// join and leave make an interface receive a multicast MAC, counted by the
// kernel. Both wait for the kernel's lock on the configuration of interfaces.
func (s *socket) join(index int, group mac) error {
	return s.membership(unix.PACKET_ADD_MEMBERSHIP, index, group)
}

// leave doesn't fail: with an interface its memberships are gone.
func (s *socket) leave(index int, group mac) {
	_ = s.membership(unix.PACKET_DROP_MEMBERSHIP, index, group)
}

func (s *socket) membership(option, index int, group mac) error {
	mreq := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_MULTICAST, Alen: 6}
	copy(mreq.Address[:], group[:])
	return gone(s.control(func(fd int) error {
		return unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, option, &mreq)
	}))
}

// send sends a packet, or fails if the interface's queue is full.
func (s *socket) send(index int, to mac, packet []byte) error {
	address := unix.SockaddrLinklayer{Protocol: networkOrder(s.protocol), Ifindex: index, Halen: 6}
	copy(address.Addr[:], to[:])
	return gone(s.control(func(fd int) error { return unix.Sendto(fd, packet, 0, &address) }))
}

// receive waits for a packet and says on which interface it came, and from whom.
func (s *socket) receive(buf []byte) (packet []byte, index int, sender mac, err error) {
	var n int
	var from unix.Sockaddr
	rerr := s.conn.Read(func(fd uintptr) bool {
		n, from, err = unix.Recvfrom(int(fd), buf, 0)
		return err != unix.EAGAIN
	})
	if rerr != nil {
		return nil, 0, mac{}, rerr
	}
	if err != nil {
		return nil, 0, mac{}, err
	}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		index, sender = ll.Ifindex, mac(ll.Addr[:6])
	}
	return buf[:n], index, sender, nil
}

// maxListed is how many interfaces a filter tells apart; with more in use, it
// passes all. The kernel limits the memory that a socket's filter may have.
const maxListed = 100

// Where a filter finds what isn't in the packet (linux/filter.h, SKF_AD_OFF).
const (
	ancillaryPacketType uint32 = 0xfffff000 + 4
	ancillaryIndex      uint32 = 0xfffff000 + 8
)

// filter is the classic BPF program that passes a protocol's packets from
// some interfaces; from none, it passes nothing.
func filter(protocol uint16, indexes []int) []unix.SockFilter {
	const (
		load     = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		loadByte = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		ifEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ifLeast  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		give     = unix.BPF_RET | unix.BPF_K
		all      = 0xffff // more than any packet
	)
	var program []unix.SockFilter
	if protocol == unix.ETH_P_IPV6 {
		// What is most is dropped first.
		program = append(program,
			unix.SockFilter{Code: loadByte, K: 6}, // next header
			unix.SockFilter{Code: ifEqual, K: unix.IPPROTO_ICMPV6, Jt: 1},
			unix.SockFilter{Code: give},
			unix.SockFilter{Code: loadByte, K: ipv6Length}, // type
			unix.SockFilter{Code: ifEqual, K: solicitation, Jt: 2},
			unix.SockFilter{Code: ifEqual, K: advertisement, Jt: 1},
			unix.SockFilter{Code: give},
		)
	}
	program = append(program,
		// To this host, to all or to a group. What is to another host may
		// belong to another segment: a frame of a VLAN that this host
		// doesn't know is delivered on the interface under it, as that.
		unix.SockFilter{Code: load, K: ancillaryPacketType},
		unix.SockFilter{Code: ifLeast, K: unix.PACKET_OTHERHOST, Jf: 1},
		unix.SockFilter{Code: give},
		unix.SockFilter{Code: load, K: ancillaryIndex},
	)
	if len(indexes) > maxListed {
		return append(program, unix.SockFilter{Code: give, K: all})
	}
	for _, index := range slices.Sorted(slices.Values(indexes)) {
		program = append(program,
			unix.SockFilter{Code: ifEqual, K: uint32(index), Jf: 1},
			unix.SockFilter{Code: give, K: all},
		)
	}
	return append(program, unix.SockFilter{Code: give})
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// groupOf is the multicast MAC that solicitations of addr go to.
func groupOf(addr netip.Addr) mac { return groupMAC(solicitedNode(addr)) }
