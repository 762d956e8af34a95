package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
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
	found, err := k.library.ListTableOfFamily(tableName, where.Family)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// The library reads these numbers in the wrong byte order.
	t := &table{flags: hostOrder(found.Flags), sets: map[string]*set{}, chains: map[string]chain{}}
	if err := errors.Join(k.readSets(where, t), k.readChains(f, where, t)); err != nil {
		t.strange = err.Error()
	} else if others := int(hostOrder(found.Use)) - len(t.sets) - len(t.chains); others != 0 {
		t.strange = fmt.Sprintf("%d foreign objects", others)
	}
	return t, nil
}

func hostOrder(n uint32) uint32 {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		return n
	}
	return bits.ReverseBytes32(n)
}

func (k *kernel) readSets(where *nftables.Table, t *table) error {
	sets, err := k.library.GetSets(where)
	if err != nil {
		return fmt.Errorf("sets: %w", err)
	}
	for _, s := range sets {
		if s.Anonymous {
			continue // not counted, and goes with its rule
		}
		held := &set{kind: kindOf(s), elements: map[string]string{}}
		t.sets[s.Name] = held
		s.Table = where
		elements, err := k.library.GetSetElements(s)
		if err != nil {
			return fmt.Errorf("elements of %s: %w", s.Name, err)
		}
		for _, e := range elements {
			value := string(e.Val)
			if held.kind.value == nftables.TypeVerdict.Name {
				value = spellVerdict(e.Val)
			}
			held.elements[string(e.Key)] = value
		}
	}
	return nil
}

func kindOf(s *nftables.Set) setKind {
	k := setKind{
		key: s.KeyType.Name, value: s.DataType.Name,
		special: s.Constant || s.Interval || s.HasTimeout || s.Dynamic || s.Concatenation,
	}
	// Of a map to verdicts, the library takes the value's type for the key's.
	if s.IsMap && s.KeyType.Name == nftables.TypeVerdict.Name {
		k.key, k.value = nftables.TypeIFName.Name, nftables.TypeVerdict.Name
	}
	return k
}

// spellVerdict writes a verdict in the kernel's encoding as nft does, if it
// is a jump; no other is ours.
func spellVerdict(data []byte) string {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return err.Error()
	}
	ad.ByteOrder = binary.BigEndian
	var code uint32
	var chain string
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			code = ad.Uint32()
		case unix.NFTA_VERDICT_CHAIN:
			chain = strings.TrimRight(ad.String(), "\x00")
		}
	}
	if code != jumpCode() {
		return fmt.Sprintf("verdict %d %s", int32(code), chain)
	}
	return jumpTo(chain)
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
