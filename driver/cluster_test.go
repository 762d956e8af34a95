package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/extip/extip/internal/hosttest"
	"github.com/extip/extip/internal/ledgertest"
	"github.com/extip/extip/store"
)

// A site is hosts that share a ledger and a wire.
type site struct {
	t      *testing.T
	ledger *ledgertest.Ledger
	wire   *hosttest.Wire
	hosts  []*lab
}

// newSite has hosts docker1, docker2 and so on, each with the network netID.
func newSite(t *testing.T, n int, kv ...string) *site {
	t.Helper()
	s := &site{t: t, ledger: ledgertest.New(), wire: hosttest.NewWire()}
	kv = append([]string{"extip.parent", "br-ex", "extip.pool", "203.0.113.56-203.0.113.62"}, kv...)
	for i := range n {
		name := fmt.Sprint("docker", i+1)
		m := &member{site: s, name: name, ledger: &view{hostLedger: s.ledger.Host(name)}, mac: net.HardwareAddr{2, 0, 0, 0, 0, byte(i + 1)}}
		m.ledger.hostLedger.Notify(m.ledger.tell)
		l := &lab{t: t, host: hosttest.New(), path: filepath.Join(t.TempDir(), "extip.db"), member: m}
		s.hosts = append(s.hosts, l)
		l.start()
		t.Cleanup(func() { l.store.Close() })
		l.network(kv...)
	}
	return s
}

// follow has the drivers follow ledger and wire until the test ends.
func (s *site) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	s.t.Cleanup(func() { cancel(); wg.Wait() })
	for _, l := range s.hosts {
		d := l.Driver
		wg.Go(func() { _ = d.FollowLedger(ctx) })
		wg.Go(func() { _ = d.Tend(ctx) })
	}
}

// catchUp has all drivers follow what there is, one after another.
func (s *site) catchUp() {
	for range 3 { // what one does, others have to hear of
		for _, l := range s.hosts {
			l.catchUp()
			s.wire.Settle()
			l.releaseWithheld(s.t.Context())
		}
	}
}

// hostLedger is one that has a method Host when it is embedded.
type hostLedger = ledgertest.Host

// A view is a host's ledger, which forgets who listened to it before a restart.
type view struct {
	*hostLedger
	mu        sync.Mutex
	listeners []func([]string)
}

func (v *view) Notify(fn func([]string)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.listeners = append(v.listeners, fn)
}

func (v *view) tell(keys []string) {
	v.mu.Lock()
	listeners := slices.Clone(v.listeners)
	v.mu.Unlock()
	for _, fn := range listeners {
		fn(keys)
	}
}

// member is a Cluster that is told what is so.
type member struct {
	*site
	name   string
	mac    net.HardwareAddr
	ledger *view

	mu    sync.Mutex
	since time.Time // apart, unless zero
	dead  bool
	// awaited is closed when somebody waits for another host's end.
	awaited chan struct{}
}

func (l *lab) openStore() (*store.Store, error) {
	if l.member == nil {
		return store.Open(l.path)
	}
	l.member.ledger.mu.Lock()
	l.member.ledger.listeners = nil
	l.member.ledger.mu.Unlock()
	return store.OpenShared(l.path, l.member.ledger)
}

// joinCluster is what main does.
func (l *lab) joinCluster() {
	m := l.member
	if m == nil {
		return
	}
	l.JoinCluster(m)
	m.wire.Plug(l.host, m.mac, m.MayDefend, l.Conflict)
	d := l.Driver
	m.ledger.Notify(func(keys []string) {
		var changed []netip.Addr
		for _, key := range keys {
			if text, ok := strings.CutPrefix(key, "claims/"); ok {
				changed = append(changed, addr(text))
			}
		}
		d.ClaimsChanged(changed)
	})
}

// cut takes a host from the ledger; its lease ends with it, or later.
func (l *lab) cut(leaseEnds bool) {
	l.member.ledger.Cut()
	l.member.setApart(true)
	if leaseEnds {
		l.member.ledger.End()
	}
}

// join ends that.
func (l *lab) join() {
	l.member.ledger.Join()
	l.member.setApart(false)
	l.LedgerJoined()
}

// die takes the whole machine away, or its program only. Its lease has yet to end.
func (l *lab) die(machine bool) {
	m := l.member
	m.ledger.Cut()
	m.mu.Lock()
	m.dead = true
	m.mu.Unlock()
	if machine {
		m.wire.Cut(l.host, true)
	} else {
		m.wire.Plug(l.host, m.mac, nil, nil)
	}
}

func (m *member) setApart(apart bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.since = time.Time{}
	if apart {
		m.since = time.Now()
	}
}

func (m *member) Host() string { return m.name }

func (m *member) Apart() (time.Time, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.since, !m.since.IsZero()
}

func (m *member) MayDefend(a netip.Addr) bool {
	if _, apart := m.Apart(); apart {
		return false
	}
	value, _ := m.ledger.Get("claims/" + a.String())
	return strings.Contains(string(value), fmt.Sprintf("%q:%q", "host", m.name))
}

func (m *member) Member(mac net.HardwareAddr) string {
	for _, l := range m.hosts {
		if slices.Equal(l.member.mac, mac) {
			return l.member.name
		}
	}
	return ""
}

func (m *member) Await(ctx context.Context, host string) error {
	other := m.of(host)
	if m.awaited != nil {
		close(m.awaited)
		m.awaited = nil
	}
	for {
		other.mu.Lock()
		dies := other.dead || !other.since.IsZero()
		other.mu.Unlock()
		switch {
		case !m.site.ledger.Alive(host):
			return nil
		case !dies:
			return store.ErrAlive
		case !wait(ctx, time.Millisecond):
			return ctx.Err()
		}
	}
}

// of is another member, which must be one.
func (m *member) of(host string) *member {
	for _, l := range m.hosts {
		if l.member.name == host {
			return l.member
		}
	}
	return nil
}

func (m *member) Offer(_ context.Context, o store.Offer) (store.Acceptance, error) {
	for _, l := range m.hosts {
		if l.member.name == o.To && !l.member.dead {
			return l.Offered(o)
		}
	}
	return store.Acceptance{}, fmt.Errorf("host %s doesn't answer", o.To)
}

func (m *member) Withdraw(netip.Addr) {}

func (m *member) Hosts() (list []store.HostInfo) {
	for _, l := range m.hosts {
		o := l.member
		list = append(list, store.HostInfo{Name: o.name, Own: o == m, Alive: m.site.ledger.Alive(o.name), MACs: []string{o.mac.String()}, TTL: 10 * time.Second})
	}
	return list
}

// eventually waits for something that follows from what was done.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it doesn't come to this: %s", what)
		}
	}
}

// answering are the hosts that answer for an address.
func (s *site) answering(a string) (names []string) {
	for _, mac := range s.wire.Answering("br-ex", addr(a)) {
		hw, _ := net.ParseMAC(mac)
		names = append(names, s.hosts[0].member.Member(hw))
	}
	return names
}

func (s *site) mustAnswer(a string, want ...string) {
	s.t.Helper()
	if got := s.answering(a); !slices.Equal(got, want) {
		s.t.Errorf("%s is answered for by %q, want %q", a, got, want)
	}
}

// noDoubles fails if an address was put up that another host answered for.
func (s *site) noDoubles() {
	s.t.Helper()
	if doubles := s.wire.Doubles(); len(doubles) > 0 {
		s.t.Errorf("two hosts had the same address: %q", doubles)
	}
}

// withheldWhy is why an address is not published, "" if it is.
func (l *lab) withheldWhy(a string) string {
	for _, v := range l.Addresses() {
		if v.External == addr(a) {
			return v.Reason
		}
	}
	return "it is not there"
}

func mustContain(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(fmt.Sprint(err), part) {
			t.Errorf("error %q lacks %q", fmt.Sprint(err), part)
		}
	}
}

// TestDeadHost: what a host had that dies is waited for, without a lock, and then
// claimed by its reservation; what a living host has is refused at once.
func TestDeadHost(t *testing.T) {
	s := newSite(t, 2)
	one, two := s.hosts[0], s.hosts[1]
	if err := one.run(ep1, "172.31.0.2/16", "extip.address", "203.0.113.60", "extip.reservation", "web"); err != nil {
		t.Fatal(err)
	}
	err := two.run(ep2, "172.31.0.2/16", "extip.reservation", "web")
	mustContain(t, err, "203.0.113.60 is taken by endpoint", "on host docker1", "extip.address=203.0.113.60")
	one.die(true)
	awaited := make(chan struct{})
	two.member.awaited = awaited
	started := make(chan error, 1)
	go func() { started <- two.run(ep2, "172.31.0.2/16", "extip.reservation", "web") }()
	select {
	case <-awaited:
	case err := <-started:
		t.Fatalf("it is not waited for: %v", err)
	}
	// Nothing waits for that, not even who needs the network alone.
	if err := errors.Join(two.run(epID, "172.31.0.3/16"), two.rm(epID)); err != nil {
		t.Error(err)
	}
	if _, err := two.Reconcile("a test"); err != nil {
		t.Error(err)
	}
	select {
	case err := <-started:
		t.Errorf("it is not waited for: %v", err)
	default:
	}
	one.member.ledger.End()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	s.mustAnswer("203.0.113.60", "docker2")
	s.noDoubles()
}

// TestGivenUp: an address of the pool that another host was heard to use can be had
// as soon as that host gives it up; a stranger's can't.
func TestGivenUp(t *testing.T) {
	s := newSite(t, 2, "extip.pool", "203.0.113.60")
	one, two := s.hosts[0], s.hosts[1]
	one.probeAhead(t.Context(), func(string) bool { return true })
	if err := two.run(ep2, "172.31.0.3/16"); err != nil {
		t.Fatal(err)
	}
	s.wire.Settle()
	if got := one.segments.ownerOf("br-ex", addr(shared)); got != two.member.mac.String() {
		t.Fatalf("heard to use it: %q", got)
	}
	if err := two.rm(ep2); err != nil {
		t.Fatal(err)
	}
	s.catchUp()
	if err := one.run(ep1, "172.31.0.2/16"); err != nil {
		t.Error(err)
	}
	if err := one.rm(ep1); err != nil {
		t.Fatal(err)
	}
	one.segments.learn("br-ex", addr(shared), stranger.String())
	s.catchUp()
	one.claimChanged(addr(shared))
	mustContain(t, one.run(ep1, "172.31.0.2/16"), "is used by "+stranger.String())
}
