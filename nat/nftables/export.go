package nftables

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/extip/extip/nat"
	"github.com/google/nftables"
)

// Export writes a file for nft -f that makes, on its own, what a Backend with
// this state makes. What can't be written is left out and reported as errors.
func Export(s nat.State) (string, error) {
	want, err := s.Usable()
	m := modelOf(want, counting{connections: true})
	var out strings.Builder
	for _, f := range families() {
		if t := m.whole(f); t != nil {
			// To name a table makes it, so that it can be deleted: loading
			// the file again replaces all.
			fmt.Fprintf(&out, "table %[1]s %[2]s\ndelete table %[1]s %[2]s\n%[3]s", f, tableName, t.text(f))
		}
	}
	return out.String(), err
}

// text is a table as nft takes it.
func (t *table) text(f family) string {
	var out strings.Builder
	fmt.Fprintf(&out, "table %s %s {\n", f, tableName)
	for _, name := range slices.Sorted(maps.Keys(t.sets)) {
		t.sets[name].text(&out, name)
	}
	// Chains come before those that call them.
	names := slices.Sorted(maps.Keys(t.chains))
	slices.SortStableFunc(names, func(a, b string) int {
		return cmpBool(t.chains[a].hook != (hook{}), t.chains[b].hook != (hook{}))
	})
	for _, name := range names {
		t.chains[name].text(&out, name, f, t.sets)
	}
	out.WriteString("}\n")
	return out.String()
}

func cmpBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func (s *set) text(out *strings.Builder, name string) {
	what, types := "set", s.kind.key
	if s.kind.value != "" {
		what, types = "map", s.kind.key+" : "+s.kind.value
	}
	fmt.Fprintf(out, "\t%s %s {\n\t\ttype %s\n", what, name, types)
	if s.kind.ranges {
		out.WriteString("\t\tflags interval\n")
	}
	if s.kind.passing {
		fmt.Fprintf(out, "\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %dms\n", passingSize, passingTime.Milliseconds())
	}
	if s.kind.does != "" {
		fmt.Fprintf(out, "\t\t%s\n", s.kind.does.spell(leastLimit))
	}
	for at, key := range slices.Sorted(maps.Keys(s.elements)) {
		element := s.kind.spell(key)
		if s.kind.key == nftables.TypeIFName.Name {
			element = fmt.Sprintf("%q", element)
		}
		switch value := s.elements[key]; s.kind.value {
		case "":
			if value != "" {
				element += " " + s.kind.does.spell(value)
			}
		case nftables.TypeVerdict.Name:
			element += " : " + value
		case nftables.TypeMark.Name:
			element += fmt.Sprintf(" : 0x%08x", number([]byte(value)))
		default:
			element += " : " + setKind{key: s.kind.value}.spell(value)
		}
		if at == 0 {
			out.WriteString("\t\telements = {\n")
		}
		fmt.Fprintf(out, "\t\t\t%s,\n", element)
	}
	if len(s.elements) > 0 {
		out.WriteString("\t\t}\n")
	}
	out.WriteString("\t}\n")
}

// size is a key's, in bytes: each of its parts begins a register of 4.
func (k setKind) size() (size int) {
	for name := range strings.SplitSeq(k.key, joined) {
		for _, t := range []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr, nftables.TypeIFName, nftables.TypeInetProto, nftables.TypeInetService} {
			if t.Name == name {
				size += (int(t.Bytes) + 3) &^ 3
			}
		}
	}
	return size
}

func (c chain) text(out *strings.Builder, name string, f family, sets map[string]*set) {
	fmt.Fprintf(out, "\tchain %s {\n", name)
	if c.hook != (hook{}) {
		fmt.Fprintf(out, "\t\ttype %s hook %s priority %d; policy %s;\n", c.hook.kind, nat.Hook(c.hook.number), c.hook.priority,
			map[nftables.ChainPolicy]string{nftables.ChainPolicyAccept: "accept", nftables.ChainPolicyDrop: "drop"}[c.hook.policy])
	}
	size := func(name string) *heldSet { return &heldSet{size: sets[name].kind.size()} }
	for _, r := range c.rules {
		fmt.Fprintf(out, "\t\t%s\n", spellRule(f, exprsOf(attrs(r)), size))
	}
	out.WriteString("\t}\n")
}
