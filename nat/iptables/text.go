package iptables

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A table is what one of the kernel's tables should hold of ours. Chains
// whose names begin with prefix are ours, and so are the jumps to them from
// built-in chains.
type table struct {
	name, prefix string
	chains       map[string][]string
	jumps        []jump // at most one from each built-in chain
}

// A held is what one of the kernel's tables does hold.
type held struct {
	chains  map[string][]string // without the rules' leading "-A CHAIN "
	builtin map[string]bool
	drops   map[string]bool // built-in chains whose policy is DROP
}

// A user-defined chain takes two entries of a table besides its rules: its
// name, and the return at its end.
const chainEntries = 2

// size is how many entries of the table a chain takes, 0 if there is none.
func (h held) size(chain string) int {
	rules, exists := h.chains[chain]
	switch {
	case !exists:
		return 0
	case h.builtin[chain]:
		return len(rules)
	}
	return len(rules) + chainEntries
}

// entries is how many there are in the table, but for those of an empty one.
func (h held) entries() (n int) {
	for chain := range h.chains {
		n += h.size(chain)
	}
	return n
}

// parse reads the output of iptables-save, by table.
func parse(save string) map[string]held {
	tables := map[string]held{}
	var t held
	for line := range strings.Lines(save) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			t = held{chains: map[string][]string{}, builtin: map[string]bool{}, drops: map[string]bool{}}
			tables[line[1:]] = t
		case strings.HasPrefix(line, ":"):
			chain, policy, _ := strings.Cut(line[1:], " ")
			t.chains[chain] = nil
			t.builtin[chain] = !strings.HasPrefix(policy, "-")
			t.drops[chain] = strings.HasPrefix(policy, "DROP")
		case strings.HasPrefix(line, "-A "):
			chain, rule, _ := strings.Cut(line[len("-A "):], " ")
			t.chains[chain] = append(t.chains[chain], rule)
		}
	}
	return tables
}

// repair writes into b what makes a table hold what it should, and returns a
// line for each thing that was wrong.
func (t table) repair(have held, b *batch) []string {
	var wrong []string
	note := func(format string, args ...any) { wrong = append(wrong, t.name+": "+fmt.Sprintf(format, args...)) }
	sec := b.section(t.name)
	for _, chain := range slices.Sorted(maps.Keys(t.chains)) {
		rules, exists := have.chains[chain]
		if exists && slices.EqualFunc(rules, t.chains[chain], sameRule) {
			continue
		}
		if exists {
			note("chain %s was altered", chain)
		} else {
			note("chain %s was missing", chain)
		}
		sec.set(chain, have.size(chain), t.chains[chain])
	}
	for _, chain := range slices.Sorted(maps.Keys(have.chains)) {
		if _, wanted := t.chains[chain]; !wanted && strings.HasPrefix(chain, t.prefix) {
			note("chain %s was left over", chain)
			sec.delete(chain, have.size(chain))
		}
	}
	wanted := map[string]jump{}
	for _, j := range t.jumps {
		wanted[j.from] = j
	}
	for _, from := range slices.Sorted(maps.Keys(have.builtin)) {
		if _, ok := wanted[from]; !ok && have.builtin[from] {
			for _, rule := range t.ours(have.chains[from]) {
				note("jump from %s (%s) was left over", from, rule)
				sec.removeRule(from, rule)
			}
		}
	}
	for _, j := range t.jumps {
		if fault, place := t.check(j, have.chains[j.from]); fault != "" {
			note("jump from %s to %s %s", j.from, j.to, fault)
			for _, rule := range t.ours(have.chains[j.from]) {
				sec.removeRule(j.from, rule)
			}
			sec.insertRule(j.from, place, j.rule())
		}
	}
	return wrong
}

// ours is the rules that jump into our chains.
func (t table) ours(rules []string) []string {
	return slices.DeleteFunc(slices.Clone(rules), func(r string) bool { return !t.isOurs(r) })
}

func (t table) isOurs(rule string) bool { return strings.HasPrefix(targetOf(rule), t.prefix) }

// check says what is wrong with a jump among the rules of its built-in
// chain, "" if nothing, and at which position, from 1, it belongs.
func (t table) check(j jump, rules []string) (fault string, place int) {
	others := slices.DeleteFunc(slices.Clone(rules), t.isOurs)
	place = 1
	for i, rule := range others {
		if slices.Contains(j.after, targetOf(rule)) {
			place = i + 2
		}
	}
	ours := t.ours(rules)
	switch {
	case len(ours) == 0:
		return "was missing", place
	case len(ours) > 1:
		return fmt.Sprintf("was there %d times", len(ours)), place
	case !sameRule(ours[0], j.rule()):
		return "was altered", place
	}
	if at := slices.IndexFunc(rules, t.isOurs) + 1; j.first && at != place {
		return fmt.Sprintf("was at position %d", at), place
	}
	return "", place
}

// targetOf is the chain or action a rule goes to.
func targetOf(rule string) string {
	fields := strings.Fields(rule)
	for i, f := range fields[:max(len(fields)-1, 0)] {
		if f == "-j" || f == "-g" {
			return fields[i+1]
		}
	}
	return ""
}

// sameRule compares two rules whatever quotes and order of options a version
// of iptables-save chooses.
func sameRule(a, b string) bool {
	return a == b || slices.Equal(options(a), options(b))
}

// options is a rule's options, each with its values and its "!", sorted.
func options(rule string) []string {
	var opts []string
	negated := false
	for _, f := range strings.Fields(strings.ReplaceAll(rule, `"`, "")) {
		switch {
		case f == "!" || strings.HasPrefix(f, "-") && !negated:
			opts = append(opts, f)
		case len(opts) == 0:
			opts = []string{f}
		default:
			opts[len(opts)-1] += " " + f
		}
		negated = f == "!"
	}
	slices.Sort(opts)
	return opts
}

// A batch is the input of one iptables-restore: a transaction per table.
type batch struct{ sections []*section }

// A section is one table's part of a batch. Its order lets a chain go
// together with the rules that jump to it.
type section struct {
	table                                   string
	declare, remove, fill, insert, deletion []string
	grows                                   int // entries that the table will have more
}

func (b *batch) section(table string) *section {
	for _, s := range b.sections {
		if s.table == table {
			return s
		}
	}
	s := &section{table: table}
	b.sections = append(b.sections, s)
	return s
}

// set makes a chain, which takes size entries now, hold exactly these rules:
// declaring it creates it, or empties the one that is there.
func (s *section) set(chain string, size int, rules []string) {
	s.grows += chainEntries + len(rules) - size
	s.declare = append(s.declare, ":"+chain+" - [0:0]")
	for _, r := range rules {
		s.fill = append(s.fill, "-A "+chain+" "+r)
	}
}

// delete takes a chain away. It is declared first, which empties it and
// makes its absence no error.
func (s *section) delete(chain string, size int) {
	s.set(chain, size, nil)
	s.grows -= chainEntries
	s.deletion = append(s.deletion, "-X "+chain)
}

func (s *section) removeRule(chain, rule string) {
	s.grows--
	s.remove = append(s.remove, "-D "+chain+" "+rule)
}

func (s *section) insertRule(chain string, place int, rule string) {
	s.grows++
	s.insert = append(s.insert, fmt.Sprintf("-I %s %d %s", chain, place, rule))
}

// String is the batch as iptables-restore reads it; "" if it changes nothing.
func (b *batch) String() string {
	var out strings.Builder
	for _, s := range b.used() {
		fmt.Fprintf(&out, "*%s\n%s\nCOMMIT\n", s.table, strings.Join(s.lines(), "\n"))
	}
	return out.String()
}

// used is the sections that change something.
func (b *batch) used() []*section {
	return slices.DeleteFunc(slices.Clone(b.sections), func(s *section) bool { return len(s.lines()) == 0 })
}

func (s *section) lines() []string {
	return slices.Concat(s.declare, s.remove, s.fill, s.insert, s.deletion)
}
