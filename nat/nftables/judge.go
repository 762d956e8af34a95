package nftables

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// Ask returns what the base chains of a hook decide about a packet, in the
// order in which the kernel comes to them. All are asked, also those that a
// packet which was dropped before wouldn't reach. Of its translations, only the
// first is made.
func (rs *Ruleset) Ask(h nat.Hook, p nat.Packet) []nat.Ruling {
	family := familyOf(p.Dst)
	var rulings []nat.Ruling
	for _, c := range rs.bases {
		if c.hook != h || c.family != unix.NFPROTO_INET && c.family != family.proto() {
			continue
		}
		j := &judge{rs: rs, base: c, packet: p, family: family}
		if j.chain(c, 0) == passes && c.drops {
			j.decide(c, heldRule{}, nat.Ruling{Drop: true, Rule: "policy drop"})
		}
		if j.ruling != nil {
			j.ruling.Doubt = j.doubt
			rulings = append(rulings, *j.ruling)
		}
	}
	return rulings
}

// A judge leads a packet through a base chain.
type judge struct {
	rs     *Ruleset
	base   *held
	packet nat.Packet
	family family
	// doubt says that a rule came by which may, or may not, have decided.
	doubt  bool
	ruling *nat.Ruling
}

// An outcome is what becomes of a packet at the end of a chain or rule.
type outcome int

const (
	passes  outcome = iota // on to the next rule, or chain
	returns                // back to where the chain was called
	ends                   // decided
)

// maxDepth is how deep the kernel lets chains call each other
// (NFT_JUMP_STACK_SIZE, net/netfilter/nf_tables.h).
const maxDepth = 16

func (j *judge) chain(c *held, depth int) outcome {
	if depth > maxDepth {
		return passes
	}
	for _, r := range c.rules {
		if o := j.rule(c, r, depth); o != passes {
			if o == returns {
				o = passes
			}
			return o
		}
	}
	return passes
}

// rule goes through a rule's expressions; one that doesn't match ends it.
func (j *judge) rule(c *held, r heldRule, depth int) outcome {
	regs := &registers{}
	sure := true
	for _, e := range r.exprs {
		switch j.match(c, regs, e) {
		case no:
			return passes
		case maybe:
			sure = false
		}
		var o outcome
		var done bool
		if regs.verdict != nil {
			o, done = j.verdict(c, r, regs.verdict, sure, depth)
		} else {
			o, done = j.statement(c, r, regs, e, sure)
		}
		if done {
			return o
		}
	}
	return passes
}

// verdict follows one; linux/netfilter/nf_tables.h, enum nft_verdicts.
func (j *judge) verdict(c *held, r heldRule, v attrs, sure bool, depth int) (outcome, bool) {
	code := int32(v.number32(unix.NFTA_VERDICT_CODE))
	if !sure {
		j.doubt = j.doubt || code != unix.NFT_CONTINUE
		return passes, true
	}
	switch code {
	case 0: // NF_DROP
		return j.decide(c, r, nat.Ruling{Drop: true}), true
	case unix.NFT_JUMP, unix.NFT_GOTO:
		to := j.rs.chains[place{c.family, c.table, v.find(unix.NFTA_VERDICT_CHAIN).string()}]
		if to == nil {
			return passes, true
		}
		o := j.chain(to, depth+1)
		if o == passes && code == unix.NFT_GOTO {
			o = returns
		}
		return o, o != passes
	case unix.NFT_RETURN:
		return returns, true
	case unix.NFT_CONTINUE:
		return passes, false
	case unix.NFT_BREAK:
		return passes, true
	}
	return ends, true // accepted, or handed to somebody else
}

// statement does what an expression does beside matching.
func (j *judge) statement(c *held, r heldRule, regs *registers, e heldExpr, sure bool) (o outcome, done bool) {
	var ruling nat.Ruling
	switch e.name {
	case "reject":
		ruling.Drop = true
	case "nat":
		reg := e.data.number32(unix.NFTA_NAT_REG_ADDR_MIN)
		if reg == 0 {
			return ends, true // the port only
		}
		to, known := regs.load(reg, int(j.family.addrLen()))
		if !known {
			sure = false
		}
		ruling.To, _ = netip.AddrFromSlice(to)
	case "masq", "redir":
	default:
		return passes, false
	}
	if !sure {
		j.doubt = true
		return passes, true
	}
	return j.decide(c, r, ruling), true
}

func (j *judge) decide(c *held, r heldRule, ruling nat.Ruling) outcome {
	ruling.Tool, ruling.Family = "nft", spellFamily(c.family)
	ruling.Table, ruling.Chain, ruling.Base = c.table, c.name, j.base.name
	ruling.Priority, ruling.Ours = int(j.base.priority), c.table == tableName
	if ruling.Rule == "" {
		ruling.Rule = j.rs.spell(c, r)
		ruling.Undo = nat.Shell("nft", "delete", "rule", ruling.Family, c.table, c.name, "handle", fmt.Sprint(r.handle))
	}
	j.ruling = &ruling
	return ends
}

func spellFamily(f uint8) string {
	switch f {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	}
	return "inet"
}
