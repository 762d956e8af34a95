package cluster

import (
	"context"
	"encoding/json"
	"time"

	"github.com/extip/extip/store"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// awaitInterval is how often is looked whether a lease has ended or was renewed.
// etcd itself looks each half second.
const awaitInterval = 500 * time.Millisecond

// Await waits for another host's lease to end: nil once it has, store.ErrAlive
// as soon as it is renewed meanwhile, or ctx's error.
func (m *Member) Await(ctx context.Context, host string) error {
	var watch Wake
	var first life
	for {
		l, alive, err := m.lifeOf(ctx, host)
		switch {
		case err == nil && !alive:
			return nil
		case err == nil && first.Lease == "":
			first = l
		case err == nil && l.Lease != first.Lease:
			return store.ErrAlive // it has begun another life
		}
		if err == nil {
			renewed, err := m.renewed(ctx, &watch, l.lease())
			if err == nil && renewed {
				return store.ErrAlive
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(awaitInterval):
		}
	}
}

// lifeOf asks the ledger whether a host lives.
func (m *Member) lifeOf(ctx context.Context, host string) (l life, alive bool, err error) {
	var found *clientv3.GetResponse
	err = m.door.ask(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		found, err = c.Get(ctx, m.config.Prefix+alivePrefix+host)
		return err
	})
	if err != nil || len(found.Kvs) == 0 {
		return l, false, err
	}
	m.learn(func(mirror *mirror) []string { return mirror.apply(m.changeOf(found.Kvs[0])) })
	return l, true, json.Unmarshal(found.Kvs[0].Value, &l)
}

// renewed tells whether a lease was renewed since the wait for its end began.
func (m *Member) renewed(ctx context.Context, w *Wake, lease clientv3.LeaseID) (renewed bool, err error) {
	err = m.door.ask(ctx, func(ctx context.Context, c *clientv3.Client) error {
		sent := time.Now()
		left, err := c.TimeToLive(ctx, lease)
		if err == nil && left.TTL > 0 {
			renewed = w.Alive(sent, time.Now(), time.Duration(left.TTL)*time.Second, left.RaftTerm)
		}
		return err
	})
	return renewed, err
}
