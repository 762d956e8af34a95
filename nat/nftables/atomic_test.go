package nftables

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// While tables are made anew, repaired and changed in a loop, and others
// change theirs, every new connection reaches its container.
func TestNoFlowGoesAstray(t *testing.T) {
	lan := nettest.NewSegment(t)
	host := lan.Attach("host", "192.0.2.2/24")
	cli := lan.Attach("cli", "192.0.2.9/24")
	host.Sysctl("ipv4.ip_forward", "1")
	host.Bridge("br1", "172.30.1.1/24")
	c1 := host.Container("c1", "br1", "172.30.1.2/24", "172.30.1.1")
	m := nattest.Map4(1, 1)
	host.Run("ip", "addr", "add", m.External.String()+"/32", "dev", "eth0", "scope", "host")
	cli.Run("ip", "route", "add", m.External.String(), "via", "192.0.2.2")
	host.Serve(80)
	c1.Serve(80)

	b, other := open(t, host, Config{}), open(t, host, Config{})
	st := nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: []nat.Mapping{m, nattest.Map6(1, 1)}}
	for i := 2; i < 200; i++ {
		st.Mappings = append(st.Mappings, nattest.Map4(1, i))
	}
	if _, err := b.Sync(st); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(time.Second)
	until := func(fn func() error) func() {
		return func() {
			rounds := 0
			for ; time.Now().Before(end); rounds++ {
				if err := fn(); err != nil {
					t.Errorf("round %d: %v", rounds, err)
					return
				}
			}
			t.Logf("%d rounds", rounds)
		}
	}
	var wg sync.WaitGroup
	wg.Go(until(func() error { return reapply(b) }))
	wg.Go(until(func() error { return other.kernel.probe(0, someState()) }))
	flows := 0
	err := cli.Do(func() error {
		for ; time.Now().Before(end); flows++ {
			if got := ask(m.External.String() + ":80"); got != "c1 saw 192.0.2.9" {
				return fmt.Errorf("flow %d: %s", flows, got)
			}
		}
		return nil
	})
	wg.Wait()
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d flows", flows)
}

// reapply makes the tables anew, has them repaired, and changes what the flows
// don't need.
func reapply(b *Backend) error {
	bt := newBatch()
	for _, f := range families() {
		want := b.model.whole(f)
		f.diff(bt, &table{strange: "test"}, want)
	}
	if err := b.kernel.commit(bt); err != nil {
		return err
	}
	b.agreed = false
	if repaired, err := b.Repair(); err != nil || len(repaired) > 0 {
		return fmt.Errorf("repaired %q, %w", repaired, err)
	}
	marked := nattest.Net(1)
	marked.Mark = 7
	for _, step := range []func() error{
		func() error { return b.AddNetwork(marked) },
		func() error { return b.AddNetwork(nattest.Net(2)) },
		func() error { return b.Add(nattest.Map4(2, 201)) },
		func() error { return b.Remove(nattest.Map4(2, 201)) },
		func() error { return b.RemoveNetwork(nattest.Net(2)) },
		func() error { return b.AddNetwork(nattest.Net(1)) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// ask opens one flow, from a port of its own, and returns the answer. It asks
// again if none comes: a packet between the old and the new chains of a table
// made anew, at the very instant, is dropped.
func ask(addr string) string {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = c.Close() }()
	answer := make([]byte, 100)
	for range 60 {
		if err = c.SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			break
		}
		if _, err = c.Write([]byte("?")); err != nil {
			break
		}
		var n int
		if n, err = c.Read(answer); err == nil {
			return string(answer[:n])
		}
	}
	return err.Error()
}
