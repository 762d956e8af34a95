package nettest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Witness asks a segment who has an IPv4 address, again and again, as a neighbour
// does that has something for it, and keeps who answered which question.
type Witness struct {
	mu        sync.Mutex
	questions []Question
}

// A Question is when somebody asked, and whose MACs have answered before the next.
type Question struct {
	At   time.Time
	MACs []string
}

// Witness asks every so often, from an address of the node, until the test ends.
func (n *Node) Witness(dev string, from, a netip.Addr, every time.Duration) *Witness {
	n.t.Helper()
	w := &Witness{}
	var fd int
	var question []byte
	n.MustDo(func() error {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		question = Ethernet(Broadcast, i.HardwareAddr, unix.ETH_P_ARP, ARP(1, i.HardwareAddr, from, make(net.HardwareAddr, 6), a))
		if fd, err = packetSocket(dev, unix.ETH_P_ARP); err != nil {
			return err
		}
		tv := unix.NsecToTimeval(every.Nanoseconds() / 4)
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	})
	buf := make([]byte, 128)
	n.loop(fd, func() {
		q := Question{At: time.Now()}
		if _, err := unix.Write(fd, question); err == nil {
			for time.Since(q.At) < every {
				if size, err := unix.Read(fd, buf); err == nil {
					q.hear(buf[:size], a)
				}
			}
		}
		w.mu.Lock()
		w.questions = append(w.questions, q)
		w.mu.Unlock()
	})
	return w
}

// hear takes an answer about the address from a frame, if it is one.
func (q *Question) hear(frame []byte, a netip.Addr) {
	const header = 14
	if len(frame) < header+28 || binary.BigEndian.Uint16(frame[header+6:]) != 2 || !addrAt(frame[header+14:], a) {
		return
	}
	mac := net.HardwareAddr(frame[header+8 : header+14]).String()
	for _, known := range q.MACs {
		if known == mac {
			return
		}
	}
	q.MACs = append(q.MACs, mac)
}

func addrAt(b []byte, a netip.Addr) bool {
	there, _ := netip.AddrFromSlice(b[:4])
	return there == a
}

// Double is the longest time, since one, in which each question was answered by
// more than one; and how many there were in all.
func (w *Witness) Double(since time.Time) (longest time.Duration, questions int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var began time.Time
	for i, q := range w.questions {
		if q.At.Before(since) {
			continue
		}
		questions++
		if len(q.MACs) < 2 {
			began = time.Time{}
			continue
		}
		if began.IsZero() {
			began = q.At
		}
		end := time.Now()
		if i+1 < len(w.questions) {
			end = w.questions[i+1].At
		}
		longest = max(longest, end.Sub(began))
	}
	return longest, questions
}
