// Package cluster makes a host one of several that share their claims: it is the
// store's Ledger in etcd, and what the driver knows of the other hosts. It is the
// only door to etcd.
//
// The keys, below a prefix such as /extip/v1/, and their values, which are JSON
// but for the second:
//
//	claims/203.0.113.56     store.Claim; ends with its host's lease
//	reserved/203.0.113.56   the name of the reservation that keeps it
//	names/mail              store.Reservation
//	hosts/docker1           a record: what is known of a host also when it is dead
//	alive/docker1           a life; ends with its lease: its absence is the death of a host
//	offers/203.0.113.56     an offer that waits for an answer, or for what follows that
//	answers/203.0.113.56    an answer; both end with the lease of who wrote them
//
// The version of this layout is in the prefix. A program that changes it in a way
// that another one can't read has to use another prefix.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/extip/extip/store"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Prefixes of keys.
const (
	claimsPrefix   = "claims/"
	reservedPrefix = "reserved/"
	namesPrefix    = "names/"
	hostsPrefix    = "hosts/"
	alivePrefix    = "alive/"
	offersPrefix   = "offers/"
	answersPrefix  = "answers/"
)

// retry is how long is waited after etcd could not be reached. It is also what
// a host is late when etcd is back.
const retry = 500 * time.Millisecond

// A Follower is told what the member learns. LedgerJoined and ClaimsChanged don't
// wait; Offered may.
type Follower interface {
	// LedgerJoined: the ledger can be reached, again or for the first time,
	// with a lease that holds.
	LedgerJoined()
	// ClaimsChanged: who claims these addresses may be another now, or nobody.
	ClaimsChanged(addrs []netip.Addr)
	// Offered answers another host's offer.
	Offered(o store.Offer) (store.Acceptance, error)
}

// A Member is this host among those that share a ledger. Its methods may be
// called concurrently.
type Member struct {
	config Config
	door   asker

	mu     sync.Mutex
	mirror mirror
	// fence is where this host stands. lease is 0 if it has none, since lost;
	// ttl is what etcd granted.
	fence Fence
	lease clientv3.LeaseID
	ttl   time.Duration
	lost  time.Time
	// joined: the mirror is kept up to date. trouble is why not.
	joined  bool
	trouble error
	// anew has the session end, for a reason, and another one begin.
	anew chan error
	// notify is who wants to know of changed keys.
	notify   []func(keys []string)
	follower Follower                           // may be nil
	ownMACs  func() ([]net.HardwareAddr, error) // may be nil
	// news are keys that have changed and of which nobody was told yet.
	news     []string
	newsCame chan struct{}
	// macs are whose is which.
	macs map[string]string
	// offers are those of this host that stand, by address; asked are who waits
	// for an answer, by the offer's id; answered are ids of others' offers that
	// were taken up, by address.
	offers   map[netip.Addr]int64
	asked    map[string]chan answer
	answered map[string]string
}

// Open makes this host a member. It returns an error if another host has its
// name, or if it is told nonsense; an etcd that can't be reached within
// two seconds is none: the Member is apart, then, and Run goes on trying.
func Open(c Config) (*Member, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	m := newMember(c, newDoor(c))
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	err := m.join(ctx)
	if err == nil {
		_, err = m.load(ctx)
	}
	if taken := (*NameError)(nil); errors.As(err, &taken) {
		return nil, errors.Join(err, m.Close())
	}
	if err != nil {
		m.report(err)
	}
	return m, nil
}

func newMember(c Config, d asker) *Member {
	return &Member{
		config: c, door: d, fence: Fence{Host: c.Host}, lost: time.Now(), trouble: errSilent, anew: make(chan error, 1), newsCame: make(chan struct{}, 1),
		offers: map[netip.Addr]int64{}, asked: map[string]chan answer{}, answered: map[string]string{},
	}
}

// Close lets go of etcd. The lease is left to end by itself: a host whose program
// starts again in time goes on with it. Run must have returned.
func (m *Member) Close() error { return m.door.close() }

// Follow has f told from now on, and at once what it has missed.
func (m *Member) Follow(f Follower) {
	m.mu.Lock()
	m.follower = f
	joined, keys := m.joined, m.mirror.keys(offersPrefix)
	m.mu.Unlock()
	if joined {
		f.LedgerJoined()
	}
	m.takeUp(keys)
}

// SetMACs has fn asked now and then for the MACs by which this host answers for
// addresses; without it, or where it fails, those hold that were found last. It is
// called before Run.
func (m *Member) SetMACs(fn func() ([]net.HardwareAddr, error)) { m.ownMACs = fn }

// Run keeps this host a member until ctx ends.
func (m *Member) Run(ctx context.Context) error {
	var telling sync.WaitGroup
	telling.Go(func() { m.tell(ctx) })
	defer telling.Wait()
	for ctx.Err() == nil {
		err := m.session(ctx)
		m.mu.Lock()
		m.joined = false
		m.mu.Unlock()
		if err == nil || ctx.Err() != nil {
			continue
		}
		m.report(err)
		if errors.Is(err, errEnded) {
			continue // there is no time to lose
		}
		select {
		case <-ctx.Done():
		case <-time.After(jitter(retry)):
		}
	}
	return nil
}

// jitter is a time up to a quarter shorter, so that hosts to which the same happened
// don't ask etcd all at once for ever after.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/4) }

// report remembers why this host is not joined, nil if it is, and tells if that is news.
func (m *Member) report(err error) {
	m.mu.Lock()
	before := m.trouble
	m.trouble = err
	m.mu.Unlock()
	if m.config.Trouble != nil && fmt.Sprint(err) != fmt.Sprint(before) {
		m.config.Trouble(err)
	}
}

// session is the time for which one endpoint of etcd is used: it ends with nil
// if another one is to be.
func (m *Member) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := m.join(ctx); err != nil {
		return err
	}
	select {
	case <-m.anew: // that is what this is
	default:
	}
	revision, err := m.load(ctx)
	if err != nil {
		return err
	}
	if err := m.introduce(ctx); err != nil {
		return err
	}
	c, _, moved, err := m.door.client(ctx)
	if err != nil {
		return err
	}
	// Without a leader an endpoint can't hear of anything.
	events := c.Watch(clientv3.WithRequireLeader(ctx), m.config.Prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	m.mu.Lock()
	m.joined = true
	follower := m.follower
	m.mu.Unlock()
	m.report(nil)
	if follower != nil {
		follower.LedgerJoined()
	}
	renewals := make(chan error, 1)
	go func() { renewals <- m.renewals(ctx) }()
	defer func() { cancel(); <-renewals }()
	for {
		select {
		case <-moved:
			return nil
		case err := <-m.anew:
			return err
		case err := <-renewals:
			renewals <- err
			return err
		case response, ok := <-events:
			if !ok {
				return errSilent
			}
			if err := response.Err(); err != nil { // also: what is to come is compacted
				return fmt.Errorf("watch: %w", err)
			}
			revision = m.watched(revision, response.Events)
		}
	}
}

// watched takes in what the watch tells after a revision, and returns that of the
// last event.
func (m *Member) watched(revision int64, events []*clientv3.Event) int64 {
	changes := make([]change, len(events))
	for i, e := range events {
		changes[i] = m.changeOf(e.Kv)
		revision = max(revision, e.Kv.ModRevision)
	}
	m.learn(func(mirror *mirror) []string { return mirror.watched(revision, changes...) })
	return revision
}

// page is how many keys are read of the ledger at once: some 1.4 MB. All of it may be
// more than comes in the time of an attempt, and then would never come; for each page
// etcd 3.4 goes through all keys that follow.
const page = 5000

// load reads the whole ledger, and returns the revision that it has read.
func (m *Member) load(ctx context.Context) (revision int64, err error) {
	m.mu.Lock()
	latest := m.mirror.latest
	m.mu.Unlock()
	var all []change
	for key, more := m.config.Prefix, true; more; {
		err = m.door.ask(ctx, func(ctx context.Context, c *clientv3.Client) error {
			response, err := c.Get(ctx, key, clientv3.WithRange(clientv3.GetPrefixRangeEnd(m.config.Prefix)),
				clientv3.WithLimit(page), clientv3.WithRev(revision))
			if err != nil {
				return err
			}
			if revision == 0 {
				revision = response.Header.Revision
			}
			for _, kv := range response.Kvs {
				all = append(all, m.changeOf(kv))
				key = string(kv.Key) + "\x00"
			}
			more = response.More
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("read the ledger: %w", err)
		}
	}
	m.learn(func(mirror *mirror) []string { return mirror.reload(latest, revision, all) })
	return revision, nil
}

// learn changes the mirror by fn, which returns the keys that are different
// after it.
func (m *Member) learn(fn func(*mirror) []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := fn(&m.mirror)
	if len(changed) == 0 {
		return
	}
	for _, key := range changed {
		switch kind, rest, _ := strings.Cut(key, "/"); kind + "/" {
		case alivePrefix:
			var l life
			if m.decode(key, &l); rest == m.config.Host && l.lease() != m.lease {
				m.ended(m.lease)
			}
		case hostsPrefix:
			m.macs = nil // found again when somebody asks
		case answersPrefix:
			m.hear(key)
		}
	}
	m.news = append(m.news, changed...)
	select {
	case m.newsCame <- struct{}{}:
	default:
	}
}

// tell tells of what has changed until ctx ends. It is apart from what learns of
// it: whoever is told may have to wait for the disk, and what is known by then must
// not be old.
func (m *Member) tell(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.newsCame:
		}
		m.tellNews()
	}
}

// tellNews tells of what has changed since the last time.
func (m *Member) tellNews() {
	m.mu.Lock()
	changed, notify, follower := m.news, m.notify, m.follower
	m.news = nil
	m.mu.Unlock()
	slices.Sort(changed)
	changed = slices.Compact(changed)
	var ledger []string
	var claims []netip.Addr
	for _, key := range changed {
		kind, rest, _ := strings.Cut(key, "/")
		switch kind += "/"; kind {
		case claimsPrefix, reservedPrefix, namesPrefix:
			ledger = append(ledger, key)
		}
		if a, err := netip.ParseAddr(rest); err == nil && kind == claimsPrefix {
			claims = append(claims, a)
		}
	}
	if len(ledger) > 0 {
		for _, fn := range notify {
			fn(ledger)
		}
	}
	if len(claims) > 0 && follower != nil {
		follower.ClaimsChanged(claims)
	}
	m.takeUp(changed)
}

// restart has the session end and another one begin. m.mu is held.
func (m *Member) restart(why error) {
	select {
	case m.anew <- why:
	default:
	}
}

// decode reads a value of the mirror; m.mu is held.
func (m *Member) decode(key string, v any) (e entry, ok bool) {
	e = m.mirror.get(key)
	return e, e.version != 0 && json.Unmarshal(e.value, v) == nil
}
