package driver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	api "github.com/docker/go-plugins-helpers/network"

	"github.com/extip/extip/announce"
	"github.com/extip/extip/link"
	"github.com/extip/extip/store"
)

var (
	stranger = net.HardwareAddr{2, 0, 0, 0, 0, 0x99}
	a56      = netip.MustParseAddr("203.0.113.56")
	a57      = netip.MustParseAddr("203.0.113.57")
)

// dual makes a network of both families.
func (l *lab) dual(kv ...string) {
	l.t.Helper()
	r := createNetwork(netID, 31, append(kv, "extip.parent", "br-ex")...)
	r.IPv6Data = []*api.IPAMData{{AddressSpace: "LocalDefault", Pool: "2001:db8:31::/64", Gateway: "2001:db8:31::1/64"}}
	if err := l.CreateNetwork(r); err != nil {
		l.t.Fatal(err)
	}
}

// start6 starts an endpoint with addresses of both families, and returns what
// the engine is told of it.
func (l *lab) start6(id, v4, v6 string, kv ...string) (*api.JoinResponse, error) {
	opts := map[string]any{}
	for i := 0; i < len(kv); i += 2 {
		opts[kv[i]] = kv[i+1]
	}
	_, err := l.CreateEndpoint(&api.CreateEndpointRequest{
		NetworkID: netID, EndpointID: id, Interface: &api.EndpointInterface{Address: v4, AddressIPv6: v6}, Options: opts,
	})
	if err != nil {
		return nil, err
	}
	return l.Join(&api.JoinRequest{NetworkID: netID, EndpointID: id})
}

func (l *lab) info(id string) map[string]string {
	l.t.Helper()
	info, err := l.EndpointInfo(&api.InfoRequest{NetworkID: netID, EndpointID: id})
	if err != nil {
		l.t.Fatal(err)
	}
	return info.Value
}

func TestDualStack(t *testing.T) {
	l := newLab(t)
	l.dual("extip.pool", "203.0.113.56-203.0.113.58,2001:db8::56-2001:db8::58")
	answer, err := l.start6("e1", "172.31.0.2/16", "2001:db8:31::2/64")
	if err != nil || answer.Gateway != "172.31.0.1" || answer.GatewayIPv6 != "2001:db8:31::1" {
		t.Errorf("joined: %+v, %v", answer, err)
	}
	if _, err := l.start6("e2", "172.31.0.3/16", "2001:db8:31::3/64", "extip.address", "2001:db8::60,203.0.113.60,203.0.113.61"); err != nil {
		t.Error(err)
	}
	if _, err := l.start6("e3", "", "2001:db8:31::4/64"); err != nil {
		t.Error(err)
	}
	for id, want := range map[string]string{"e1": "203.0.113.56,2001:db8::56", "e2": "2001:db8::60,203.0.113.60,203.0.113.61", "e3": "2001:db8::57"} {
		if got := l.info(id)["extip.external"]; got != want {
			t.Errorf("%s has %s, want %s", id, got, want)
		}
	}
	machine := l.host.String()
	for _, want := range []string{
		"addr 2001:db8::56/128 on br-ex", "nat 2001:db8::56 <-> 2001:db8:31::2", "nat 203.0.113.61 <-> 172.31.0.3", "nat 2001:db8::57 <-> 2001:db8:31::4",
	} {
		if !strings.Contains(machine, want) {
			t.Errorf("no %q in\n%s", want, machine)
		}
	}
	l.restart()
	if got := l.host.String(); got != machine {
		t.Errorf("after a restart:\n%s\nwas\n%s", got, machine)
	}
}

// TestForeignOwner: an address that somebody else has is refused where it was
// asked for, passed over where it was not, and nothing is left of the refusal.
func TestForeignOwner(t *testing.T) {
	l := newLab(t)
	l.host.Others = map[netip.Addr]net.HardwareAddr{a56: stranger}
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.58")
	machine, records := l.host.String(), l.recorded()
	for _, kv := range [][]string{{"extip.address", "203.0.113.56"}, {"extip.address", "203.0.113.57,203.0.113.56", "extip.reservation", "mail"}} {
		err := l.run(epID, "172.31.0.2/16", kv...)
		if err == nil || !strings.Contains(err.Error(), "203.0.113.56") || !strings.Contains(err.Error(), stranger.String()) {
			t.Errorf("%q: %v", kv, err)
		}
		// Engines since 29 send both.
		if err := errors.Join(
			l.Leave(&api.LeaveRequest{NetworkID: netID, EndpointID: epID}),
			l.DeleteEndpoint(&api.DeleteEndpointRequest{NetworkID: netID, EndpointID: epID}),
		); err != nil {
			t.Error(err)
		}
		if got := l.host.String(); got != machine {
			t.Errorf("the refusal leaves\n%s", got)
		}
	}
	if got := l.recorded(); got != records {
		t.Errorf("the refusal leaves on record\n%s", got)
	}
	if err := l.run("e1", "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	if got := l.info("e1")["extip.external"]; got != "203.0.113.57" {
		t.Errorf("of the pool: %s", got)
	}
	if got := l.host.String(); !strings.Contains(got, "203.0.113.57 <->") || strings.Contains(got, "203.0.113.56 <->") {
		t.Errorf("machine\n%s", got)
	}
	// Nobody has to find that out twice.
	if err := l.run("e2", "172.31.0.3/16"); err != nil {
		t.Fatal(err)
	}
	if got := l.info("e2")["extip.external"]; got != "203.0.113.58" {
		t.Errorf("the next one: %s", got)
	}
	if err := l.run("e3", "172.31.0.4/16"); !strings.Contains(fmt.Sprint(err), "203.0.113.56 is used by "+stranger.String()) {
		t.Errorf("then: %v", err)
	}
}

// TestProbedAhead: who asks for no address waits for no probe, nor does who
// gets one that was ours until now.
func TestProbedAhead(t *testing.T) {
	l := newLab(t)
	l.host.Others = map[netip.Addr]net.HardwareAddr{a57: stranger}
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.90")
	l.tendAll(t.Context())
	if got := l.host.Probed(); len(got) != aheadOf+1 {
		t.Errorf("probed ahead: %v, want %d and one in place of %s", got, aheadOf, a57)
	}
	if w := l.host.Watched(); len(w) != aheadOf || w[a57] != "" {
		t.Errorf("listened to: %v", w)
	}
	for i, want := range []string{"203.0.113.56", "203.0.113.58", "203.0.113.59"} {
		id := fmt.Sprint("e", i)
		if err := l.run(id, fmt.Sprintf("172.31.0.%d/16", i+2)); err != nil {
			t.Fatal(err)
		}
		if got := l.info(id)["extip.external"]; got != want {
			t.Errorf("%s has %s, want %s", id, got, want)
		}
	}
	if got := l.host.Probed(); len(got) > 0 {
		t.Errorf("waited for %v", got)
	}
	l.tendAll(t.Context())
	if got := l.host.Probed(); len(got) != 3 {
		t.Errorf("in place of three: %v", got)
	}
	if err := l.rm("e0"); err != nil {
		t.Fatal(err)
	}
	if err := l.run("again", "172.31.0.9/16", "extip.address", "203.0.113.56"); err != nil {
		t.Fatal(err)
	}
	if got := l.host.Probed(); len(got) > 0 {
		t.Errorf("ours until now, and waited for %v", got)
	}
	// One that is taken meanwhile is handed out no more.
	l.Conflict(announce.Conflict{Parent: "br-ex", Address: netip.MustParseAddr("203.0.113.60"), MAC: stranger})
	if err := l.run("next", "172.31.0.10/16"); err != nil {
		t.Fatal(err)
	}
	if got := l.info("next")["extip.external"]; got != "203.0.113.61" {
		t.Errorf("next: %s", got)
	}
	if err := l.CreateNetwork(createNetwork("off", 30, "extip.parent", "br-ex", "extip.pool", "203.0.113.100-203.0.113.110", "extip.dad", "off")); err != nil {
		t.Fatal(err)
	}
	l.host.Probed()
	l.tendAll(t.Context())
	if got := l.host.Probed(); slices.ContainsFunc(got, func(a string) bool { return strings.HasPrefix(a, "203.0.113.10") }) {
		t.Errorf("without extip.dad: %v", got)
	}
}

// TestWithheld: a parent that is missing is waited for, and then its addresses
// are asked for again.
func TestWithheld(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.58")
	l.host.Unplugged = map[string]bool{"br-ex": true}
	if err := l.run(epID, "172.31.0.2/16"); err != nil {
		t.Fatalf("without its parent: %v", err)
	}
	if got := l.info(epID); got["extip.withheld.203.0.113.56"] == "" || strings.Contains(l.host.String(), "addr 203.0.113.56") {
		t.Errorf("without its parent: %v\n%s", got, l.host)
	}
	for range 2 {
		if _, err := l.Reconcile("test"); err != nil {
			t.Error(err)
		}
		l.tendAll(t.Context())
		l.restart()
	}
	if strings.Contains(l.host.String(), "addr 203.0.113.56") {
		t.Errorf("still without its parent:\n%s", l.host)
	}
	l.host.Unplugged = nil
	l.host.Others = map[netip.Addr]net.HardwareAddr{a56: stranger}
	l.tendAll(t.Context())
	if got := l.info(epID); !strings.Contains(got["extip.withheld.203.0.113.56"], stranger.String()) {
		t.Errorf("somebody else has taken it: %v", got)
	}
	l.host.Others = nil
	l.tendAll(t.Context())
	if got := l.info(epID); got["extip.withheld.203.0.113.56"] != "" || !strings.Contains(l.host.String(), "addr 203.0.113.56/32 on br-ex") {
		t.Errorf("at last: %v\n%s", got, l.host)
	}
	if len(l.waiting) > 0 {
		t.Error("something is still waited for")
	}
}

func TestConflict(t *testing.T) {
	for _, policy := range []string{"keep", "yield"} {
		l := newLab(t)
		l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.58", "extip.conflict", policy)
		if err := l.run(epID, "172.31.0.2/16"); err != nil {
			t.Fatal(err)
		}
		machine := l.host.String()
		l.restart()
		if got := l.host.Watched(); got[a56] != "br-ex" {
			t.Errorf("%s: defended after a restart: %v", policy, got)
		}
		conflict := announce.Conflict{Parent: "br-ex", Address: a56, MAC: stranger, Defended: true}
		l.Conflict(conflict)
		if got := l.host.String(); got != machine {
			t.Errorf("%s: once told\n%s", policy, got)
		}
		l.host.Others = map[netip.Addr]net.HardwareAddr{a56: stranger}
		conflict.Defended = false
		l.Conflict(conflict)
		if got := strings.Contains(l.host.String(), "addr 203.0.113.56"); got != (policy == "keep") {
			t.Errorf("%s: told twice\n%s", policy, l.host)
		}
		if got := l.segments.conflicts[a56]; got.Count != 2 || got.MAC != stranger.String() {
			t.Errorf("%s: counted %+v", policy, got)
		}
		l.tendAll(t.Context())
		if lines, err := l.Reconcile("test"); len(lines) > 0 || err != nil {
			t.Errorf("%s: reconciled %q, %v", policy, lines, err)
		}
		l.host.Others = nil
		l.tendAll(t.Context())
		if got := l.host.String(); got != machine {
			t.Errorf("%s: when the other is gone\n%s\nwas\n%s", policy, got, machine)
		}
		if err := l.rm(epID); err != nil {
			t.Error(err)
		}
	}
}

// TestReservation: a name keeps its address through containers and networks.
func TestReservation(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.58")
	mail := []string{"extip.reservation", "mail"}
	if err := errors.Join(l.run("e1", "172.31.0.2/16", mail...), l.run("e2", "172.31.0.3/16"), l.rm("e1")); err != nil {
		t.Fatal(err)
	}
	l.restart()
	if err := l.run("e3", "172.31.0.4/16"); err != nil {
		t.Fatal(err)
	}
	for want, kv := range map[string][]string{
		"3 addresses are in use by e2, e3, 1 reserved as mail": nil,
		"is reserved as \"mail\"; give extip.reservation=mail": {"extip.address", "203.0.113.56"},
		"a reservation's name is":                              {"extip.reservation", "a b"},
		"there is no external address to keep":                 {"extip.reservation", "x", "extip.address", "none"},
	} {
		if err := l.run("bad", "172.31.0.9/16", kv...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", kv, err, want)
		}
	}
	if err := errors.Join(l.rm("e2"), l.rm("e3"), l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID})); err != nil {
		t.Fatal(err)
	}
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.58", "extip.auto", "false")
	if err := errors.Join(l.run("e4", "172.31.0.9/16"), l.run("e5", "172.31.0.7/16", mail...)); err != nil {
		t.Fatal(err)
	}
	if got := l.info("e5"); got["extip.external"] != "203.0.113.56" || got["extip.reservation"] != "mail" {
		t.Errorf("in a new network: %v", got)
	}
	if err := errors.Join(l.rm("e5"), l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID})); err != nil {
		t.Fatal(err)
	}
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.80-203.0.113.90")
	if err := l.run("e6", "172.31.0.2/16", mail...); !strings.Contains(fmt.Sprint(err), "extip.reservation=mail: 203.0.113.56 is not in the network's extip.pool") {
		t.Errorf("another pool: %v", err)
	}
	if err := l.run("e7", "172.31.0.2/16", "extip.reservation", "mail", "extip.address", "203.0.113.88"); err != nil {
		t.Errorf("moved: %v", err)
	}
}

// TestParentLo: what is put on lo leaves by the default route, so that its MTU
// is the containers'.
func TestParentLo(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "lo", "extip.pool", "203.0.113.56-203.0.113.58")
	if err := l.run(epID, "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	if machine := l.host.String(); strings.Count(machine, "mtu 1500") != 2 || !strings.Contains(machine, "addr 203.0.113.56/32 on lo") {
		t.Errorf("the machine is:\n%s", machine)
	}
}

func TestAliasPlaces(t *testing.T) {
	for where, want := range map[string]string{"parent": "addr 203.0.113.56/32 on br-ex", "lo": "addr 203.0.113.56/32 on lo", "none": ""} {
		l := newLab(t)
		l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.58", "extip.alias", where)
		if err := l.run(epID, "172.31.0.2/16"); err != nil {
			t.Fatal(err)
		}
		machine := l.host.String()
		if strings.Contains(machine, "addr ") != (want != "") || !strings.Contains(machine, want) || !strings.Contains(machine, "nat 203.0.113.56 <->") {
			t.Errorf("%s:\n%s", where, machine)
		}
		if got := len(l.host.Probed()) + len(l.host.Announced()); (got == 0) != (where == "none") {
			t.Errorf("%s: %d probes and announcements", where, got)
		}
		if lines, err := l.Reconcile("test"); len(lines) > 0 || err != nil {
			t.Errorf("%s: reconciled %q, %v", where, lines, err)
		}
		l.restart()
		if got := l.host.String(); got != machine {
			t.Errorf("%s: after a restart\n%s", where, got)
		}
		if err := errors.Join(l.rm(epID), l.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: netID})); err != nil {
			t.Error(err)
		}
		l.clean()
	}
}

// TestDetour: where another network holds the container's default route, the
// container sees its bridge as the client, and sees its clients again after.
func TestDetour(t *testing.T) {
	l := newLab(t)
	l.network("extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.58")
	program := func() {
		t.Helper()
		if err := l.ProgramExternalConnectivity(&api.ProgramExternalConnectivityRequest{NetworkID: netID, EndpointID: epID}); err != nil {
			t.Fatal(err)
		}
	}
	hidden := func(what string, want bool) {
		t.Helper()
		if len(l.detours) == 0 && want {
			t.Errorf("%s: nothing is to be looked at", what)
		}
		for len(l.detours) > 0 {
			l.detour((<-l.detours).endpoint)
		}
		e := l.endpoints[epID].rec
		if e.Detour != want || strings.Contains(l.host.String(), "gateway") != want {
			t.Errorf("%s: detour %t\n%s", what, e.Detour, l.host)
		}
		if stored, err := l.store.Endpoints(); err != nil || stored[0].Detour != want {
			t.Errorf("%s: on record %v, %v", what, stored, err)
		}
	}
	if err := l.endpoint(epID, "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Join(&api.JoinRequest{NetworkID: netID, EndpointID: epID}); err != nil {
		t.Fatal(err)
	}
	hidden("joined only", true)
	l.restart()
	if !strings.Contains(l.host.String(), "gateway") {
		t.Errorf("after a restart:\n%s", l.host)
	}
	program()
	hidden("programmed", false)
	if err := l.RevokeExternalConnectivity(&api.RevokeExternalConnectivityRequest{NetworkID: netID, EndpointID: epID}); err != nil {
		t.Fatal(err)
	}
	program()
	hidden("revoked and programmed", false)
	if err := l.RevokeExternalConnectivity(&api.RevokeExternalConnectivityRequest{NetworkID: netID, EndpointID: epID}); err != nil {
		t.Fatal(err)
	}
	hidden("revoked", true)
	program()
	if err := l.rm(epID); err != nil {
		t.Fatal(err)
	}
	for len(l.detours) > 0 {
		l.detour((<-l.detours).endpoint)
	}
	if state := store.Plumbed; strings.Contains(l.host.String(), "nat 203") {
		t.Errorf("left: %s %s", state, l.host)
	}
}

// TestFollows: a parent that nobody named is that of the default route, also
// when it goes elsewhere.
func TestFollows(t *testing.T) {
	l := newLab(t)
	l.network("extip.pool", "203.0.113.56-203.0.113.58")
	if err := l.CreateNetwork(createNetwork("named", 30, "extip.parent", "eth0")); err != nil {
		t.Fatal(err)
	}
	if err := l.run(epID, "172.31.0.2/16"); err != nil {
		t.Fatal(err)
	}
	l.host.Unplugged = map[string]bool{"eth0": true}
	l.host.Others = map[netip.Addr]net.HardwareAddr{a56: stranger}
	l.NetworkChanged(link.Change{Kind: link.DefaultRoute})
	if len(l.hints) == 0 {
		t.Error("nothing is looked at")
	}
	for range 2 {
		if _, err := l.Reconcile("test"); err != nil {
			t.Fatal(err)
		}
		l.tendAll(t.Context())
		if got := l.host.String(); strings.Contains(got, "addr 203") || !strings.Contains(got, "nat network 02b1c3d4e5f6: xip-02b1c3d4e5f [172.31.0.0/16] by br-ex,eth0") ||
			l.networks["named"].rec.Parent != "eth0" {
			t.Errorf("with a stranger there:\n%s", got)
		}
	}
	l.host.Others = nil
	l.tendAll(t.Context())
	machine := l.host.String()
	if !strings.Contains(machine, "addr 203.0.113.56/32 on br-ex") {
		t.Errorf("moved:\n%s", machine)
	}
	l.restart()
	if got := l.host.String(); got != machine {
		t.Errorf("after a restart:\n%s", got)
	}
}
