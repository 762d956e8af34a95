package link

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestWatch(t *testing.T) {
	_, node, h := newHost(t, "192.0.2.2/24")
	do(t, node,
		func() error { return h.EnsureBridge(bridge) },
		func() error { return h.EnsureVeth(web) },
		func() error { return h.EnsureAlias("eth0", external) },
	)
	var w *Watcher
	do(t, node, func() (err error) {
		w, err = h.Watch()
		return err
	})
	changes := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- w.Run(ctx, func(c Change) { changes <- fmt.Sprintf("%s %s %s", c.Kind, c.Link, c.Prefix) })
	}()
	none := netip.Prefix{}.String()
	for _, tt := range []struct {
		do   []string
		want string
	}{
		{[]string{"ip", "addr", "del", "192.0.2.56/32", "dev", "eth0"}, "address gone eth0 192.0.2.56/32"},
		{[]string{"ip", "route", "del", "172.31.0.0/16", "dev", bridge.Name}, "route gone  172.31.0.0/16"},
		{[]string{"ip", "link", "set", "eth0", "down"}, "link down eth0 " + none},
		{[]string{"ip", "link", "set", "eth0", "up"}, "link up eth0 " + none},
		{[]string{"ip", "link", "set", "xipe1", "nomaster"}, "port left its bridge xipe1 " + none},
		{[]string{"ip", "link", "del", "xipe1"}, "link gone xipe1 " + none},
		{[]string{"ip", "link", "del", bridge.Name}, "link gone " + bridge.Name + " " + none},
	} {
		node.Run(tt.do...)
		var heard []string
		for deadline := time.After(2 * time.Second); ; {
			select {
			case c := <-changes:
				if heard = append(heard, c); c != tt.want {
					continue
				}
			case <-deadline:
				t.Errorf("%v: heard %q, want %q", tt.do, heard, tt.want)
			}
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// What somebody took away is there again after an Ensure.
	do(t, node, func() error { return h.EnsureBridge(bridge) })
	before := node.Dump()
	node.Run("ip", "route", "del", "172.31.0.0/16", "dev", bridge.Name)
	node.Run("ip", "link", "set", bridge.Name, "down")
	node.Run("ip", "addr", "flush", "dev", bridge.Name)
	do(t, node, func() error { return h.EnsureBridge(bridge) })
	if after := node.Dump(); after != before {
		t.Errorf("repaired:\n%s\nwas:\n%s", after, before)
	}
	if ok, err := h.HasLink(bridge.Name); !ok || err != nil {
		t.Errorf("HasLink: %v, %v", ok, err)
	}
	if ok, err := h.HasLink("xipe1"); ok || err != nil {
		t.Errorf("HasLink of none: %v, %v", ok, err)
	}
}
