package iptables

import (
	"slices"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/nat"
)

// Rules that iptables-save may spell otherwise are refused, with their mapping
// and no other.
func TestFilterProtocols(t *testing.T) {
	b := (&recorder{}).backend()
	gre := nattest.Map4(1, 1)
	gre.Filter = &nat.Filter{Ports: []nat.Ports{{Proto: 47}}}
	if err := b.Add(gre); err == nil {
		t.Error("Add: no error")
	}
	st := nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: []nat.Mapping{gre, nattest.Map4(1, 2)}}
	if _, err := b.Sync(st); err == nil {
		t.Error("Sync: no error")
	}
	if ms := b.sides[0].model.Mappings; len(ms) != 1 {
		t.Errorf("written: %v", ms)
	}
}

// Ports share rules, as many as fit.
func TestPortMatches(t *testing.T) {
	var many []nat.Ports
	for i := range uint16(20) {
		many = append(many, nat.Ports{Proto: 6, First: 1 + 10*i, Last: 1 + 10*i + i%2})
	}
	many = append(many, nat.Ports{Proto: 17, First: 53, Last: 53}, nat.Ports{Proto: 1})
	got := portMatches((&nat.Filter{Ports: many}).Canonical().Ports)
	want := []string{
		"-p icmp",
		"-p tcp -m multiport --dports 1,11:12,21,31:32,41,51:52,61,71:72,81,91:92",
		"-p tcp -m multiport --dports 101,111:112,121,131:132,141,151:152,161,171:172,181,191:192",
		"-p udp -m multiport --dports 53",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}
