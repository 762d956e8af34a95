package link

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nettest"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// udp is a flow as it is before it is tracked: from a client to an address
// that was connected to, answered by another if that was translated.
func udp(client, to, answers string, port uint16) *netlink.ConntrackFlow {
	ip := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
	f := &netlink.ConntrackFlow{
		FamilyType: unix.AF_INET, TimeOut: 3600,
		Forward: netlink.IPTuple{SrcIP: ip(client), DstIP: ip(to), SrcPort: port, DstPort: 53, Protocol: unix.IPPROTO_UDP},
		Reverse: netlink.IPTuple{SrcIP: ip(answers), DstIP: ip(client), SrcPort: 53, DstPort: port, Protocol: unix.IPPROTO_UDP},
	}
	if strings.Contains(client, ":") {
		f.FamilyType = unix.AF_INET6
	}
	return f
}

// track adds flows to the node's table.
func track(t testing.TB, node *nettest.Node, flows ...*netlink.ConntrackFlow) {
	t.Helper()
	node.MustDo(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer h.Close()
		for _, f := range flows {
			if err := h.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(f.FamilyType), f); err != nil {
				return fmt.Errorf("%v: %w", f, err)
			}
		}
		return nil
	})
}

// tracked is the node's table: client, address connected to, who answers.
func tracked(t testing.TB, h *Host) []string {
	t.Helper()
	var all []string
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := h.dump(family, nil, func(f flow) {
			all = append(all, fmt.Sprint(f.addrs[origSrc], " ", f.addrs[origDst], " ", f.addrs[replySrc]))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(all)
	return all
}

func TestForgetWays(t *testing.T) {
	for i, f := range []struct {
		peer, external, container, other, sibling string
	}{
		{"198.51.100.1", "192.0.2.56", "172.31.0.2", "192.0.2.57", "172.31.0.3"},
		{"2001:db8:1::1", "2001:db8::56", "fd00::2", "2001:db8::57", "fd00::3"},
	} {
		for w := unproven; w <= deleteAtOnce; w++ {
			t.Run(fmt.Sprintf("%s/way=%d", f.external, w), func(t *testing.T) {
				_, node, h := newHost(t)
				others := func() {
					track(t, node,
						udp(f.peer, f.other, f.other, 1), udp(f.peer, f.other, f.sibling, 2), udp(f.sibling, f.peer, f.peer, 3))
				}
				others()
				stay := tracked(t, h)
				// The kernel's filter may be no good for this family.
				if err := h.Forget(Flows{External: parse(f.external)}); err != nil {
					t.Fatal(err)
				}
				if best := way(h.ways[i].Load()); w > best {
					t.Skipf("this kernel's best way is %d", best)
				}
				h.ways[i].Store(int32(w))
				gone := []*netlink.ConntrackFlow{
					udp(f.peer, f.external, f.external, 4), // answered by the host itself
					udp(f.peer, f.external, f.sibling, 5),  // by who had the address before
					udp(f.peer, f.other, f.container, 6),   // by the container, for another address
					udp(f.container, f.peer, f.peer, 7),
				}
				track(t, node, gone...)
				if got := tracked(t, h); len(got) != len(stay)+len(gone) {
					t.Fatalf("tracked: %q", got)
				}
				for _, addrs := range [][]netip.Addr{{}, {{}}, parse("203.0.113.1", "2001:db8:9::9")} {
					if err := h.Forget(Flows{External: addrs, Internal: addrs}); err != nil {
						t.Errorf("forget %v: %v", addrs, err)
					}
					if got := tracked(t, h); len(got) != len(stay)+len(gone) {
						t.Errorf("forgetting %v leaves %q", addrs, got)
					}
				}
				for range 2 {
					if err := h.Forget(Flows{External: parse(f.external), Internal: parse(f.container)}); err != nil {
						t.Error(err)
					}
					if diff := cmp.Diff(stay, tracked(t, h)); diff != "" {
						t.Errorf("left (-want +got):\n%s", diff)
					}
				}
				// As many as there may be after a reboot, by the one way for that.
				many := Flows{External: parse(f.external), Internal: parse(f.container)}
				for a := netip.MustParseAddr("203.0.113.1"); len(many.External) < 1000; a = a.Next() {
					many.External = append(many.External, a)
				}
				track(t, node, gone...)
				if err := h.Forget(many); err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff(stay, tracked(t, h)); diff != "" {
					t.Errorf("left of many (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestForgetPairs: of a container that has two addresses, the flows of one go, in
// either direction, and none of the other's, nor of whoever has the address now.
func TestForgetPairs(t *testing.T) {
	for i, f := range []struct {
		peer, external, container, other, sibling string
	}{
		{"198.51.100.1", "192.0.2.56", "172.31.0.2", "192.0.2.57", "172.31.0.3"},
		{"2001:db8:1::1", "2001:db8::56", "fd00::2", "2001:db8::57", "fd00::3"},
	} {
		for w := unproven; w <= deleteAtOnce; w++ {
			t.Run(fmt.Sprintf("%s/way=%d", f.external, w), func(t *testing.T) {
				_, node, h := newHost(t)
				// out is a connection of a container, by an external address.
				out := func(from, by string, port uint16) *netlink.ConntrackFlow {
					c := udp(from, f.peer, f.peer, port)
					c.Reverse.DstIP = netip.MustParseAddr(by).AsSlice()
					return c
				}
				track(t, node,
					udp(f.peer, f.external, f.sibling, 1), udp(f.peer, f.other, f.container, 2),
					out(f.container, f.other, 3), out(f.sibling, f.external, 4))
				stay := tracked(t, h)
				if err := h.Forget(Flows{External: parse("203.0.113.1", "2001:db8:9::9")}); err != nil {
					t.Fatal(err)
				}
				if best := way(h.ways[i].Load()); w > best {
					t.Skipf("this kernel's best way is %d", best)
				}
				h.ways[i].Store(int32(w))
				track(t, node, udp(f.peer, f.external, f.container, 5), udp(f.peer, f.external, f.container, 6), out(f.container, f.external, 7))
				pair := Pair{netip.MustParseAddr(f.external), netip.MustParseAddr(f.container)}
				unused := Pair{pair.External, netip.MustParseAddr(f.other)}
				left, err := h.Remaining([]Pair{pair, unused})
				if diff := cmp.Diff(map[Pair]int{pair: 3}, left, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || err != nil {
					t.Errorf("remaining (-want +got):\n%s, %v", diff, err)
				}
				for range 2 {
					if err := h.Forget(Flows{Pairs: []Pair{pair, unused}}); err != nil {
						t.Error(err)
					}
					if diff := cmp.Diff(stay, tracked(t, h)); diff != "" {
						t.Errorf("left (-want +got):\n%s", diff)
					}
				}
				if left, err := h.Remaining([]Pair{pair}); len(left) > 0 || err != nil {
					t.Errorf("remaining: %v, %v", left, err)
				}
			})
		}
	}
}

// TestCount: what was opened to an address and by one is counted, and what has
// ended apart.
func TestCount(t *testing.T) {
	_, node, h := newHost(t)
	out := udp("172.31.0.2", "198.51.100.1", "198.51.100.1", 3)
	out.Reverse.DstIP = netip.MustParseAddr("192.0.2.56").AsSlice()
	tcp := func(state uint8, port uint16) *netlink.ConntrackFlow {
		f := udp("2001:db8:1::1", "2001:db8::56", "fd00::2", port)
		f.Forward.Protocol, f.Reverse.Protocol = unix.IPPROTO_TCP, unix.IPPROTO_TCP
		f.ProtoInfo = &netlink.ProtoInfoTCP{State: state}
		return f
	}
	track(t, node, udp("198.51.100.1", "192.0.2.56", "172.31.0.2", 1), udp("198.51.100.1", "192.0.2.56", "172.31.0.2", 2),
		udp("198.51.100.1", "192.0.2.57", "172.31.0.3", 1), out, tcp(nl.TCP_CONNTRACK_ESTABLISHED, 1), tcp(nl.TCP_CONNTRACK_TIME_WAIT, 2), tcp(nl.TCP_CONNTRACK_CLOSE, 3))
	got, err := h.Count(Flows{External: parse("192.0.2.56", "2001:db8::56", "192.0.2.58"), Internal: parse("172.31.0.2", "fd00::2")})
	want := map[netip.Addr]FlowCount{}
	for a, n := range map[string]FlowCount{"192.0.2.56": {2, 2}, "172.31.0.2": {1, 1}, "2001:db8::56": {3, 1}} {
		want[netip.MustParseAddr(a)] = n
	}
	if !maps.Equal(got, want) || err != nil {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func parse(addrs ...string) []netip.Addr {
	var all []netip.Addr
	for _, a := range addrs {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

// TestFilterIsProved: nothing is left to the kernel's filter before it has
// found a flow, and what it is trusted with then, it does.
func TestFilterIsProved(t *testing.T) {
	_, node, h := newHost(t)
	external := parse("192.0.2.56", "2001:db8::56")
	if err := h.Forget(Flows{External: external}); err != nil || h.ways[0].Load() != int32(unproven) || h.ways[1].Load() != int32(unproven) {
		t.Errorf("empty table: %v, ways %d and %d", err, h.ways[0].Load(), h.ways[1].Load())
	}
	track(t, node,
		udp("198.51.100.1", "192.0.2.57", "172.31.0.3", 1), udp("198.51.100.2", "192.0.2.58", "172.31.0.4", 1),
		udp("2001:db8:1::1", "2001:db8::57", "fd00::3", 1), udp("2001:db8:1::2", "2001:db8::58", "fd00::4", 1))
	if err := h.Forget(Flows{External: external}); err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct {
		family uint8
		want   string
		fields [fields]string
	}{
		{unix.AF_INET, "198.51.100.1", [fields]string{"", "192.0.2.57", "198.51.100.1", "172.31.0.3", "198.51.100.1"}},
		{unix.AF_INET6, "2001:db8:1::1", [fields]string{"", "2001:db8::57", "2001:db8:1::1", "fd00::3", "2001:db8:1::1"}},
	} {
		right := true
		for f := none + 1; f < fields; f++ {
			var got []string
			err := h.dump(tt.family, search{field: f, addr: netip.MustParseAddr(tt.fields[f])}.filter(), func(f flow) {
				got = append(got, f.addrs[origSrc].String())
			})
			right = right && err == nil && slices.Equal(got, []string{tt.want})
		}
		w := way(h.ways[i].Load())
		t.Logf("family %d: right %v, way %d", tt.family, right, w)
		if right != (w >= readFiltered) {
			t.Errorf("family %d: a filter that is right (%v) leads to way %d", tt.family, right, w)
		}
	}
}

// TestWithoutFilter: a kernel that ignores the filter of a delete request takes
// it for the name of a flow, and a wrong one; it deletes nothing.
func TestWithoutFilter(t *testing.T) {
	_, node, h := newHost(t)
	track(t, node, udp("198.51.100.1", "192.0.2.56", "172.31.0.2", 1), udp("2001:db8:1::1", "2001:db8::56", "fd00::2", 1))
	before := tracked(t, h)
	for f := none + 1; f < fields; f++ {
		for family, addr := range map[uint8]string{unix.AF_INET: "192.0.2.56", unix.AF_INET6: "2001:db8::56"} {
			tuple := search{field: f, addr: netip.MustParseAddr(addr)}.filter()[0]
			_, err := h.request(family, nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, tuple).Execute(unix.NETLINK_NETFILTER, 0)
			if !unsupported(err) {
				t.Errorf("field %d of %s: %v", f, addr, err)
			}
		}
	}
	if diff := cmp.Diff(before, tracked(t, h)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	// A refusal is remembered. No kernel filters flows of bridges.
	h.ways[0].Store(int32(deleteAtOnce))
	if err := h.forget(unix.AF_BRIDGE, Flows{External: parse("192.0.2.56")}.searches(unix.AF_INET)); h.ways[0].Load() != int32(readFiltered) {
		t.Errorf("refused: %v, way %d", err, h.ways[0].Load())
	}
}

func TestFlowGoesMeanwhile(t *testing.T) {
	_, node, h := newHost(t)
	track(t, node, udp("198.51.100.1", "192.0.2.56", "172.31.0.2", 1))
	var key []byte
	if err := h.dump(unix.AF_INET, nil, func(f flow) { key = f.key() }); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if there, err := h.tracked(unix.AF_INET, key); there != want || err != nil {
			t.Errorf("tracked: %v, %v", there, err)
		}
		if err := h.delete(unix.AF_INET, key); err != nil {
			t.Error(err)
		}
	}
}

func FuzzParseFlow(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 8, 0, 1, 128, 4, 0, 1, 128})
	f.Fuzz(func(t *testing.T, data []byte) {
		if got, err := parseFlow(data); err == nil {
			got.key()
		}
	})
}
