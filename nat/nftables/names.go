package nftables

import (
	"bytes"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// Names tells which rules name an address, other than ours: where, and how each
// can be removed. Translations count, whatever they match.
func (rs *Ruleset) Names(addr netip.Addr) (rulings []nat.Ruling) {
	raw := addr.AsSlice()
	for _, c := range rs.chains {
		if !rs.foreign(c) {
			continue
		}
		for _, r := range c.rules {
			translates, named := false, false
			for _, e := range r.exprs {
				translates = translates || e.name == "nat" || e.name == "masq" || e.name == "redir"
				switch e.name {
				case "cmp":
					named = named || bytes.Equal(e.data.find(unix.NFTA_CMP_DATA, unix.NFTA_DATA_VALUE), raw)
				case "immediate":
					named = named || bytes.Equal(e.data.find(unix.NFTA_IMMEDIATE_DATA, unix.NFTA_DATA_VALUE), raw)
				case "lookup":
					s := rs.sets[place{c.family, c.table, e.data.find(unix.NFTA_LOOKUP_SET).string()}]
					named = named || s != nil && s.names(raw)
				}
			}
			if translates && named {
				j := &judge{rs: rs, base: c}
				j.decide(c, r, nat.Ruling{})
				rulings = append(rulings, *j.ruling)
			}
		}
	}
	return rulings
}

func (s *heldSet) names(raw []byte) bool {
	for _, e := range s.elements {
		if !e.last && (strings.HasPrefix(e.key, string(raw)) || bytes.Equal(e.value.find(unix.NFTA_DATA_VALUE), raw)) {
			return true
		}
	}
	return false
}
