package e2e

import (
	"cmp"

	"github.com/extip/extip/internal/nettest"
)

// connectParent gives the host its address on the interface that the options
// ask for.
func (l *lab) connectParent() {
	l.t.Helper()
	switch l.opts.parent {
	case "none":
		return
	case "eth0":
		l.parent = "eth0"
	case "", "bridge":
		l.parent = "br-ex"
		l.host.Bridge(l.parent)
		l.host.Run("ip", "link", "set", "eth0", "master", l.parent)
	case "ovs":
		l.parent = "br-ex"
		l.openVSwitch()
	default:
		l.t.Fatalf("no parent of the kind %q", l.opts.parent)
	}
	l.host.Run("ip", "link", "set", l.parent, "up")
	l.host.Run("ip", "addr", "add", cmp.Or(l.opts.address, hostAddr)+"/24", "dev", l.parent)
	l.host.Run("ip", "route", "add", "default", "via", outsideAddr)
	if l.opts.address == "" {
		l.host.Run("ip", "addr", "add", hostAddr6+"/64", "dev", l.parent, "nodad")
		l.host.Run("ip", "route", "add", "default", "via", outsideAddr6)
	}
}

// openVSwitch makes br-ex with Open vSwitch. The datapath is the one in user
// space, which needs no kernel module: the bridge's internal port, br-ex, is
// an interface like any other to the rest of the host.
func (l *lab) openVSwitch() {
	l.t.Helper()
	for _, tool := range []string{"ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ethtool"} {
		nettest.RequireTool(l.t, tool)
	}
	nettest.Require(l.t, exists("/dev/net/tun"), "/dev/net/tun")
	db := l.dir + "/ovs.db"
	l.must("ovsdb-tool", "create", db, "/usr/share/openvswitch/vswitch.ovsschema")
	const socket = "/run/openvswitch/db.sock"
	l.newDaemon("ovsdb-server", socket, "ovsdb-server", db, "--remote=punix:"+socket).start()
	l.must("ovs-vsctl", "--no-wait", "init")
	l.newDaemon("ovs-vswitchd", "/run/openvswitch/vswitchd.ctl", "ovs-vswitchd", "--unixctl=/run/openvswitch/vswitchd.ctl").start()
	l.must("ovs-vsctl", "add-br", l.parent, "--", "set", "bridge", l.parent, "datapath_type=netdev",
		"--", "add-port", l.parent, "eth0")
	// A frame between veths carries no checksum, which the user space
	// datapath passes on as it is. The sender must compute it.
	l.outside.Run("ethtool", "-K", "eth0", "tx", "off")
}
