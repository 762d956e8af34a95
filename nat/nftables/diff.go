package nftables

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// diff adds to a batch what makes the family's table hold want instead of
// have, either of which may be nil, no table. It returns a line for each
// thing that differed.
func (f family) diff(b *batch, have, want *table) (lines []string) {
	note := func(format string, args ...any) { lines = append(lines, f.String()+": "+fmt.Sprintf(format, args...)) }
	switch {
	case have == nil && want == nil:
		return nil
	case want == nil:
		note("table was left over")
		b.deleteTable(f)
		return lines
	case have == nil:
		note("table was missing")
		b.table(f, want.flags, true)
		f.diffContents(b, &table{}, want, func(string, ...any) {})
		return lines
	}
	if reason := have.beyondRepair(want); reason != "" {
		note("table was made anew: %s", reason)
		b.deleteTable(f)
		b.table(f, want.flags, true)
		f.diffContents(b, &table{}, want, func(string, ...any) {})
		return lines
	}
	if have.orphan() && want.flags&flagOwner != 0 {
		b.table(f, want.flags, false) // takes it over
	}
	f.diffContents(b, have, want, note)
	return lines
}

// orphan tells whether the table's owner has died.
func (t *table) orphan() bool { return t.flags == flagPersist }

// beyondRepair says why have can't be turned into want piece by piece, "" if
// it can. What is done piece by piece no packet notices. When a table is made
// anew, one that is just then between the old and the new chain may pass both
// untranslated; the guard of the input then drops it.
func (t *table) beyondRepair(want *table) string {
	if t.strange != "" {
		return t.strange
	}
	if t.flags != want.flags && !t.orphan() {
		return fmt.Sprintf("flags %#x", t.flags)
	}
	for name, s := range want.sets {
		if held, ok := t.sets[name]; ok && held.kind != s.kind {
			return fmt.Sprintf("type of set %s", name)
		}
	}
	for name, c := range want.chains {
		if held, ok := t.chains[name]; ok && held.hook != c.hook {
			return fmt.Sprintf("hook of chain %s", name)
		}
	}
	return ""
}

// diffContents does it in the order that the kernel needs: what refers to a
// chain or set goes before it and comes after it.
func (f family) diffContents(b *batch, have, want *table, note func(string, ...any)) {
	added := map[string]map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(want.sets)) {
		s, held := want.sets[name], have.sets[name]
		if held == nil {
			held = &set{}
			b.set(f, name, s.kind)
			note("set %s was missing", name)
		}
		var removed map[string]string
		removed, added[name] = diffElements(held.elements, s.elements)
		b.elements(f, name, s.kind, removed, true)
		if have.sets[name] != nil {
			b.doubtful = b.doubtful || len(added[name]) > 0
			describe(note, name, s.kind, removed, added[name])
		}
	}
	var rewritten []string
	for _, name := range slices.Sorted(maps.Keys(want.chains)) {
		held, ok := have.chains[name]
		switch {
		case !ok:
			b.chain(f, name, want.chains[name].hook)
			note("chain %s was missing", name)
		case !slices.Equal(held.rules, want.chains[name].rules):
			b.deleteRules(f, name)
			note("chain %s was altered", name)
		default:
			continue
		}
		rewritten = append(rewritten, name)
	}
	foreignChains := leftOver(have.chains, want.chains)
	for _, name := range foreignChains {
		b.deleteRules(f, name)
		note("chain %s was left over", name)
	}
	for _, name := range slices.Sorted(maps.Keys(added)) {
		b.elements(f, name, want.sets[name].kind, added[name], false)
	}
	for _, name := range rewritten {
		for _, r := range want.chains[name].rules {
			b.rule(f, name, r)
		}
	}
	foreignSets := leftOver(have.sets, want.sets)
	for _, name := range foreignSets {
		// Its elements may refer to a chain that goes.
		b.deleteSet(f, name)
		note("set %s was left over", name)
	}
	for _, name := range foreignChains {
		b.deleteChain(f, name)
	}
}

// leftOver is the names in have that are not in want, sorted.
func leftOver[V any](have, want map[string]V) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, ok := want[name]; !ok {
			names = append(names, name)
		}
	}
	return names
}

// diffElements is what to take out first, and to add then: an element whose
// value differs is in both.
func diffElements(have, want map[string]string) (removed, added map[string]string) {
	removed, added = map[string]string{}, map[string]string{}
	for key, value := range have {
		if wanted, ok := want[key]; !ok || wanted != value {
			removed[key] = value
		}
	}
	for key, value := range want {
		if held, ok := have[key]; !ok || held != value {
			added[key] = value
		}
	}
	return removed, added
}

func describe(note func(string, ...any), name string, kind setKind, removed, added map[string]string) {
	var missing, altered, left []string
	for key := range added {
		if _, ok := removed[key]; ok {
			altered = append(altered, kind.spell(key))
		} else {
			missing = append(missing, kind.spell(key))
		}
	}
	for key := range removed {
		if _, ok := added[key]; !ok {
			left = append(left, kind.spell(key))
		}
	}
	for _, fault := range []struct {
		what string
		keys []string
	}{{"missing", missing}, {"altered", altered}, {"left over", left}} {
		if len(fault.keys) > 0 {
			note("set %s: %s: %s", name, fault.what, some(fault.keys))
		}
	}
}

// some names a few of many.
func some(names []string) string {
	const few = 5
	slices.Sort(names)
	if len(names) <= few {
		return strings.Join(names, " ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], " "), len(names)-few)
}
