package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/extip/extip/store"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
)

// Host is this host's name in the ledger.
func (m *Member) Host() string { return m.config.Host }

// Get is a value as this host knows it, and its version; nil and 0 if there is
// none. It doesn't wait.
func (m *Member) Get(key string) (value []byte, version int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.mirror.get(key)
	return e.value, e.version
}

// Scan calls fn for the keys with a prefix, in order, as this host knows them,
// until fn returns an error, which it returns. It doesn't wait.
func (m *Member) Scan(prefix string, fn func(key string, value []byte) error) error {
	m.mu.Lock()
	keys := m.mirror.keys(prefix)
	values := make([][]byte, len(keys))
	for i, key := range keys {
		values[i] = m.mirror.get(key).value
	}
	m.mu.Unlock()
	for i, key := range keys {
		if err := fn(key, values[i]); err != nil {
			return err
		}
	}
	return nil
}

// Notify has fn called after changes that Get knows of, with the keys of the
// store's that have changed, while Run runs. Calls don't overlap.
func (m *Member) Notify(fn func(keys []string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.notify = append(m.notify, fn)
}

// Commit makes all writes at once if everything that was read has its version
// still. Its errors are those of store.Ledger; it waits for requestTimeout at most.
func (m *Member) Commit(read map[string]int64, writes []store.Write) error {
	t, err := m.plan(read, writes)
	if err != nil {
		return err
	}
	var response *clientv3.TxnResponse
	made, again := false, false
	err = m.door.ask(context.Background(), func(ctx context.Context, c *clientv3.Client) (err error) {
		response, err = c.Txn(ctx).If(t.compares...).Then(t.then...).Else(t.otherwise...).Commit()
		if err == nil {
			made = response.Succeeded || again && t.alreadyMade(m, response)
		}
		again = true // unless this was an answer
		return err
	})
	switch {
	case err != nil:
		return m.refused(err, t)
	case response.Succeeded:
		m.learn(func(mirror *mirror) []string { return mirror.apply(t.made(response.Header.Revision)...) })
	default:
		m.learn(func(mirror *mirror) []string { return mirror.apply(m.found(t, response)...) })
	}
	m.compareHistory(response.Header.Revision, t.latest)
	if !made {
		return store.ErrStale
	}
	return nil
}

// compareHistory has the ledger be read anew if it is at an earlier revision than
// the latest of which anything was known when it was asked: somebody has put back a
// backup. An endpoint that is behind the others can look so; it does no harm.
func (m *Member) compareHistory(revision, latest int64) {
	if revision < latest {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.restart(errors.New("etcd is one of the past"))
	}
}

// A transaction is a Commit in etcd's terms.
type transaction struct {
	compares        []clientv3.Cmp
	then, otherwise []clientv3.Op
	// keys are those that otherwise gets, in its order.
	keys   []string
	writes []store.Write
	// lease is that of this host, on is that of each write.
	lease clientv3.LeaseID
	on    []clientv3.LeaseID
	// latest is the last revision of which this host knew anything before.
	latest int64
}

// plan makes a transaction. An error says that it can't be tried.
func (m *Member) plan(read map[string]int64, writes []store.Write) (*transaction, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.fence.Proven(time.Now()) {
		return nil, m.apart(m.trouble)
	}
	t := &transaction{writes: writes, lease: m.lease, latest: m.mirror.latest, on: make([]clientv3.LeaseID, len(writes))}
	look := map[string]bool{}
	for key, version := range read {
		t.compares = append(t.compares, clientv3.Compare(clientv3.ModRevision(m.config.Prefix+key), "=", version))
		look[key] = true
	}
	for i, w := range writes {
		key := m.config.Prefix + w.Key
		look[w.Key] = true
		if w.Value == nil {
			t.then = append(t.then, clientv3.OpDelete(key))
			continue
		}
		var options []clientv3.OpOption
		if w.Host != "" {
			var err error
			if t.on[i], err = m.leaseOf(w.Host); err != nil {
				return nil, err
			}
			options = append(options, clientv3.WithLease(t.on[i]))
		}
		t.then = append(t.then, clientv3.OpPut(key, string(w.Value), options...))
	}
	t.keys = slices.Sorted(maps.Keys(look))
	for _, key := range t.keys {
		t.otherwise = append(t.otherwise, clientv3.OpGet(m.config.Prefix+key))
	}
	if len(t.then) == 0 {
		// A transaction that reads nothing is answered by an endpoint that is
		// cut off from the others, too.
		t.then = append(t.then, clientv3.OpGet(m.config.Prefix+alivePrefix+m.config.Host, clientv3.WithKeysOnly()))
	}
	return t, nil
}

// leaseOf is the lease of a host that lives. m.mu is held.
func (m *Member) leaseOf(host string) (clientv3.LeaseID, error) {
	if host == m.config.Host {
		return m.lease, nil
	}
	var l life
	if _, ok := m.decode(alivePrefix+host, &l); !ok {
		return 0, fmt.Errorf("host %s is not alive", host)
	}
	return l.lease(), nil
}

// made is what success has changed.
func (t *transaction) made(revision int64) []change {
	var list []change
	for i, w := range t.writes {
		list = append(list, change{w.Key, entry{value: w.Value, version: revision, lease: int64(t.on[i])}})
	}
	return list
}

// found is what otherwise got.
func (m *Member) found(t *transaction, response *clientv3.TxnResponse) []change {
	var list []change
	for i, r := range response.Responses {
		if kvs := r.GetResponseRange().Kvs; len(kvs) > 0 {
			list = append(list, m.changeOf(kvs[0]))
		} else {
			list = append(list, change{t.keys[i], entry{version: response.Header.Revision}})
		}
	}
	return list
}

// alreadyMade tells whether what stands in the way is what an earlier attempt,
// which nobody answered, has written: all of it, at one revision.
func (t *transaction) alreadyMade(m *Member, response *clientv3.TxnResponse) bool {
	there := map[string]change{}
	for _, c := range m.found(t, response) {
		there[c.key] = c
	}
	var revision int64
	for _, w := range t.writes {
		c := there[w.Key]
		if !bytes.Equal(c.value, w.Value) || (c.value == nil) != (w.Value == nil) {
			return false
		}
		if w.Value != nil && revision != 0 && c.version != revision {
			return false
		}
		if w.Value != nil {
			revision = c.version
		}
	}
	return revision != 0
}

// changeOf is a key's value as the mirror has it; of a deletion etcd tells the
// key and the revision only.
func (m *Member) changeOf(kv *mvccpb.KeyValue) change {
	c := change{strings.TrimPrefix(string(kv.Key), m.config.Prefix), entry{version: kv.ModRevision, lease: kv.Lease}}
	if kv.CreateRevision != 0 {
		c.value = kv.Value
		if c.value == nil {
			c.value = []byte{}
		}
	}
	return c
}

// refused is what Commit returns for an error of etcd's.
func (m *Member) refused(err error, t *transaction) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		for _, w := range t.writes {
			if w.Host != "" && w.Host != m.config.Host {
				return fmt.Errorf("host %s is not alive: %w", w.Host, err)
			}
		}
		m.ended(t.lease)
	}
	if e := (rpctypes.EtcdError{}); errors.As(err, &e) && e.Code() == codes.InvalidArgument {
		return fmt.Errorf("cluster: %w", err)
	}
	return m.apart(err)
}

// apart is store.ErrApart with what can't be reached, and why if that is
// something else than that nobody answers.
func (m *Member) apart(why error) error {
	if why == nil || unanswered(why) || errors.Is(why, errSilent) {
		return fmt.Errorf("%w: %w", errSilent, store.ErrApart)
	}
	return fmt.Errorf("etcd can't be used (%w): %w", why, store.ErrApart)
}
