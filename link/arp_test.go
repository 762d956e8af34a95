package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
	"golang.org/x/sys/unix"
)

// whoHas asks by ARP, from 192.0.2.9 on eth0, for an address and returns the MAC addresses that
// answer, sorted. It waits as long as it takes for those that are expected, then
// a while for more.
func whoHas(t *testing.T, n *nettest.Node, addr string, expected int) []string {
	t.Helper()
	var answers []string
	err := n.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		arp := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ARP >> 8, unix.ETH_P_ARP & 0xff})
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(arp))
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		to := &unix.SockaddrLinklayer{Protocol: arp, Ifindex: eth0.Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
		target := netip.MustParseAddr(addr).As4()
		// RFC 826: Ethernet, IPv4, lengths 6 and 4, request; sender and
		// target, whose MAC address isn't known.
		question := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, eth0.HardwareAddr...)
		question = append(append(question, 192, 0, 2, 9, 0, 0, 0, 0, 0, 0), target[:]...)
		if err := errors.Join(unix.Bind(fd, to), unix.Sendto(fd, question, 0, to)); err != nil {
			return err
		}
		deadline := time.Now().Add(time.Minute)
		if expected == 0 {
			deadline = time.Now().Add(150 * time.Millisecond)
		}
		for {
			left := time.Until(deadline)
			if left <= 0 {
				return nil
			}
			tv := unix.NsecToTimeval(left.Nanoseconds())
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
				return err
			}
			buf := make([]byte, 64)
			if n, _, err := unix.Recvfrom(fd, buf, 0); err != nil || n < 28 {
				continue
			}
			if reply := buf[7] == 2; reply && [4]byte(buf[14:18]) == target {
				if answers = append(answers, net.HardwareAddr(buf[8:14]).String()); len(answers) == expected {
					deadline = time.Now().Add(150 * time.Millisecond)
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(answers)
	return answers
}

// TestSettleARP: of two interfaces on a segment, only the parent answers for an
// external address, and only it asks under one.
func TestSettleARP(t *testing.T) {
	lan, node, h := newHost(t, "192.0.2.2/24")
	lan.Plug(node, "eth1", "192.0.2.3/25")
	lan.Plug(node, "eth2", "192.0.2.4/24")
	node.Sysctl("ipv4.conf.eth2.arp_ignore", "2")
	nettest.NamedSegment(t, "elsewhere").Plug(node, "eth3", "198.51.100.2/24")
	ours := bridge
	ours.Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.129/26")}
	do(t, node, func() error { return h.EnsureBridge(ours) }, func() error { return h.EnsureAlias("eth0", external) })
	mac := func(dev string) string { return device(node, dev).HardwareAddr.String() }
	witness := lan.Attach("witness", "192.0.2.9/24")
	// An answer from the external address that leaves by eth1.
	node.Run("ip", "route", "add", "192.0.2.9/32", "dev", "eth1")
	learned := func() string {
		witness.Run("ip", "neigh", "flush", "all")
		node.Run("ip", "neigh", "flush", "all")
		witness.Run("ip", "neigh", "replace", "192.0.2.56", "lladdr", mac("eth0"), "dev", "eth0", "nud", "stale")
		node.MustDo(func() error {
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: external.AsSlice()}, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 9})
			if err != nil {
				return err
			}
			_, err = c.Write([]byte("?"))
			return errors.Join(err, c.Close())
		})
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if strings.Contains(node.Run("ip", "neigh", "show", "192.0.2.9"), "lladdr") {
				break // eth1's question was answered
			}
		}
		return witness.Run("ip", "neigh", "show", "192.0.2.56")
	}
	if got := whoHas(t, witness, "192.0.2.56", 2); len(got) < 2 {
		t.Fatalf("without flux there is nothing to settle: %q", got)
	}
	if got := learned(); !strings.Contains(got, mac("eth1")) {
		t.Fatalf("without announcements there is nothing to settle: %s", got)
	}
	for i, want := range [][]string{{
		"net.ipv4.conf.eth1.arp_ignore=1", "net.ipv4.conf.eth1.arp_announce=2", "net.ipv4.conf.eth2.arp_announce=2",
	}, nil} {
		do(t, node, func() error {
			changed, err := h.SettleARP("eth0")
			if !slices.Equal(changed, want) {
				t.Errorf("call %d: changed %q, want %q", i+1, changed, want)
			}
			return err
		})
	}
	if got := whoHas(t, witness, "192.0.2.56", 1); !slices.Equal(got, []string{mac("eth0")}) {
		t.Errorf("answered by %q, want %s alone", got, mac("eth0"))
	}
	if got := learned(); !strings.Contains(got, mac("eth0")) {
		t.Errorf("the witness learned %s, not %s", got, mac("eth0"))
	}
	if _, err := h.SettleARP("eth9"); !errors.Is(err, ErrNoLink) {
		t.Errorf("a missing parent: %v", err)
	}
}

// TestARPTrouble: what is said of each value of arp_ignore is what neighbours
// find.
func TestARPTrouble(t *testing.T) {
	lan, node, h := newHost(t, "192.0.2.2/24")
	witness := lan.Attach("witness", "192.0.2.9/24")
	for _, on := range []string{"eth0", "lo"} {
		do(t, node, func() error { return h.EnsureAlias(on, external) })
		for _, level := range []string{"all", "eth0"} {
			for _, value := range []int{0, 1, 2, 3, 4, 8, 9} {
				node.Sysctl("ipv4.conf."+level+".arp_ignore", fmt.Sprint(value))
				do(t, node, func() error {
					why, err := h.ARPTrouble("eth0", on)
					expected := 1
					if why != "" {
						expected = 0
					}
					if got := len(whoHas(t, witness, "192.0.2.56", expected)); got != expected {
						t.Errorf("%s.arp_ignore=%d, alias on %s: %d answers, but it %q", level, value, on, got, why)
					}
					return err
				})
				node.Sysctl("ipv4.conf."+level+".arp_ignore", "0")
			}
		}
		do(t, node, func() error { return h.RemoveAlias(on, external) })
	}
	do(t, node, func() error {
		if _, err := h.ARPTrouble("eth9", "eth9"); !errors.Is(err, ErrNoLink) {
			t.Errorf("a missing parent: %v", err)
		}
		return nil
	})
}
