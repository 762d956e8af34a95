package nat_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/nat"
)

// journal is a Backend and an Admission that note what they are told.
type journal struct {
	mu    sync.Mutex
	lines []string
	fail  error
}

func (j *journal) note(line string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
	return j.fail
}

func (j *journal) AddNetwork(n nat.Network) error    { return j.note("add " + n.ID) }
func (j *journal) RemoveNetwork(n nat.Network) error { return j.note("remove " + n.ID) }
func (j *journal) Add(...nat.Mapping) error          { return j.note("map") }
func (j *journal) Remove(...nat.Mapping) error       { return j.note("unmap") }
func (j *journal) Sync(nat.State) ([]string, error)  { return []string{"a rule"}, j.note("sync") }
func (j *journal) Repair() ([]string, error)         { return nil, j.note("repair") }

func (j *journal) Counters() (map[netip.Addr]nat.Counters, error) { return nil, nil }

func (j *journal) Check() ([]string, error) { return []string{"a difference"}, j.note("check") }

type admission struct{ *journal }

func (a admission) Sync(networks []nat.Network) ([]string, error) {
	var ids []string
	for _, n := range networks {
		ids = append(ids, n.ID)
	}
	slices.Sort(ids)
	return nil, a.note("admit " + strings.Join(ids, " "))
}

func (a admission) Check([]nat.Network) ([]string, error) { return []string{"another"}, nil }

// TestAdmitted: drops come before accepts and go after them, mappings concern
// nobody else, and what the other backend left goes once, after the first Sync.
func TestAdmitted(t *testing.T) {
	j := &journal{}
	cleared := 0
	a := &nat.Admitted{Backend: j, Admission: admission{j}, Former: func() ([]string, error) {
		cleared++
		return []string{"an old rule"}, j.note("clear")
	}}
	n0, n1 := nattest.Net(0), nattest.Net(1)
	repaired, err := a.Sync(nat.State{Networks: []nat.Network{n0}})
	if err != nil || !slices.Equal(repaired, []string{"a rule", "an old rule"}) {
		t.Errorf("Sync: %q, %v", repaired, err)
	}
	for _, call := range []func() error{
		func() error { return a.AddNetwork(n1) },
		func() error { return a.AddNetwork(n1) },
		func() error { return a.Add(nattest.Map4(1, 1)) },
		func() error { return a.Remove(nattest.Map4(1, 1)) },
		func() error { _, err := a.Repair(); return err },
		func() error {
			differences, err := a.Check()
			if !slices.Equal(differences, []string{"a difference", "another"}) {
				t.Errorf("Check: %q", differences)
			}
			return err
		},
		func() error { return a.RemoveNetwork(n0) },
		func() error { _, err := a.Sync(nat.State{}); return err },
	} {
		if err := call(); err != nil {
			t.Error(err)
		}
	}
	want := []string{
		"sync", "admit net0", "clear", "add net1", "admit net0 net1", "add net1", "map", "unmap",
		"repair", "admit net0 net1", "check", "admit net1", "remove net0", "sync", "admit ",
	}
	if !slices.Equal(j.lines, want) || cleared != 1 {
		t.Errorf("got  %q\nwant %q, and cleared once: %d", j.lines, want, cleared)
	}
}

// TestAdmittedErrors: removing goes on after an error; nothing is cleared as
// long as the chosen backend doesn't translate.
func TestAdmittedErrors(t *testing.T) {
	broken := errors.New("broken")
	j := &journal{fail: broken}
	a := &nat.Admitted{Backend: j, Admission: admission{j}, Former: func() ([]string, error) {
		t.Error("cleared")
		return nil, nil
	}}
	if _, err := a.Sync(nat.State{}); !errors.Is(err, broken) {
		t.Errorf("Sync: %v", err)
	}
	if err := a.RemoveNetwork(nattest.Net(0)); !errors.Is(err, broken) {
		t.Errorf("RemoveNetwork: %v", err)
	}
	if want := []string{"sync", "admit ", "admit ", "remove net0"}; !slices.Equal(j.lines, want) {
		t.Errorf("got %q, want %q", j.lines, want)
	}
}

// TestUsable keeps out of rules what would mean something else there.
func TestUsable(t *testing.T) {
	good := nat.State{Networks: []nat.Network{nattest.Net(0)}, Mappings: []nat.Mapping{nattest.Map4(0, 1), nattest.Map6(0, 1)}}
	if _, err := good.Usable(); err != nil {
		t.Fatal(err)
	}
	for _, spoil := range []func(*nat.Network, *nat.Mapping){
		func(n *nat.Network, _ *nat.Mapping) { n.ID = "" },
		func(n *nat.Network, _ *nat.Mapping) { n.ID = "a b" },
		func(n *nat.Network, _ *nat.Mapping) { n.ID = "x\"; flush ruleset" },
		func(n *nat.Network, _ *nat.Mapping) { n.Bridge = "br 0" },
		func(n *nat.Network, _ *nat.Mapping) { n.Bridge = "br\n0" },
		func(n *nat.Network, _ *nat.Mapping) { n.Uplinks = []string{"eth0", "eth*"} },
		func(n *nat.Network, _ *nat.Mapping) { n.Uplinks = []string{"-j"} },
		func(_ *nat.Network, m *nat.Mapping) { m.Endpoint = "thirteenchars" },
		func(_ *nat.Network, m *nat.Mapping) { m.External = netip.Addr{} },
		func(_ *nat.Network, m *nat.Mapping) { m.Internal = netip.MustParseAddr("2001:db8::1") },
		func(_ *nat.Network, m *nat.Mapping) { m.External = netip.MustParseAddr("224.0.0.1") },
	} {
		n, m := nattest.Net(1), nattest.Map4(1, 9)
		spoil(&n, &m)
		s := nat.State{Networks: append([]nat.Network{n}, good.Networks...), Mappings: append([]nat.Mapping{m}, good.Mappings...)}
		left, err := s.Usable()
		if err == nil || len(left.Networks)+len(left.Mappings) != 4 {
			t.Errorf("%+v %+v: %d networks, %d mappings, %v", n, m, len(left.Networks), len(left.Mappings), err)
		}
	}
	twice := nat.State{Networks: append(good.Networks, good.Networks...), Mappings: append(good.Mappings, good.Mappings...)}
	if left, err := twice.Usable(); err == nil || len(left.Networks) != 1 || len(left.Mappings) != 2 {
		t.Errorf("everything twice: %v, %v", left, err)
	}
}
