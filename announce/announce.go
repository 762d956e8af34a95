// Package announce tells the neighbours on a segment where an external
// address is now. It is the only door to raw sockets.
package announce

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Spacing between the announcements of one address. Kernels before 4.11
// ignore an update within a second of the one before (locktime, net/core/neighbour.c);
// the first may be lost, or come while the switch still learns.
const Spacing = 1100 * time.Millisecond

// Times is how often an address is announced.
const Times = 3

// Announcer announces addresses by gratuitous ARP. Announce may be called
// concurrently; Run is the one actor that repeats.
type Announcer struct {
	mu      sync.Mutex // a send binds the socket to its interface
	fd      int
	repeats chan announcement
	// spacing between announcements; a field so that tests needn't wait.
	spacing time.Duration
}

type announcement struct {
	parent string
	addr   netip.Addr
}

// backlog is how many announcements wait for Run; beyond that, an address is
// announced once only.
const backlog = 1024

// New returns an Announcer for the calling thread's network namespace. It
// needs CAP_NET_RAW.
func New() (*Announcer, error) {
	// Protocol 0: this socket receives nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("announce: open packet socket: %w", err)
	}
	return &Announcer{fd: fd, repeats: make(chan announcement, backlog), spacing: Spacing}, nil
}

// Close closes the socket; call it after Run has returned.
func (a *Announcer) Close() error { return unix.Close(a.fd) }

// Announce tells the neighbours on parent at once that addr is here, and lets
// Run do so again. It doesn't wait for them.
func (a *Announcer) Announce(parent string, addr netip.Addr) error {
	if err := a.send(parent, addr); err != nil {
		return fmt.Errorf("announce: %s on %s: %w", addr, parent, err)
	}
	select {
	case a.repeats <- announcement{parent, addr}:
	default:
	}
	return nil
}

// Run repeats announcements until ctx ends. A repetition that fails is left
// out: the parent may have gone.
func (a *Announcer) Run(ctx context.Context) error {
	type due struct {
		announcement
		at   time.Time
		left int
	}
	// All waits are equally long, so the queue is in order of time.
	var queue []due
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-a.repeats:
			queue = append(queue, due{r, time.Now().Add(a.spacing), Times - 1})
		case <-timer.C:
			for len(queue) > 0 && !queue[0].at.After(time.Now()) {
				d := queue[0]
				queue = queue[1:]
				_ = a.send(d.parent, d.addr)
				if d.left--; d.left > 0 {
					d.at = time.Now().Add(a.spacing)
					queue = append(queue, d)
				}
			}
		}
		if len(queue) > 0 {
			timer.Reset(time.Until(queue[0].at))
		}
	}
}

// send sends one announcement.
func (a *Announcer) send(parent string, addr netip.Addr) error {
	if !addr.Is4() {
		return errors.New("only IPv4 addresses can be announced")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	ifr, err := unix.NewIfreq(parent)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(a.fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return err
	}
	index := int(ifr.Uint32())
	// A bound packet socket knows its interface's kind and MAC, in the
	// namespace that the socket was made in.
	if err := unix.Bind(a.fd, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
		return err
	}
	name, err := unix.Getsockname(a.fd)
	if err != nil {
		return err
	}
	own, ok := name.(*unix.SockaddrLinklayer)
	if !ok || own.Hatype != unix.ARPHRD_ETHER {
		return nil // there are no neighbours on lo or a tunnel
	}
	everyone := unix.SockaddrLinklayer{
		Protocol: networkOrder(unix.ETH_P_ARP), Ifindex: index,
		Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	}
	return unix.Sendto(a.fd, gratuitousARP([6]byte(own.Addr[:6]), addr), 0, &everyone)
}

// gratuitousARP is an ARP request (RFC 826) for addr by its owner: the form
// that updates neighbour entries in any state at once. A reply to broadcast
// is ignored for the first second (measured on Linux neighbours).
func gratuitousARP(mac [6]byte, addr netip.Addr) []byte {
	p := make([]byte, 28)
	binary.BigEndian.PutUint16(p[0:], 1) // Ethernet
	binary.BigEndian.PutUint16(p[2:], unix.ETH_P_IP)
	p[4], p[5] = 6, 4
	binary.BigEndian.PutUint16(p[6:], 1) // request
	ip := addr.As4()
	copy(p[8:], mac[:])
	copy(p[14:], ip[:])
	copy(p[24:], ip[:])
	return p
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
