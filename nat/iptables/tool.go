package iptables

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	goiptables "github.com/coreos/go-iptables/iptables"
)

// A tool reads and writes the rules of one family.
type tool struct {
	family        family
	save, restore string // paths of the programs
	// legacy says that the rules are in ip_tables, not nf_tables.
	legacy bool
	// ledger is told of all reads and writes while there is a Watcher;
	// otherwise nil.
	ledger ledger
	// wrote is told what was written; nil if nobody wants to know.
	wrote func(*batch)
	// run starts a program and returns what it printed.
	run func(stdin, path string, args ...string) (string, error)
}

// tools is the tool of each family.
type tools [2]tool

func (t tools) of(f family) tool {
	if f.v6 {
		return t[1]
	}
	return t[0]
}

// find looks for the programs that belong to the iptables of that name or
// path, "" being the one on PATH, and tries whether they can be used.
func find(path string) (tools, error) {
	if path == "" {
		path = "iptables"
	}
	path, err := exec.LookPath(path)
	if err != nil {
		return tools{}, fmt.Errorf("nat: find iptables: %w", err)
	}
	dir, base := filepath.Split(path)
	suffix, ok := strings.CutPrefix(base, "iptables")
	if !ok {
		return tools{}, fmt.Errorf("nat: find iptables: %q is not named iptables…", path)
	}
	ipt, err := goiptables.New(goiptables.Path(path))
	if err != nil {
		return tools{}, fmt.Errorf("nat: find iptables: %w", err)
	}
	// Since 1.8 there are two flavours, and iptables-restore waits for the lock.
	if major, minor, patch := ipt.GetIptablesVersion(); major == 1 && minor < 8 {
		return tools{}, fmt.Errorf("nat: find iptables: %s is version %d.%d.%d, need 1.8", path, major, minor, patch)
	}
	// Permission and kernel support are better missed now than at the first container.
	if _, err := ipt.ListChains(tableNat); err != nil {
		return tools{}, fmt.Errorf("nat: use iptables: %w", err)
	}
	var found tools
	for i, f := range families() {
		name := dir + "ip" + f.String() + "tables" + suffix
		found[i] = tool{family: f, save: name + "-save", restore: name + "-restore", run: run}
	}
	flavour, err := flavourOf(path, found[0])
	for i := range found {
		found[i].legacy = flavour == "legacy"
	}
	return found, err
}

func families() [2]family { return [2]family{{v6: false}, {v6: true}} }

// flavourOf is which of the kernel's two rule engines an iptables writes to:
// "nf_tables" or "legacy". Companions that write to the other are refused.
func flavourOf(path string, t tool) (flavour string, err error) {
	for i, program := range []string{path, t.save, t.restore} {
		version, err := run("", program, "--version")
		if err != nil {
			return "", fmt.Errorf("nat: find iptables: %w", err)
		}
		_, after, _ := strings.Cut(strings.TrimRight(version, ")\n"), "(")
		if i > 0 && after != flavour {
			return "", fmt.Errorf("nat: find iptables: %s and %s differ in flavour: %s and %s", path, program, flavour, after)
		}
		flavour = after
	}
	return flavour, nil
}

func run(stdin, path string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(path), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// lockWait is how long another program may hold the lock of
// iptables-legacy, in seconds. A large save takes a tenth of one.
const lockWait = "10"

// write changes rules as b says, per table all or nothing.
func (t tool) write(b *batch) error {
	text := b.String()
	if text == "" {
		return nil
	}
	restore := func() error {
		_, err := t.run(text, t.restore, "--noflush", "--wait="+lockWait)
		if err == nil && t.wrote != nil {
			t.wrote(b)
		}
		return err
	}
	if t.ledger == nil {
		return restore()
	}
	return t.ledger.write(t.family, b, restore)
}

// converge reads the rules, makes the tables hold what they should, and
// returns a line for each thing that was wrong. If needed is false, an unusable
// family is no error: where rules can't be read there are none.
func (t tool) converge(needed bool, want ...table) ([]string, error) {
	have, lines, b, err := t.compare(needed, want)
	if have == nil {
		return nil, err
	}
	if t.ledger != nil {
		t.ledger.read(t.family, have)
	}
	if err := t.write(b); err != nil {
		return nil, err
	}
	return lines, nil
}

// check is converge without a change.
func (t tool) check(needed bool, want ...table) ([]string, error) {
	_, lines, _, err := t.compare(needed, want)
	return lines, err
}

// compare reads the rules, and returns them with a line for each thing that is
// wrong and what mends it. There are none where they can't be read.
func (t tool) compare(needed bool, want []table) (have map[string]held, lines []string, b *batch, err error) {
	// All tables in one go, as a rule: naming one would load it into the
	// kernel. But one that is needed is there; and without a name
	// iptables-nft-save reads foreign sets, too (10,000 elements: 2 ms).
	var args []string
	if needed && len(want) == 1 {
		args = []string{"-t", want[0].name}
	}
	text, err := t.run("", t.save, args...)
	if err != nil && !needed {
		return nil, nil, nil, nil
	}
	if err != nil {
		return nil, nil, nil, err
	}
	have, b = parse(text), &batch{}
	for _, w := range want {
		lines = append(lines, w.repair(have[w.name], b)...)
	}
	if t.family.v6 {
		for i := range lines {
			lines[i] = "IPv6 " + lines[i]
		}
	}
	return have, lines, b, nil
}
