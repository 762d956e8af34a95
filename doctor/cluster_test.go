package doctor

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extip/extip/nat"
)

// TestCluster: a host that is apart, and what others have of its own, is said; of
// a host that shares nothing, nothing is.
func TestCluster(t *testing.T) {
	address := func(text, holder string) Address {
		return Address{Mapping: nat.Mapping{External: netip.MustParseAddr(text)}, HeldBy: holder}
	}
	since := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	addrs := []Address{address("192.0.2.51", ""), address("192.0.2.52", "docker2"), address("192.0.2.53", "docker2"), address("192.0.2.54", "docker3")}
	for _, tt := range []struct {
		subject Subject
		seen    []string
	}{
		{Subject{Cluster: &Cluster{}, Addresses: addrs[:1]}, nil},
		{Subject{Cluster: &Cluster{ApartSince: since}}, []string{"etcd can't be reached since 2026-11-24T12:00:00Z"}},
		{Subject{Cluster: &Cluster{}, Addresses: addrs}, []string{"192.0.2.52 and 192.0.2.53 are held by host docker2", "192.0.2.54 is held by host docker3"}},
	} {
		var seen []string
		for _, f := range (&exam{subject: tt.subject}).cluster() {
			if seen = append(seen, f.Seen); f.Level != Fail || f.Why == "" {
				t.Errorf("%+v", f)
			}
		}
		if diff := cmp.Diff(tt.seen, seen); diff != "" {
			t.Errorf("seen (-want +got):\n%s", diff)
		}
	}
	has := func(s Subject) bool {
		return slices.ContainsFunc(s.checks(), func(c check) bool { return c.name == "cluster" })
	}
	if has(Subject{}) || !has(Subject{Cluster: &Cluster{}}) {
		t.Error("the check is not there for a host in a cluster alone")
	}
}
