package driver

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/extip/extip/announce"
)

// A host whose lease has ended while it was cut off goes on answering for its
// addresses, until it hears on the wire that another host has them. So a host that
// gets one of them from the ledger, and hears it answered for by a member of the
// cluster, says so on the wire, and asks again.
const (
	challenges    = 3
	challengeWait = 200 * time.Millisecond
)

// contests tells whether a host that answers for an address is one of the
// cluster's that doesn't have it by the ledger.
func (d *Driver) contests(a netip.Addr, mac net.HardwareAddr) bool {
	return d.memberOf(mac) != "" && !d.isApart() && d.holder(a) == ""
}

// challenge has hosts of the cluster give up the addresses that they answer for
// and don't have by the ledger. It returns who still has which address, some two
// seconds later at most if there are such.
func (d *Driver) challenge(ctx context.Context, parent string, owners map[netip.Addr]net.HardwareAddr) map[netip.Addr]net.HardwareAddr {
	owners = maps.Clone(owners)
	for range challenges {
		var contested []netip.Addr
		for a, mac := range owners {
			if d.contests(a, mac) {
				contested = append(contested, a)
			}
		}
		if len(contested) == 0 {
			break
		}
		slices.SortFunc(contested, netip.Addr.Compare)
		for _, a := range contested {
			if err := d.kernel.Challenge(parent, a); err != nil {
				d.log.WithField("external", a).WithError(err).Warn("not challenged for")
			}
		}
		if !wait(ctx, challengeWait) {
			break
		}
		still, err := d.kernel.Probe(ctx, parent, contested, announce.Fast)
		if err != nil {
			break
		}
		for _, a := range contested {
			mac, taken := still[a]
			if taken {
				owners[a] = mac
				continue
			}
			d.log.WithField("external", a).Infof("host %s has given it up", d.memberOf(owners[a]))
			d.observer.TakenOver(a)
			delete(owners, a)
		}
	}
	return owners
}

// usedBy says who else answers for an address, as the end of a sentence about it.
func (d *Driver) usedBy(a netip.Addr, mac net.HardwareAddr) string {
	switch host := d.memberOf(mac); {
	case host == "":
		return "is used by " + mac.String()
	case d.contests(a, mac):
		return "is still answered for by host " + host + " (" + mac.String() + "), which has lost its claim: is its plugin dead? stop the host"
	default:
		return "is used by " + mac.String() + " (host " + host + ")"
	}
}

// usedOn is usedBy with where that was heard.
func (d *Driver) usedOn(a netip.Addr, mac net.HardwareAddr, parent string) string {
	if d.contests(a, mac) {
		return d.usedBy(a, mac)
	}
	return d.usedBy(a, mac) + " on the segment of " + parent
}
