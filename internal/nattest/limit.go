package nattest

import (
	"testing"

	"github.com/extip/extip/nat"
)

// Limited is a mapping with a limit.
func Limited(m nat.Mapping, connections, rate uint32) nat.Mapping {
	m.Limit = nat.Limit{Connections: connections, Rate: rate}
	return m
}

// Limits come, change, and go with nothing else.
func testLimit(t *testing.T, s Subject) {
	ok(t, s.AddNetwork(Net(1)))
	ok(t, s.Add(Map4(1, 1), Map4(1, 2), Map6(1, 1)))
	open := s.Dump()

	a, b, c := Limited(Map4(1, 1), 2000, 0), Limited(Map4(1, 2), 0, 50), Limited(Map6(1, 1), 1, 7000)
	seen := map[string]bool{open: true}
	fresh := func(what string) {
		t.Helper()
		if d := s.Dump(); seen[d] {
			t.Errorf("%s: rules are as at some time before\n%s", what, d)
		} else {
			seen[d] = true
		}
	}
	ok(t, s.Add(a, c))
	fresh("a limit")
	one := s.Dump()
	ok(t, s.Add(b))
	clean(t, s, state(a, b, c))
	fresh("another")
	ok(t, s.Add(Map4(1, 2)))
	same(t, "without the second", s.Dump(), one)

	for _, l := range []nat.Limit{{Connections: 2001}, {Connections: 2000, Rate: 1}, {Rate: 1}, {Rate: nat.MaxRate}, {Connections: nat.MaxConnections}, {Rate: 5}, {Rate: 30000}} {
		a.Limit = l
		ok(t, s.Add(a))
		fresh("a change")
		clean(t, s, state(a, c, Map4(1, 2)))
	}
	a = Limited(Map4(1, 1), 2000, 0)
	ok(t, s.Add(a))
	same(t, "after changes there and back", s.Dump(), one)

	// Of several addresses of a container, one bounds what it opens.
	second := Limited(Map4(1, 9), 30, 3)
	second.Internal, second.Endpoint, second.Egress = a.Internal, a.Endpoint, false
	ok(t, s.Add(second))
	clean(t, s, state(a, second, c, Map4(1, 2)))
	fresh("of a second address")
	ok(t, s.Remove(a))
	clean(t, s, state(second, c, Map4(1, 2)))
	ok(t, s.Remove(second))
	ok(t, s.Add(a))
	same(t, "after a second address there and back", s.Dump(), one)

	stays(t, s, a, c, Map4(1, 2))
	same(t, "without limits", s.Dump(), open)

	for _, l := range []nat.Limit{{Connections: nat.MaxConnections + 1}, {Rate: nat.MaxRate + 1}} {
		a.Limit = l
		if s.Add(a) == nil {
			t.Errorf("limit %+v: accepted", l)
		}
	}
}
