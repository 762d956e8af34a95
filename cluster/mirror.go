package cluster

import (
	"bytes"
	"maps"
	"slices"
	"strings"
)

// A mirror is what this host knows of the ledger: pure, without lock or clock.
// It is told the same things several times and out of order, by the watch, by
// the answers to own requests, and by whole readings; what counts is the
// revision of the ledger at which each thing became so.
type mirror struct {
	entries map[string]entry
	// gone are deletions that the watch has not come to yet, by their
	// revision: something older that is told later must not bring them back.
	gone map[string]int64
	// seen is the revision up to which everything is known, latest the last one
	// of which anything is.
	seen, latest int64
}

// An entry is a value and the revision at which it became that.
type entry struct {
	value   []byte
	version int64
	lease   int64
}

// A change is what became of a key. An entry with a version and no value stands
// for a deletion.
type change struct {
	key string
	entry
}

// apply takes in changes, in any order, and returns the keys that are different now.
func (m *mirror) apply(changes ...change) (changed []string) {
	for _, c := range changes {
		m.latest = max(m.latest, c.version)
		had, known := m.entries[c.key]
		if c.version <= m.seen || c.version <= had.version || c.version <= m.gone[c.key] {
			continue
		}
		if c.value == nil {
			m.remember(c.key, c.version)
			delete(m.entries, c.key)
		} else {
			if m.entries == nil {
				m.entries = map[string]entry{}
			}
			m.entries[c.key] = c.entry
			delete(m.gone, c.key)
		}
		if known || c.value != nil {
			changed = append(changed, c.key)
		}
	}
	return changed
}

func (m *mirror) remember(key string, version int64) {
	if m.gone == nil {
		m.gone = map[string]int64{}
	}
	m.gone[key] = version
}

// watched takes in what the watch tells, which is all that has happened up to
// a revision.
func (m *mirror) watched(revision int64, changes ...change) (changed []string) {
	changed = m.apply(changes...)
	m.advance(revision)
	return changed
}

func (m *mirror) advance(revision int64) {
	m.seen, m.latest = max(m.seen, revision), max(m.latest, revision)
	maps.DeleteFunc(m.gone, func(_ string, version int64) bool { return version <= m.seen })
}

// reload takes in everything that there was at a revision. Of what was known, only
// what is later than that stays; and not even that, if the ledger is one of the
// past, from a backup: then it is at an earlier revision than the latest that was
// known before it was read.
func (m *mirror) reload(latest, revision int64, all []change) (changed []string) {
	before := m.entries
	m.entries = make(map[string]entry, len(all))
	restored := revision < latest
	if restored {
		m.seen, m.latest, m.gone = 0, 0, nil
	}
	for _, c := range all {
		if c.version > m.gone[c.key] {
			m.entries[c.key] = c.entry
		}
	}
	for key, e := range before {
		if e.version > revision && !restored {
			m.entries[key] = e
		}
		if _, ok := m.entries[key]; !ok {
			changed = append(changed, key)
		}
	}
	for key, e := range m.entries {
		if had, ok := before[key]; !ok || had.version != e.version || !bytes.Equal(had.value, e.value) {
			changed = append(changed, key)
		}
	}
	m.advance(revision)
	slices.Sort(changed)
	return changed
}

// get is what a key has, a version of 0 if nothing.
func (m *mirror) get(key string) entry { return m.entries[key] }

// keys are those with a prefix, in order.
func (m *mirror) keys(prefix string) []string {
	var list []string
	for key := range m.entries {
		if strings.HasPrefix(key, prefix) {
			list = append(list, key)
		}
	}
	slices.Sort(list)
	return list
}
