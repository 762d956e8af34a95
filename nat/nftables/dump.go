package nftables

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// read returns what the family's table holds, nil if there is none. What it
// can't understand is no error: the table is then strange. The caller makes
// sure that nothing changes meanwhile.
func (k *kernel) read(f family) (*table, error) {
	where := &nftables.Table{Name: tableName, Family: nftables.TableFamily(f.proto())}
	found, err := k.socket.Execute(netlink.Message{
		Header: netlink.Header{Type: messageType(unix.NFT_MSG_GETTABLE), Flags: netlink.Request},
		Data:   append(nfgenmsg(f.proto(), 0), attrs{}.text(unix.NFTA_TABLE_NAME, tableName)...),
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil
	}
	if err != nil || len(found) == 0 {
		return nil, cmp.Or(err, errNoAnswer)
	}
	about := payload(found[0])
	t := &table{flags: about.number32(unix.NFTA_TABLE_FLAGS), sets: map[string]*set{}, chains: map[string]chain{}}
	t.foreign = t.flags&flagOwner != 0 && about.number32(nftaTableOwner) != k.port
	if err := errors.Join(k.readSets(where, t), k.readChains(f, where, t)); err != nil {
		t.strange = err.Error()
	} else if others := int(about.number32(unix.NFTA_TABLE_USE)) - len(t.sets) - len(t.chains); others != 0 {
		t.strange = fmt.Sprintf("%d foreign objects", others)
	}
	return t, nil
}

// nftaTableOwner is NFTA_TABLE_OWNER, linux/netfilter/nf_tables.h; it is
// missing in x/sys.
const nftaTableOwner = 7

func (k *kernel) readSets(where *nftables.Table, t *table) error {
	// Of a map to verdicts, the library takes the value's type for the key's.
	sets, err := k.socket.Execute(netlink.Message{
		Header: netlink.Header{Type: messageType(unix.NFT_MSG_GETSET), Flags: netlink.Request | netlink.Dump},
		Data:   append(nfgenmsg(uint8(where.Family), 0), attrs{}.text(unix.NFTA_SET_TABLE, where.Name)...),
	})
	if err != nil {
		return fmt.Errorf("sets: %w", err)
	}
	for _, m := range sets {
		about := payload(m)
		if about.number32(unix.NFTA_SET_FLAGS)&unix.NFT_SET_ANONYMOUS != 0 {
			continue // not counted, and goes with its rule
		}
		name := about.find(unix.NFTA_SET_NAME).string()
		held := &set{kind: kindOf(about), elements: map[string]string{}}
		t.sets[name] = held
		if held.kind.passing {
			continue
		}
		if err := k.readElements(where, name, held); err != nil {
			return fmt.Errorf("elements of %s: %w", name, err)
		}
	}
	return nil
}

// readElements reads what a set holds.
func (k *kernel) readElements(where *nftables.Table, name string, held *set) error {
	return k.eachElement(uint8(where.Family), name, func(e attrs) {
		value := string(e.find(unix.NFTA_SET_ELEM_DATA, unix.NFTA_DATA_VALUE))
		if v := e.find(unix.NFTA_SET_ELEM_DATA, unix.NFTA_DATA_VERDICT); v != nil {
			value = spellVerdict(v)
		}
		if what := e.find(unix.NFTA_SET_ELEM_EXPR); what != nil {
			value = held.kind.does.decode(what)
		}
		key := string(e.find(unix.NFTA_SET_ELEM_KEY, unix.NFTA_DATA_VALUE))
		if held.kind.ranges {
			last := string(e.find(nftaSetElemKeyEnd, unix.NFTA_DATA_VALUE))
			key += cmp.Or(last, key)
		}
		held.elements[key] = value
	})
}

// eachElement calls fn for each element of a set of a table of ours. It does
// without the library, which takes three times as long and ten times the memory.
func (k *kernel) eachElement(family uint8, name string, fn func(attrs)) error {
	replies, err := k.socket.Execute(netlink.Message{
		Header: netlink.Header{Type: messageType(unix.NFT_MSG_GETSETELEM), Flags: netlink.Request | netlink.Dump},
		Data: append(nfgenmsg(family, 0), attrs{}.
			text(unix.NFTA_SET_ELEM_LIST_TABLE, tableName).text(unix.NFTA_SET_ELEM_LIST_SET, name)...),
	})
	if err != nil {
		return err
	}
	for _, m := range replies {
		for _, e := range payload(m).find(unix.NFTA_SET_ELEM_LIST_ELEMENTS).each() {
			fn(e)
		}
	}
	return nil
}

// kindOf is what the kernel says of a set.
func kindOf(about attrs) setKind {
	const (
		ranges  = unix.NFT_SET_INTERVAL | nftables.NFT_SET_CONCAT
		passing = unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL
	)
	flags := about.number32(unix.NFTA_SET_FLAGS)
	k := setKind{
		key:     spellType(about.number32(unix.NFTA_SET_KEY_TYPE)),
		ranges:  flags&ranges == ranges,
		does:    statement(about.find(nftaSetExpr, unix.NFTA_EXPR_NAME).string()),
		passing: flags&passing == passing,
	}
	switch value := about.number32(unix.NFTA_SET_DATA_TYPE); {
	case flags&unix.NFT_SET_MAP == 0:
	case value == unix.NFT_DATA_VERDICT:
		k.value = nftables.TypeVerdict.Name
	default:
		k.value = spellType(value)
	}
	k.special = flags&^(ranges|passing|unix.NFT_SET_MAP) != 0 || !k.ranges && flags&ranges != 0 || !k.passing && flags&passing != 0
	return k
}

// spellType is the name of a type, of a key with parts those of all, of which
// each takes some of the number's bits.
func spellType(magic uint32) string {
	var names []string
	for ; magic != 0; magic >>= nftables.SetConcatTypeBits {
		name := "?"
		for _, t := range datatypes() {
			if t.GetNFTMagic() == magic&nftables.SetConcatTypeMask {
				name = t.Name
			}
		}
		names = append(names, name)
	}
	slices.Reverse(names)
	return strings.Join(names, joined)
}

// spellVerdict writes a verdict as nft does, if it is a jump; no other is ours.
func spellVerdict(v attrs) string {
	if bytes.Equal(v, verdict(v.find(unix.NFTA_VERDICT_CHAIN).string())) {
		return jumpTo(v.find(unix.NFTA_VERDICT_CHAIN).string())
	}
	return fmt.Sprintf("verdict %x", []byte(v))
}

func (k *kernel) readChains(f family, where *nftables.Table, t *table) error {
	chains, err := k.library.ListChainsOfTableFamily(where.Family)
	if err != nil {
		return fmt.Errorf("chains: %w", err)
	}
	for _, c := range chains {
		if c.Table == nil || c.Table.Name != tableName {
			continue
		}
		held := chain{hook: hookOf(c)}
		rules, err := k.library.GetRules(where, c)
		if err != nil {
			return fmt.Errorf("rules of %s: %w", c.Name, err)
		}
		for _, r := range rules {
			encoded, err := f.encode(normal(r.Exprs))
			if err != nil {
				return fmt.Errorf("rules of %s: %w", c.Name, err)
			}
			held.rules = append(held.rules, encoded)
		}
		t.chains[c.Name] = held
	}
	return nil
}

func hookOf(c *nftables.Chain) hook {
	if c.Hooknum == nil || c.Priority == nil {
		return hook{}
	}
	h := hook{kind: c.Type, number: uint32(*c.Hooknum), priority: int32(*c.Priority), policy: nftables.ChainPolicyAccept}
	if c.Policy != nil {
		h.policy = *c.Policy
	}
	return h
}

// normal takes from expressions what changes while a rule is at work.
func normal(exprs []expr.Any) []expr.Any {
	for _, e := range exprs {
		if c, ok := e.(*expr.Counter); ok {
			*c = expr.Counter{}
		}
	}
	return exprs
}
