package nftables

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// Limits. An address that has one is an element of sets whose elements have a
// state of their own each: how many connections there are, and how many were
// opened of late. Packets of connections that there are cost a look at their
// connection's state; the first one of another looks into each set, whatever is
// in it. Sets whose elements have other limits than their set are there since
// Linux 5.7.
//
// To count what is open, the kernel goes through all connections of the
// address, at most once per tick of its clock: 3.5 ms for 20,000. So an address
// that was found full is left alone for half a second, without a look: what
// floods it must not have that done for every tick.
const (
	setRateIn   = "rate_in"   // external addresses
	setRateOut  = "rate_out"  // internal addresses
	setCountIn  = "count_in"  // external addresses
	setCountOut = "count_out" // internal addresses
	setFullIn   = "full_in"   // external addresses, for a time
	setFullOut  = "full_out"  // internal addresses, for a time
	setLimited  = "limited"   // both: counts what is dropped

	chainLimits     = "limits" // while an address has one
	chainOpening    = "opening"
	chainLimitedIn  = "limited-in"
	chainLimitedOut = "limited-out"
)

// passingTime is how long an address counts as full. A TCP client tries again
// after a second (RFC 6298 §2). passingSize is how many may; the others cost
// what they would without.
const (
	passingTime = 500 * time.Millisecond
	passingSize = 65535
)

// frameLimit adds what limits connections.
func (f family) frameLimit(t *table) {
	addr := f.addrType().Name
	for name, does := range map[string]statement{setRateIn: overRate, setRateOut: overRate, setCountIn: overCount, setCountOut: overCount} {
		t.sets[name] = &set{kind: setKind{key: addr, does: does}, elements: map[string]string{}}
	}
	t.sets[setLimited] = f.countedSet()
	for _, name := range []string{setFullIn, setFullOut} {
		t.sets[name] = &set{kind: setKind{key: addr, passing: true}, elements: map[string]string{}}
	}
	t.chains[chainLimits] = chain{hook{nftables.ChainTypeFilter, unix.NF_INET_PRE_ROUTING, limiting, nftables.ChainPolicyAccept}, []rule{
		f.rule(unconfirmed(), &expr.Verdict{Kind: expr.VerdictJump, Chain: chainOpening}),
	}}
	var opening []rule
	for _, d := range []struct {
		at                       uint32
		full, rate, count, chain string
	}{
		{f.target(), setFullIn, setRateIn, setCountIn, chainLimitedIn},
		{f.source(), setFullOut, setRateOut, setCountOut, chainLimitedOut},
	} {
		over := &expr.Verdict{Kind: expr.VerdictGoto, Chain: d.chain}
		opening = append(opening,
			f.rule(f.load(d.at), contains(d.full), over),
			f.rule(f.load(d.at), contains(d.rate), over),
			// nft writes the address for both.
			f.rule(f.load(d.at), contains(d.count), f.load(d.at), remember(d.full), over))
		t.chains[d.chain] = chain{rules: []rule{
			f.rule(f.load(d.at), contains(setLimited), drop()),
			f.rule(drop()), // should the set lack the address
		}}
	}
	t.chains[chainOpening] = chain{rules: opening}
}

// fillLimit adds an address's elements.
func fillLimit(t *table, key string, l nat.Limit, rate, count string) {
	if l.Rate > 0 {
		t.sets[rate].elements[key] = strconv.FormatUint(uint64(l.Rate), 10)
	}
	if l.Connections > 0 {
		t.sets[count].elements[key] = strconv.FormatUint(uint64(l.Connections), 10)
	}
	if l != (nat.Limit{}) {
		t.sets[setLimited].elements[key] = ""
	}
}

// unconfirmed matches the packets that would make an entry of connection
// tracking, and no others: not those of no connection either.
func unconfirmed() []expr.Any {
	const ipsConfirmed = 1 << 3 // IPS_CONFIRMED, linux/netfilter/nf_conntrack_common.h
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATUS, Register: register}, masked(native(ipsConfirmed)), equals(native(0))}
}

// remember puts the register into a set of those that stay for a time.
func remember(name string) expr.Any {
	return &expr.Dynset{SrcRegKey: register, SetName: name, Operation: unix.NFT_DYNSET_OP_ADD}
}

// leastLimit is what elements would have that say nothing else. There are none
// of ours, but nft wants to know what to expect.
const leastLimit = "1"

// Of linux/netfilter/nf_tables.h, and missing in x/sys.
const (
	nftaConnlimitCount = 1
	nftaConnlimitFlags = 2
	connlimitInverted  = 1 // NFT_CONNLIMIT_F_INV: matches beyond, not below
)

// encode is the statement as an expression of the kernel, with its number.
func (s statement) encode(number string) attrs {
	n, _ := strconv.ParseUint(number, 10, 32)
	var data attrs
	switch s {
	case overRate:
		const second = 1 // the unit, in seconds
		data = data.put(unix.NFTA_LIMIT_RATE, binary.BigEndian.AppendUint64(nil, n)).
			put(unix.NFTA_LIMIT_UNIT, binary.BigEndian.AppendUint64(nil, second)).
			number(unix.NFTA_LIMIT_BURST, uint32(n)).
			number(unix.NFTA_LIMIT_TYPE, unix.NFT_LIMIT_PKTS).
			number(unix.NFTA_LIMIT_FLAGS, unix.NFT_LIMIT_F_INV)
	case overCount:
		data = data.number(nftaConnlimitCount, uint32(n)).number(nftaConnlimitFlags, connlimitInverted)
	default:
		return attrs{}.text(unix.NFTA_EXPR_NAME, string(s))
	}
	return attrs{}.text(unix.NFTA_EXPR_NAME, string(s)).nest(unix.NFTA_EXPR_DATA, data)
}

// decode is the number of an expression that encode has made, "" of a counter,
// and of any other its own bytes.
func (s statement) decode(what attrs) string {
	data := what.find(unix.NFTA_EXPR_DATA)
	var number string
	switch s {
	case counts:
		return ""
	case overRate:
		if rate := data.find(unix.NFTA_LIMIT_RATE); len(rate) == 8 {
			number = strconv.FormatUint(binary.BigEndian.Uint64(rate), 10)
		}
	case overCount:
		number = strconv.FormatUint(uint64(data.number32(nftaConnlimitCount)), 10)
	}
	if want := s.encode(number); !same(want.find(unix.NFTA_EXPR_DATA), data) {
		return fmt.Sprintf("%x", []byte(what))
	}
	return number
}

// same tells whether all of a list's attributes are in another one, too.
func same(want, have attrs) bool {
	for kind, data := range want.each() {
		if string(have.find(kind)) != string(data) {
			return false
		}
	}
	return true
}

// spell writes a statement as nft does.
func (s statement) spell(number string) string {
	switch s {
	case overRate:
		return fmt.Sprintf("limit rate over %s/second burst %s packets", number, number)
	case overCount:
		return "ct count over " + number
	}
	return string(s)
}
