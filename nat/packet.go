package nat

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// A Hook is where the kernel asks rules about packets; the numbers are the
// kernel's (enum nf_inet_hooks, linux/netfilter.h).
type Hook int

// The hooks that forwarded packets pass, and those of the host itself.
const (
	Prerouting Hook = iota
	Input
	Forward
	Output
	Postrouting
)

// String is the hook's name in nft.
func (h Hook) String() string {
	return [...]string{"prerouting", "input", "forward", "output", "postrouting"}[h]
}

// A Packet is what is known of one that is to be asked about. What is not known
// of it, a rule can't surely match.
type Packet struct {
	// In and Out are interfaces; empty where there is none, at the hook.
	In, Out  Interface
	Src, Dst netip.Addr
	// Proto is an IP protocol, 0 if any, and Port its destination port, 0 if any.
	Proto uint8
	Port  uint16
	Mark  uint32
	// Established says that its connection has been answered already, Reply
	// that it goes against the direction of the first packet.
	Established, Reply bool
	// DNAT and SNAT say what was translated of the connection; OrigDst is
	// its destination before that.
	DNAT, SNAT bool
	OrigDst    netip.Addr
	// Local tells whether an address is the host's own; nil: not known.
	Local func(netip.Addr) bool
}

// An Interface is known by its name and its number.
type Interface struct {
	Name  string
	Index int
}

// A Ruling is what a built-in or base chain decides about a packet, other than
// to let it pass.
type Ruling struct {
	// Tool is the program that lists the rule: nft, iptables,
	// ip6tables-legacy, and so on.
	Tool string
	// Family is nft's, such as inet; empty of iptables.
	Family string
	// Base is the chain that the kernel asks, Chain the one with the rule.
	Table, Base, Chain string
	Priority           int
	// Rule is the rule as Tool lists it, as far as it is understood, or the
	// chain's policy.
	Rule string
	// Undo is the command that removes the rule.
	Undo string
	// Ours says that it is extip's own.
	Ours bool
	// Doubt says that a rule that is not understood may decide otherwise.
	Doubt bool

	// Drop ends the packet. Otherwise its address becomes To; not valid if
	// that is the host's, by whichever interface.
	Drop bool
	To   netip.Addr
}

// First are rulings in the order in which the kernel comes to them.
func First(rulings []Ruling) []Ruling {
	slices.SortStableFunc(rulings, func(a, b Ruling) int { return cmp.Compare(a.Priority, b.Priority) })
	return rulings
}

// Shell writes a command's words so that a shell takes them as they are.
func Shell(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		plain := w != ""
		for _, c := range []byte(w) {
			plain = plain && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_./:,=+@%", c) >= 0)
		}
		if quoted[i] = w; !plain {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
