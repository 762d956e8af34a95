package nftables

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// change makes a change in the model and in the kernel. After an error both
// are as before.
func (b *Backend) change(what string, c nat.Change) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.model.Effective(c)
	if b.agreed && e.Empty() {
		return nil
	}
	if err := b.write(e); err != nil {
		b.model.apply(e.Inverse())
		return fmt.Errorf("nat: %s: %w", what, err)
	}
	for _, m := range e.Drop.Mappings {
		if _, moved := b.model.Mappings[m.External]; !moved {
			b.tally.Forget(m.External)
		}
	}
	return nil
}

// write applies an effective change to the model, and does so to the kernel:
// by the difference, or by comparing all where it holds something else than
// it was left with.
func (b *Backend) write(e nat.Change) error {
	if !b.agreed {
		b.model.apply(e)
		_, err := b.converge(true)
		return err
	}
	before := b.views(e)
	b.model.apply(e)
	after := b.views(e)
	bt := newBatch()
	for i, f := range families() {
		f.diff(bt, before[i], after[i])
	}
	return b.send(bt)
}

// disagreement tells whether an error shows that the kernel holds something
// else than the model.
func disagreement(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EPERM)
}

// views is the part of either table that a change may alter.
func (b *Backend) views(e nat.Change) (views [2]*table) {
	for i, f := range families() {
		// Without networks, a mapping may be the table's first or last.
		framed := e.Structural() || b.model.subnets[i] == 0
		views[i] = b.model.view(f, framed, addrs(e), filters(e))
		b.flag(views[i])
	}
	return views
}

func (b *Backend) flag(t *table) *table {
	if t != nil {
		t.flags = b.flags
	}
	return t
}

// A keeper makes the kernel hold tables as they are wanted. What owns it
// guards it.
type keeper struct {
	kernel   *kernel
	commit   func(*batch) error // kernel.commit, but in tests
	families []family
	want     func(family) *table // nil if the family needs none
	// agreed says that the kernel was left holding what is wanted; if not, it
	// has to be read before it is changed.
	agreed bool
	// seen is the generation at which it certainly did; 0 if others have
	// written since.
	seen uint32
}

// send commits a difference between what was wanted, and was there, and what
// is now; if something else turns out to be there, all is compared.
func (b *keeper) send(bt *batch) error {
	if bt.empty() {
		return nil
	}
	err := b.commit(bt)
	if err == nil {
		b.committed(b.seen)
		return nil
	}
	b.agreed = false // an answer that got lost is an error, too
	if !disagreement(err) {
		return err
	}
	_, err = b.converge(true)
	return err
}

// patience is how often the kernel is read until it can be trusted. What is
// read last has to do: if it was not true, adding what is there already
// changes nothing, and taking away what is not is refused.
const patience = 5

// converge makes the kernel hold what is wanted, whatever it holds now, in one
// transaction, and returns a line for each thing that was wrong. Without write it
// only looks.
func (b *keeper) converge(write bool) ([]string, error) {
	var (
		wrong   []string // at the last look
		refused error    // of a piecemeal repair
	)
	for try := 1; ; try++ {
		generation, err := b.kernel.generation()
		if err != nil {
			return nil, err
		}
		if b.agreed && generation == b.seen {
			return nil, nil
		}
		bt := newBatch()
		lines, err := b.compare(bt, refused)
		now, gerr := b.kernel.generation()
		// Two looks must agree on what is missing: while a hash table grows,
		// some elements of it are not shown.
		trusted := now == generation && (!bt.doubtful || slices.Equal(lines, wrong))
		wrong = lines
		switch {
		case gerr != nil:
			return nil, gerr
		case !trusted && try < patience:
			continue
		case now != generation:
			generation = 0
		}
		if !trusted {
			bt.begun = nil // perhaps they were there, and go on
		}
		if err != nil {
			return nil, err
		}
		if bt.empty() {
			b.agreed, b.seen = true, generation
			return nil, nil
		}
		if !write {
			return lines, nil
		}
		if err = b.commit(bt); err == nil {
			b.committed(generation)
			return lines, nil
		}
		if now, gerr = b.kernel.generation(); gerr != nil || try >= patience || now == generation && refused != nil {
			return nil, errors.Join(err, gerr)
		}
		if now == generation {
			refused = err // else somebody was faster
		}
	}
}

// compare adds to a batch what makes the kernel hold what is wanted. If it has
// refused to be mended, tables are made anew.
func (b *keeper) compare(bt *batch, refused error) (lines []string, err error) {
	for _, f := range b.families {
		have, err := b.kernel.read(f)
		if err != nil {
			return nil, err
		}
		if have != nil && have.foreign {
			return nil, fmt.Errorf("table %s %s belongs to another process", f, tableName)
		}
		if have != nil && refused != nil {
			have.strange = refused.Error()
		}
		lines = append(lines, f.diff(bt, have, b.want(f))...)
	}
	return lines, nil
}

// committed notes that the kernel holds what is wanted after our commit, which was
// the next change after a generation at which it held what we took it for.
func (b *keeper) committed(after uint32) {
	b.agreed, b.seen = true, 0
	// If others have changed anything since, a look will be needed.
	if now, err := b.kernel.generation(); err == nil && after != 0 && now == after+1 {
		b.seen = now
	}
}

// probe tries an IPv4 table, under another name, in a transaction that leaves
// nothing.
func (k *kernel) probe(flags uint32, sample nat.State) error {
	f := family{}
	want := modelOf(sample, counting{}).whole(f)
	want.flags = flags
	return k.try(f, want)
}

// try makes a table under another name in a transaction that leaves nothing.
func (k *kernel) try(f family, want *table) error {
	b := &batch{name: tableName + "-probe"}
	f.diff(b, nil, want)
	b.deleteTable(f)
	return k.commit(b)
}
