package admintest

import (
	"net/netip"
	"time"

	"github.com/extip/extip/driver"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

// Ids of Example.
const (
	Web      = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9" // a network
	Shop     = "1f1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9" // another
	Endpoint = "2e1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
	Other    = "3e1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
	Third    = "4e1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
)

// Example is a plugin with something of everything: two networks, and
// containers web, mail and one with a long name, on one of two hosts.
func Example() *Plugin {
	addr := netip.MustParseAddr
	long := "production_frontend_reverse-proxy_1"
	return &Plugin{
		Nets: []driver.NetworkInfo{
			{ID: Web, Bridge: "xip-0a1b2c3d4e5", Parent: "br-ex", Gateways: []netip.Prefix{netip.MustParsePrefix("172.31.0.1/16")},
				Subnets: []netip.Prefix{netip.MustParsePrefix("172.31.0.0/16"), netip.MustParsePrefix("2001:db8:1::/64")},
				Pool:    "203.0.113.56-203.0.113.62,2001:db8::56-2001:db8::62", Size: 20, Free: 16, MTU: 1500, Auto: true, Source: "client", Egress: "external",
				DAD: "fast", Alias: "parent", Conflict: "keep", Limit: "none", ICC: true, Endpoints: 3, External: 4},
			{ID: Shop, Bridge: "xip-1f1b2c3d4e5", Parent: "eth1.100", Subnets: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16")},
				MTU: 1500, Source: "client", Egress: "external", DAD: "off", Alias: "none", Conflict: "keep", Limit: "none", ICC: true},
		},
		Has: []driver.Address{
			{External: addr("203.0.113.56"), Internal: addr("172.31.0.2"), Container: "web", Endpoint: Endpoint, Network: Web, Parent: "br-ex", On: "br-ex",
				State: driver.StatePublished, Source: "client", Egress: "external", Since: Now.Add(-26 * time.Hour),
				Counters: &nat.Counters{
					Incoming: 1234567, Outgoing: 89,
					Received: &nat.Traffic{Packets: 98765432, Bytes: 12345678901}, Sent: &nat.Traffic{Packets: 87654321, Bytes: 987654321098},
				}},
			{External: addr("203.0.113.57"), Internal: addr("172.31.0.3"), Container: "mail", Endpoint: Other, Network: Web, Parent: "br-ex", On: "br-ex",
				State: driver.StateWithheld, Reason: "it is used by 02:42:ac:1f:00:09", Reservation: "mail", Source: "gateway", Egress: "external",
				Ports: "tcp/25,tcp/587", Allow: "198.51.100.0/24", Refuse: "reject", Limit: "connections=20000,rate=500/s",
				Since: Now.Add(-5 * time.Minute), Conflicts: &driver.Clash{MAC: "02:42:ac:1f:00:09", Count: 2, Last: Now.Add(-40 * time.Second)},
				Counters: &nat.Counters{Refused: nat.Traffic{Packets: 7, Bytes: 420}, Incoming: 12, LimitedIn: 345, Received: &nat.Traffic{}, Sent: &nat.Traffic{}}},
			{External: addr("203.0.113.58"), Internal: addr("172.31.0.4"), Container: long, Endpoint: Third, Network: Web, Parent: "br-ex",
				State: driver.StatePublished, Source: "client", Egress: "host", Detour: true, Since: Now.Add(-72 * time.Hour)},
			{External: addr("2001:db8:0:ffff:203:113:56:58"), Internal: addr("2001:db8:1::1234:5678:9abc"), Container: long, Endpoint: Third, Network: Web,
				Parent: "br-ex", On: "br-ex", State: driver.StatePublished, Source: "client", Egress: "other", Since: Now.Add(-72 * time.Hour)},
		},
		Kept: []store.Reservation{
			{Name: "mail", Addresses: []netip.Addr{addr("203.0.113.57")}, Created: Now.Add(-50 * 24 * time.Hour)},
			{Name: "spare", Addresses: []netip.Addr{addr("203.0.113.61"), addr("2001:db8::61")}, Created: Now.Add(-time.Hour)},
		},
		Hosts: []driver.Member{
			{Name: "docker1", Own: true, Alive: true, Claims: 4, MACs: []string{"02:00:00:00:00:01"}, Version: "v1.2.3", TTL: 10, Seen: Now.Add(-3 * time.Hour)},
			{Name: "docker2", Claims: 0, MACs: []string{"02:00:00:00:00:02"}, TTL: 10, Seen: Now.Add(-2 * time.Minute)},
		},
	}
}
