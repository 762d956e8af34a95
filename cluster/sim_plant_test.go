package cluster

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"strings"

	"github.com/extip/extip/store"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A plant is a fault that the simulation has to find. The zero value is none.
type plant string

// Faults.
const (
	noMargin      plant = "a lease is believed to hold for all of its TTL"
	blindRelease  plant = "claims are released whoever has them"
	blindRetry    plant = "what is stale is written all the same"
	alwaysDefends plant = "an address is always defended"
	oldNews       plant = "the mirror goes back"
	neverConfirms plant = "nobody is asked while apart"
	believes      plant = "what is known of an address that was handed over without an answer is believed"
	assumesMade   plant = "what was asked without an answer counts as made"
)

func (p plant) mayDefend(m *Member, a netip.Addr) bool { return p == alwaysDefends || m.MayDefend(a) }

// holder is who has an address, as far as is known.
func (p plant) holder(life *program, a netip.Addr) (c store.Claim, ok bool) {
	if p != believes {
		return life.store.Holder(a)
	}
	value, _ := life.member.Get(claimsPrefix + a.String())
	return c, value != nil && json.Unmarshal(value, &c) == nil
}

func (p plant) confirms() bool { return p != neverConfirms }

// proven is called when a lease was granted or renewed.
func (p plant) proven(life *program) {
	if m := life.member; p == noMargin && !m.fence.ProvenUntil.IsZero() && !life.marked.Equal(m.fence.ProvenUntil) {
		m.fence.ProvenUntil = m.fence.ProvenUntil.Add(m.ttl / 10)
		life.marked = m.fence.ProvenUntil
	}
}

// watched is called before the watch tells something.
func (p plant) watched(m *Member, events []*clientv3.Event) {
	if p != oldNews {
		return
	}
	m.mirror.seen, m.mirror.gone = 0, nil
	for _, e := range events {
		delete(m.mirror.entries, strings.TrimPrefix(string(e.Kv.Key), m.config.Prefix))
	}
}

func (p plant) ledger(m *Member) store.Ledger {
	switch p {
	case blindRelease, blindRetry, assumesMade:
		return plantedLedger{m, p}
	}
	return m
}

type plantedLedger struct {
	*Member
	plant plant
}

func (l plantedLedger) Commit(read map[string]int64, writes []store.Write) error {
	if l.plant == blindRelease {
		read = maps.Clone(read)
		for _, w := range writes {
			if w.Value == nil && strings.HasPrefix(w.Key, claimsPrefix) {
				delete(read, w.Key)
			}
		}
	}
	err := l.Member.Commit(read, writes)
	switch {
	case l.plant == blindRetry && errors.Is(err, store.ErrStale) && len(writes) > 0:
		return l.Member.Commit(nil, writes)
	case l.plant == assumesMade && errors.Is(err, store.ErrApart):
		return nil
	}
	return err
}
