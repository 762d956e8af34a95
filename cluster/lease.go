package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/extip/extip/store"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A life is the value of "alive/HOST".
type life struct {
	// ID is the host's, Lease that with which the key ends, in hexadecimal
	// digits as etcdctl shows them.
	ID    string    `json:"id"`
	Lease string    `json:"lease"`
	Since time.Time `json:"since"`
}

func (l life) lease() clientv3.LeaseID {
	id, _ := strconv.ParseInt(l.Lease, 16, 64)
	return clientv3.LeaseID(id)
}

// A NameError says that another host has this one's name.
type NameError struct {
	Host  string
	Since time.Time
}

func (e *NameError) Error() string {
	return fmt.Sprintf("another host is %q in this cluster, since %s: each needs a name of its own",
		e.Host, e.Since.UTC().Format(time.DateTime))
}

// join sees to it that this host has a lease that holds and that the others see
// it alive: with the lease that it has, or that it had before its program
// started, or with a new one.
func (m *Member) join(ctx context.Context) error {
	// Between two steps a lease may end, or another host begin to live.
	for range 3 {
		current, version, err := m.life(ctx)
		if err != nil {
			return err
		}
		if version != 0 && current.ID != m.config.ID {
			return &NameError{Host: m.config.Host, Since: current.Since}
		}
		if version != 0 {
			err := m.renew(ctx, current.lease())
			if err == nil {
				return nil
			}
			if !errors.Is(err, errEnded) {
				return err
			}
		}
		begun, err := m.begin(ctx, version)
		if begun || err != nil {
			return err
		}
	}
	return errors.New("this host's lease ends again and again")
}

// life reads this host's.
func (m *Member) life(ctx context.Context) (l life, version int64, err error) {
	err = m.door.ask(ctx, func(ctx context.Context, c *clientv3.Client) error {
		response, err := c.Get(ctx, m.config.Prefix+alivePrefix+m.config.Host)
		if err != nil || len(response.Kvs) == 0 {
			return err
		}
		version = response.Kvs[0].ModRevision
		return json.Unmarshal(response.Kvs[0].Value, &l)
	})
	return l, version, err
}

// begin begins a life with a new lease, unless the key has another version by now.
func (m *Member) begin(ctx context.Context, version int64) (begun bool, err error) {
	var lease *clientv3.LeaseGrantResponse
	var sent time.Time
	err = m.door.ask(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		sent = time.Now()
		lease, err = c.Grant(ctx, int64(m.config.TTL/time.Second))
		return err
	})
	if err != nil {
		return false, fmt.Errorf("grant a lease: %w", err)
	}
	l := life{ID: m.config.ID, Lease: strconv.FormatInt(int64(lease.ID), 16), Since: time.Now().UTC()}
	value, err := json.Marshal(l)
	if err != nil {
		return false, err
	}
	key := m.config.Prefix + alivePrefix + m.config.Host
	err = m.door.ask(ctx, func(ctx context.Context, c *clientv3.Client) error {
		response, err := c.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", version)).
			Then(clientv3.OpPut(key, string(value), clientv3.WithLease(lease.ID))).
			Else(clientv3.OpGet(key)).Commit()
		if err != nil {
			return err
		}
		// An attempt without an answer may have been one with success.
		there := response.Succeeded
		if !there {
			kvs := response.Responses[0].GetResponseRange().Kvs
			there = len(kvs) > 0 && bytes.Equal(kvs[0].Value, value)
		}
		begun = there
		return nil
	})
	if !begun || err != nil {
		return false, err // the lease ends by itself
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lease, m.ttl = lease.ID, time.Duration(lease.TTL)*time.Second
	m.fence.ProvenUntil = ProvenUntil(sent, m.ttl)
	return true, nil
}

// renewals renews the lease until that fails.
func (m *Member) renewals(ctx context.Context) error {
	for introduced := time.Now(); ; {
		m.mu.Lock()
		lease, ttl := m.lease, m.ttl
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(jitter(ttl / 3)):
		}
		if err := m.renew(ctx, lease); err != nil {
			return err
		}
		if time.Since(introduced) >= seenInterval {
			if err := m.introduce(ctx); err != nil {
				return err
			}
			introduced = time.Now()
		}
	}
}

// renew renews a lease, which is this host's from then on, or returns errEnded.
func (m *Member) renew(ctx context.Context, lease clientv3.LeaseID) error {
	m.mu.Lock()
	latest := m.mirror.latest
	m.mu.Unlock()
	var ttl time.Duration
	var sent time.Time
	err := m.door.ask(ctx, func(ctx context.Context, c *clientv3.Client) error {
		sent = time.Now()
		response, err := c.KeepAliveOnce(ctx, lease)
		if err == nil {
			ttl = time.Duration(response.TTL) * time.Second
			m.compareHistory(response.Revision, latest)
		}
		return err
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		m.lease, m.ttl = lease, ttl
		if until := ProvenUntil(sent, ttl); until.After(m.fence.ProvenUntil) {
			m.fence.ProvenUntil = until
		}
		return nil
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		m.ended(lease)
		return errEnded
	}
	return fmt.Errorf("renew the lease: %w", err)
}

// ended takes in that a lease has. If it is this host's, its claims are
// anybody's now. m.mu is held.
func (m *Member) ended(lease clientv3.LeaseID) {
	if m.lease == lease && lease != 0 {
		m.lease, m.lost, m.fence.ProvenUntil = 0, time.Now(), time.Time{}
		m.restart(errEnded)
	}
}

// errEnded says that this host's lease has.
var errEnded = errors.New("this host's lease has ended")

// Apart says since when this host can't prove that its claims still hold; ok is
// false if it can.
func (m *Member) Apart() (since time.Time, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.fence.Proven(time.Now()):
		return time.Time{}, false
	case m.lease == 0:
		return m.lost, true
	}
	return m.fence.ProvenUntil, true
}

// MayDefend tells whether another host on the wire that uses an address of ours
// is in the wrong for certain: our claim is proven.
func (m *Member) MayDefend(a netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	var claim store.Claim
	e, ok := m.decode(claimsPrefix+a.String(), &claim)
	// One that hangs on an earlier lease proves nothing.
	return ok && e.lease == int64(m.lease) && m.fence.MayDefend(time.Now(), claim.Host)
}
