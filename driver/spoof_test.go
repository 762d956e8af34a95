package driver

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	api "github.com/docker/go-plugins-helpers/network"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/extip/extip/nat"
)

// TestGuardedEndpoints: what a container may send is what the engine gave it,
// also after the state file was lost; where spoofing is allowed, anything.
func TestGuardedEndpoints(t *testing.T) {
	for spoof, trusted := range map[string]bool{"deny": false, "allow": true} {
		t.Run(spoof, func(t *testing.T) {
			l := newLab(t)
			r := createNetwork(netID, 31, "extip.parent", "br-ex", "extip.spoof", spoof)
			r.IPv6Data = []*api.IPAMData{{AddressSpace: "LocalDefault", Pool: "2001:db8:31::/64", Gateway: "2001:db8:31::1/64"}}
			if err := l.CreateNetwork(r); err != nil {
				t.Fatal(err)
			}
			_, err := l.CreateEndpoint(&api.CreateEndpointRequest{
				NetworkID: netID, EndpointID: epID,
				Interface: &api.EndpointInterface{Address: "172.31.0.2/16", AddressIPv6: "2001:db8:31::2/64", MacAddress: "02:00:00:00:00:77"},
			})
			if err == nil {
				_, err = l.Join(&api.JoinRequest{NetworkID: netID, EndpointID: epID})
			}
			if err != nil {
				t.Fatal(err)
			}
			l.host.Take(vethName)
			want := nat.Port{
				Link: vethName, MAC: []byte{2, 0, 0, 0, 0, 0x77}, Trusted: trusted,
				Addresses: []netip.Addr{netip.MustParseAddr("172.31.0.2"), netip.MustParseAddr("2001:db8:31::2")},
			}
			check := func(when string) {
				t.Helper()
				got, _ := l.host.Guarded(vethName)
				if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
					t.Errorf("%s (-want +got):\n%s", when, diff)
				}
			}
			check("as the engine made it")
			l.host.Flush()
			if _, err := l.Reconcile("test"); err != nil {
				t.Error(err)
			}
			check("after a flush")
			if err := errors.Join(l.store.Close(), os.WriteFile(l.path, []byte("damaged"), 0o600)); err != nil {
				t.Fatal(err)
			}
			l.host.Flush()
			l.start()
			check("rebuilt")
			if err := errors.Join(l.rm(epID), l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID})); err != nil {
				t.Error(err)
			}
			l.clean()
		})
	}
}
