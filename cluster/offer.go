package cluster

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/extip/extip/store"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// An offer is the value of "offers/ADDRESS", an answer that of "answers/ADDRESS".
// The id says which answer belongs to which offer.
type (
	offer struct {
		ID string `json:"id"`
		store.Offer
	}
	answer struct {
		ID string `json:"id"`
		store.Acceptance
		Error string `json:"error,omitempty"`
	}
)

// Offer asks another host whether its container can have an address, and waits
// for its answer. The offer stands until Withdraw takes it back.
func (m *Member) Offer(ctx context.Context, o store.Offer) (store.Acceptance, error) {
	id, heard := rand.Text(), make(chan answer, 1)
	m.mu.Lock()
	_, err := m.leaseOf(o.To)
	m.asked[id] = heard
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.asked, id)
		m.mu.Unlock()
	}()
	if err != nil {
		return store.Acceptance{}, err
	}
	version, err := m.put(ctx, offersPrefix+o.Address.String(), offer{id, o})
	if err != nil {
		return store.Acceptance{}, err
	}
	m.mu.Lock()
	m.offers[o.Address] = version
	m.mu.Unlock()
	for {
		select {
		case a := <-heard:
			if a.Error != "" {
				return a.Acceptance, errors.New(a.Error)
			}
			return a.Acceptance, nil
		case <-ctx.Done():
			return store.Acceptance{}, fmt.Errorf("host %s doesn't answer: %w", o.To, ctx.Err())
		case <-time.After(awaitInterval):
			m.mu.Lock()
			_, err := m.leaseOf(o.To)
			m.mu.Unlock()
			if err != nil {
				return store.Acceptance{}, err
			}
		}
	}
}

// Withdraw takes an offer of this host back. It doesn't wait: whatever can't be
// done ends with the lease.
func (m *Member) Withdraw(a netip.Addr) {
	m.mu.Lock()
	version, stands := m.offers[a]
	delete(m.offers, a)
	m.mu.Unlock()
	if !stands {
		return
	}
	offer, answer := m.config.Prefix+offersPrefix+a.String(), m.config.Prefix+answersPrefix+a.String()
	go func() {
		_ = m.door.ask(context.Background(), func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(offer), "=", version)).
				Then(clientv3.OpDelete(offer), clientv3.OpDelete(answer)).Commit()
			return err
		})
	}()
}

// hear hands an answer to who waits for it. m.mu is held.
func (m *Member) hear(key string) {
	var a answer
	if _, ok := m.decode(key, &a); !ok {
		return
	}
	if heard := m.asked[a.ID]; heard != nil {
		delete(m.asked, a.ID)
		heard <- a
	}
}

// takeUp has offers to this host answered, if they are among keys.
func (m *Member) takeUp(keys []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range keys {
		text, isOffer := strings.CutPrefix(key, offersPrefix)
		if !isOffer || m.follower == nil {
			continue
		}
		var o offer
		var given answer
		_, stands := m.decode(key, &o)
		_, answered := m.decode(answersPrefix+text, &given)
		if !stands {
			delete(m.answered, text)
		}
		if !stands || o.To != m.config.Host || answered && given.ID == o.ID || m.answered[text] == o.ID {
			continue
		}
		m.answered[text] = o.ID
		go m.answer(m.follower, o)
	}
}

// answer answers an offer. One that can't be sent is missed by who waits for it.
func (m *Member) answer(f Follower, o offer) {
	given := answer{ID: o.ID}
	var err error
	if given.Acceptance, err = f.Offered(o.Offer); err != nil {
		given.Error = err.Error()
	}
	_, _ = m.put(context.Background(), answersPrefix+o.Address.String(), given)
}

// put writes a value that ends with this host's lease.
func (m *Member) put(ctx context.Context, key string, v any) (version int64, err error) {
	value, err := json.Marshal(v)
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	lease, proven := m.lease, m.fence.Proven(time.Now())
	if !proven {
		err = m.apart(m.trouble)
	}
	m.mu.Unlock()
	if err != nil {
		return 0, err
	}
	err = m.door.ask(ctx, func(ctx context.Context, c *clientv3.Client) error {
		response, err := c.Put(ctx, m.config.Prefix+key, string(value), clientv3.WithLease(lease))
		if err == nil {
			version = response.Header.Revision
		}
		return err
	})
	return version, err
}
