package nftables

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/extip/extip/internal/nattest"
	"github.com/extip/extip/nat"
)

var update = flag.Bool("update", false, "rewrite testdata")

func TestRules(t *testing.T) {
	gateway := nattest.Map4(1, 0x33)
	gateway.Gateway = true
	noEgress := nattest.Map4(1, 0x34)
	noEgress.Egress = false
	internal := nattest.Net(2)
	internal.Internal = true
	marked := nattest.Net(2)
	marked.Mark = 0x10203
	only := func(n nat.Network, subnet int) nat.Network {
		n.Subnets = n.Subnets[subnet : subnet+1]
		return n
	}
	for _, tt := range []struct {
		name  string
		state nat.State
	}{
		{"v4", nat.State{Networks: []nat.Network{only(nattest.Net(1), 0)}, Mappings: []nat.Mapping{nattest.Map4(1, 0x33), nattest.Map4(1, 0x34)}}},
		{"v6", nat.State{Networks: []nat.Network{only(nattest.Net(1), 1)}, Mappings: []nat.Mapping{nattest.Map6(1, 0x33), nattest.Map6(1, 0x100)}}},
		{"gateway", nat.State{Networks: []nat.Network{only(nattest.Net(1), 0)}, Mappings: []nat.Mapping{gateway, noEgress}}},
		{"internal", nat.State{Networks: []nat.Network{only(internal, 0)}}},
		{"two-networks", nat.State{Networks: []nat.Network{nattest.Net(1), nattest.Net(2)}, Mappings: []nat.Mapping{nattest.Map4(1, 0x33), nattest.Map4(2, 0x34)}}},
		{"filters", nat.State{Networks: []nat.Network{only(nattest.Net(1), 0)}, Mappings: []nat.Mapping{
			nattest.Filtered(nattest.Map4(1, 0x33), false), nattest.Filtered(nattest.Map4(1, 0x34), false), nattest.Map4(1, 0x35),
			nattest.Filtered(nattest.Map4(1, 0x36), true, "198.51.100.0/24", "192.0.2.1/32"),
		}}},
		{"filters6", nat.State{Networks: []nat.Network{only(nattest.Net(1), 1)}, Mappings: []nat.Mapping{
			nattest.Filtered(nattest.Map6(1, 0x33), false), nattest.Filtered(nattest.Map6(1, 0x34), true, "2001:db8:5::/48"),
		}}},
		{"limits", nat.State{Networks: []nat.Network{only(nattest.Net(1), 0)}, Mappings: []nat.Mapping{
			nattest.Limited(nattest.Map4(1, 0x33), 20000, 0), nattest.Limited(nattest.Map4(1, 0x34), 0, 500), nattest.Map4(1, 0x35),
			nattest.Limited(nattest.Map4(1, 0x36), 300, 20),
		}}},
		{"limits6", nat.State{Networks: []nat.Network{only(nattest.Net(1), 1)}, Mappings: []nat.Mapping{nattest.Limited(nattest.Map6(1, 0x33), 300, 20)}}},
		{"accounts", nat.State{Networks: []nat.Network{only(nattest.Net(1), 0)}, Mappings: []nat.Mapping{nattest.Map4(1, 0x33), noEgress}}},
		{"marks", nat.State{Networks: []nat.Network{only(nattest.Net(1), 0), only(marked, 0)}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			node := newHost(t)
			b := open(t, node, Config{Account: tt.name == "accounts"})
			if _, err := b.Sync(tt.state); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", tt.name+".nft")
			got := dump(node)
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}
