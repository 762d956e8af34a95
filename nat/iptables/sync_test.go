package iptables

import (
	"slices"
	"strings"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/nat"
)

// What others do to our rules, and what Sync says to it.
func TestSyncReports(t *testing.T) {
	st := nat.State{
		Networks: []nat.Network{nattest.Net(1)},
		Mappings: []nat.Mapping{nattest.Map4(1, 0x33), nattest.Map4(1, 0x34), nattest.Map6(1, 0x33)},
	}
	st.Networks[0].Mark = 7
	for _, tt := range []struct {
		name     string
		commands []string
		want     []string // in any order, nothing else
	}{
		{"nothing", nil, nil},
		{"a bucket is emptied", []string{"iptables -t nat -F XIP-D-33"}, []string{"nat: chain XIP-D-33 was altered"}},
		{
			"a bucket is taken out",
			[]string{"iptables -t nat -F XIP-D-3", "iptables -t nat -F XIP-D-33", "iptables -t nat -X XIP-D-33"},
			[]string{"nat: chain XIP-D-3 was altered", "nat: chain XIP-D-33 was missing"},
		},
		{
			"a rule of somebody else's",
			[]string{"iptables -t nat -I XIP-S-34 -j RETURN", "iptables -t mangle -A XIP-ISOLATE -i br1 -j ACCEPT"},
			[]string{"nat: chain XIP-S-34 was altered", "mangle: chain XIP-ISOLATE was altered"},
		},
		{
			"a chain of ours from another time",
			[]string{"iptables -t nat -N XIP-D-99", "iptables -t nat -N XIP-OLD", "iptables -t nat -A XIP-OLD -j XIP-D-99", "iptables -t nat -A OUTPUT -j XIP-OLD"},
			[]string{"nat: chain XIP-D-99 was left over", "nat: chain XIP-OLD was left over", "nat: jump from OUTPUT to XIP-PRE was there 2 times"},
		},
		{
			"a jump where none belongs",
			[]string{"iptables -t nat -N XIP-OLD", "iptables -t nat -A INPUT -m comment --comment extip -j XIP-OLD"},
			[]string{"nat: chain XIP-OLD was left over", "nat: jump from INPUT (-m comment --comment extip -j XIP-OLD) was left over"},
		},
		{"somebody comes before us", []string{"iptables -t nat -I PREROUTING -j ACCEPT"}, []string{"nat: jump from PREROUTING to XIP-PRE was at position 2"}},
		{
			"somebody comes before us where it does not matter",
			[]string{"iptables -t mangle -I FORWARD -j ACCEPT", "iptables -t nat -I INPUT -j ACCEPT"},
			nil,
		},
		{"a jump is gone", []string{"iptables -t mangle -D FORWARD 1"}, []string{"mangle: jump from FORWARD to XIP-ISOLATE was missing"}},
		{"marks are gone", []string{"iptables -t mangle -F XIP-EARLY"}, []string{"mangle: chain XIP-EARLY was altered"}},
		{
			"somebody keeps packets from being marked",
			[]string{"iptables -t mangle -I PREROUTING -j ACCEPT"},
			[]string{"mangle: jump from PREROUTING to XIP-EARLY was at position 2"},
		},
		{"a jump is doubled", []string{"iptables -t mangle -A FORWARD -j XIP-ISOLATE"}, []string{"mangle: jump from FORWARD to XIP-ISOLATE was there 2 times"}},
		{
			"a jump has lost its mark",
			[]string{"iptables -t nat -R POSTROUTING 1 -s 10.0.0.0/8 -j XIP-POST"},
			[]string{"nat: jump from POSTROUTING to XIP-POST was altered"},
		},
		{"DOCKER-USER goes first", []string{"iptables -N DOCKER-USER", "iptables -I FORWARD -j DOCKER-USER"}, nil},
		{
			"DOCKER-USER comes after us",
			[]string{"iptables -N DOCKER-USER", "iptables -A FORWARD -j DOCKER-USER"},
			[]string{"filter: jump from FORWARD to EXTIP-FORWARD was at position 1"},
		},
		{
			"ufw starts",
			[]string{"iptables -N ufw-before-forward", "iptables -N ufw-reject-forward", "iptables -A FORWARD -j ufw-before-forward", "iptables -A FORWARD -j ufw-reject-forward"},
			[]string{"filter: jump from FORWARD to EXTIP-FORWARD was at position 1"},
		},
		{
			"another comes first",
			[]string{"iptables -N DOCKER-USER", "iptables -I FORWARD -j DOCKER-USER", "iptables -I FORWARD 2 -j REJECT"},
			[]string{"filter: jump from FORWARD to EXTIP-FORWARD was at position 3"},
		},
		{"others' rules", []string{"iptables -t nat -N DOCKER", "iptables -t nat -A DOCKER -j RETURN", "iptables -A FORWARD -j DROP"}, nil},
		{"IPv6", []string{"ip6tables -t nat -F XIP-S-34"}, []string{"IPv6 nat: chain XIP-S-34 was altered"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachFlavour(t, func(t *testing.T, flavour string) {
				node := nettest.NewNode(t, "host")
				b := open(t, node, flavour)
				if _, err := b.Sync(st); err != nil {
					t.Fatal(err)
				}
				for _, c := range tt.commands {
					args := strings.Fields(c)
					node.Run(append([]string{args[0] + "-" + flavour}, args[1:]...)...)
				}
				altered := node.Dump()
				got, err := b.Sync(st)
				if err != nil {
					t.Fatal(err)
				}
				slices.Sort(got)
				slices.Sort(tt.want)
				if !slices.Equal(got, tt.want) {
					t.Errorf("got  %q\nwant %q", got, tt.want)
				}
				if len(tt.want) == 0 && node.Dump() != altered {
					t.Error("rules were changed without a word")
				}
				if again, err := b.Sync(st); err != nil || len(again) > 0 {
					t.Errorf("second time: %q, %v", again, err)
				}
			})
		})
	}
}

// A whole-sale wipe by others, by each of their usual ways.
func TestSyncAfterWipe(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		wipes := []string{"iptables -t nat -F", "iptables -t nat -F && iptables -t nat -X", "iptables -F && iptables -X"}
		if flavour == "nft" {
			nettest.RequireTool(t, "nft")
			wipes = append(wipes, "nft flush ruleset")
		}
		node := nettest.NewNode(t, "host")
		b := open(t, node, flavour)
		st := nat.State{Networks: []nat.Network{nattest.Net(1)}, Mappings: []nat.Mapping{nattest.Map4(1, 1), nattest.Map6(1, 1)}}
		if _, err := b.Sync(st); err != nil {
			t.Fatal(err)
		}
		want := node.Dump()
		for _, wipe := range wipes {
			node.Run("sh", "-c", strings.ReplaceAll(wipe, "iptables", "iptables-"+flavour))
			if node.Dump() == want {
				t.Errorf("%s: changed nothing", wipe)
			}
			if repaired, err := b.Sync(st); err != nil || len(repaired) == 0 {
				t.Errorf("%s: repaired %q, %v", wipe, repaired, err)
			}
			if got := node.Dump(); got != want {
				t.Errorf("%s: after repair\n%s\nwant\n%s", wipe, got, want)
			}
		}
	})
}

// Options in another order, or with other quotes, are the same rule.
func TestSameRule(t *testing.T) {
	const rule = `! -i br1 -o br1 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -m comment --comment "extip:net1" -j DROP`
	for _, tt := range []struct {
		rule string
		want bool
	}{
		{rule, true},
		{`! -i br1 -o br1 -m comment --comment extip:net1 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP`, true},
		{`-i br1 ! -o br1 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -m comment --comment "extip:net1" -j DROP`, false},
		{`! -i br1 -o br1 -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -m comment --comment "extip:net1" -j DROP`, false},
		{`! -i br1 -o br1 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -m comment --comment "extip:net1"`, false},
		{"", false},
	} {
		if got := sameRule(rule, tt.rule); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.rule, got, tt.want)
		}
	}
}

func TestAdmissionAlone(t *testing.T) {
	eachFlavour(t, func(t *testing.T, flavour string) {
		node := nettest.NewNode(t, "host")
		before := node.Dump()
		sync := func(networks ...nat.Network) (repaired []string) {
			t.Helper()
			node.MustDo(func() error {
				a, err := NewAdmission("iptables-" + flavour)
				if err != nil {
					return err
				}
				dump := node.Dump()
				found, err := a.Check(networks)
				if node.Dump() != dump {
					t.Error("a check changes something")
				}
				if err != nil {
					return err
				}
				if repaired, err = a.Sync(networks); !slices.Equal(found, repaired) {
					t.Errorf("found %q, repaired %q", found, repaired)
				}
				return err
			})
			return repaired
		}
		if got := sync(nattest.Net(1), nattest.Net(2)); len(got) != 4 {
			t.Errorf("chain and jump of two families: got %q", got)
		}
		if got := sync(nattest.Net(1), nattest.Net(2)); len(got) != 0 {
			t.Errorf("second time: got %q", got)
		}
		if dump := node.Dump(); strings.Contains(dump, "*nat") || strings.Contains(dump, "*mangle") {
			t.Errorf("other tables were touched:\n%s", dump)
		}
		sync()
		if after := node.Dump(); after != before {
			t.Errorf("after removal\n%s\nbefore\n%s", after, before)
		}
	})
}
