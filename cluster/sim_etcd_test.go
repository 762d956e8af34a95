package cluster

import (
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A simEtcd is etcd as a whole: what reaches it happens at once and in one
// order, unless it has no leader.
type simEtcd struct {
	sim      *sim
	revision int64
	term     uint64
	keys     map[string]*mvccpb.KeyValue
	leases   map[int64]*simLease
	granted  int64
	streams  []*stream
	log      []logged // all that has changed
	meter    *meter   // unless nil
	// leaderless: nothing is answered. held is what was asked meanwhile and
	// happens all the same once there is a leader again.
	leaderless bool
	held       []func()
	// disturbed is when it last had no leader.
	disturbed time.Duration
}

type logged struct {
	revision int64
	changes  []*clientv3.Event
}

// A simLease is one host's. Its pace is how fast that host's clock runs: by it the
// lease is as long as by etcd's, and in truth longer or shorter.
type simLease struct {
	id   int64
	ttl  time.Duration
	pace float64
	ends time.Duration
	keys map[string]bool
}

func newSimEtcd(s *sim) *simEtcd {
	return &simEtcd{sim: s, revision: 1, term: 1, keys: map[string]*mvccpb.KeyValue{}, leases: map[int64]*simLease{}, disturbed: -time.Hour}
}

// reach has a request happen, now or never or later.
func (e *simEtcd) reach(do func()) {
	switch {
	case !e.leaderless:
		do()
	case e.sim.odds(0.3):
		e.held = append(e.held, do)
	}
}

// lead begins the reign of a leader. What it knows of the leases is that they
// exist, so all of them are renewed.
func (e *simEtcd) lead() {
	e.leaderless = false
	e.term++
	e.disturbed = e.sim.now()
	e.sim.note("etcd: leader of term %d", e.term)
	for _, id := range slices.Sorted(maps.Keys(e.leases)) {
		e.renew(e.leases[id])
	}
	held := e.held
	e.held = nil
	for _, do := range held {
		do()
	}
}

// loseLeader has nothing answered until lead.
func (e *simEtcd) loseLeader() {
	e.leaderless = true
	e.disturbed = e.sim.now()
	e.sim.note("etcd: no leader")
}

// grant makes a lease, which is as long by its host's clock as that is fast.
func (e *simEtcd) grant(ttl time.Duration, pace float64) *simLease {
	e.granted++
	l := &simLease{id: e.granted, ttl: ttl, pace: pace, keys: map[string]bool{}}
	e.leases[l.id] = l
	e.renew(l)
	return l
}

func (l *simLease) left(now time.Duration) time.Duration {
	return time.Duration(float64(l.ends-now) / l.pace)
}

func (e *simEtcd) renew(l *simLease) {
	l.ends = e.sim.now() + time.Duration(float64(l.ttl)*l.pace)
	e.expireAt(l, l.ends)
}

// expireAt looks whether a lease has ended, as etcd does twice a second, with up to
// half a second until all of it has happened.
func (e *simEtcd) expireAt(l *simLease, ends time.Duration) {
	e.sim.after(ends-e.sim.now()+e.sim.between(0, time.Second), func() {
		if e.leases[l.id] != l || l.ends != ends {
			return
		}
		e.reachAgain(func() {
			if e.leases[l.id] == l && l.ends == ends {
				e.revoke(l)
			}
		})
	})
}

// reachAgain is reach for what etcd itself does: without a leader it isn't done,
// and the next one renews all leases.
func (e *simEtcd) reachAgain(do func()) {
	if !e.leaderless {
		do()
	}
}

func (e *simEtcd) revoke(l *simLease) {
	delete(e.leases, l.id)
	e.sim.note("etcd: lease %x has ended", l.id)
	var writes []*etcdserverpb.RequestOp
	for _, key := range slices.Sorted(maps.Keys(l.keys)) {
		writes = append(writes, &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestDeleteRange{
			RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: []byte(key)},
		}})
	}
	if _, err := e.do(writes); err != nil {
		e.sim.wrong("etcd: %v", err)
	}
}

// txn is a transaction.
func (e *simEtcd) txn(r *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
	ok := true
	for _, c := range r.Compare {
		var version int64
		if kv := e.keys[string(c.Key)]; kv != nil {
			version = kv.ModRevision
		}
		ok = ok && version == c.GetModRevision()
	}
	ops := r.Failure
	if ok {
		ops = r.Success
	}
	responses, err := e.do(ops)
	if err != nil {
		return nil, err
	}
	return &etcdserverpb.TxnResponse{Header: e.header(), Succeeded: ok, Responses: responses}, nil
}

func (e *simEtcd) header() *etcdserverpb.ResponseHeader {
	return &etcdserverpb.ResponseHeader{Revision: e.revision, RaftTerm: e.term}
}

// do makes reads and writes at once.
func (e *simEtcd) do(ops []*etcdserverpb.RequestOp) (responses []*etcdserverpb.ResponseOp, err error) {
	for _, op := range ops {
		if put := op.GetRequestPut(); put != nil && put.Lease != 0 && e.leases[put.Lease] == nil {
			return nil, rpctypes.ErrGRPCLeaseNotFound
		}
	}
	revision := e.revision + 1
	var changes []*clientv3.Event
	for _, op := range ops {
		var r etcdserverpb.ResponseOp
		if put := op.GetRequestPut(); put != nil {
			changes = append(changes, e.set(&mvccpb.KeyValue{Key: put.Key, Value: put.Value, Lease: put.Lease, ModRevision: revision}))
			r.Response = &etcdserverpb.ResponseOp_ResponsePut{ResponsePut: &etcdserverpb.PutResponse{Header: e.header()}}
		} else if del := op.GetRequestDeleteRange(); del != nil {
			if e.keys[string(del.Key)] != nil {
				changes = append(changes, e.set(&mvccpb.KeyValue{Key: del.Key, ModRevision: revision}))
			}
			r.Response = &etcdserverpb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &etcdserverpb.DeleteRangeResponse{Header: e.header()}}
		} else {
			r.Response = &etcdserverpb.ResponseOp_ResponseRange{ResponseRange: e.get(op.GetRequestRange())}
		}
		responses = append(responses, &r)
	}
	if len(changes) > 0 {
		e.revision = revision
		e.log = append(e.log, logged{revision, changes})
		e.meter.tell(changes)
		for _, s := range e.streams {
			s.send(changes)
		}
		for _, c := range changes {
			e.sim.claimChanged(string(c.Kv.Key), c.Kv)
		}
	}
	return responses, nil
}

// set changes a key. A value of no creation is none.
func (e *simEtcd) set(kv *mvccpb.KeyValue) *clientv3.Event {
	key := string(kv.Key)
	before := e.keys[key]
	if before != nil && e.leases[before.Lease] != nil {
		delete(e.leases[before.Lease].keys, key)
	}
	if kv.Value == nil {
		delete(e.keys, key)
		return &clientv3.Event{Type: mvccpb.Event_DELETE, Kv: kv}
	}
	kv.CreateRevision = kv.ModRevision
	if before != nil {
		kv.CreateRevision = before.CreateRevision
	}
	if kv.Lease != 0 {
		e.leases[kv.Lease].keys[key] = true
	}
	e.keys[key] = kv
	return &clientv3.Event{Type: mvccpb.Event_PUT, Kv: kv}
}

func (e *simEtcd) get(r *etcdserverpb.RangeRequest) *etcdserverpb.RangeResponse {
	out := &etcdserverpb.RangeResponse{Header: e.header()}
	if len(r.RangeEnd) == 0 {
		if kv := e.keys[string(r.Key)]; kv != nil {
			out.Kvs = append(out.Kvs, kv)
		}
		return out
	}
	for _, key := range slices.Sorted(maps.Keys(e.keys)) {
		if strings.HasPrefix(key, string(r.Key)) {
			out.Kvs = append(out.Kvs, e.keys[key])
		}
	}
	return out
}

// A stream is a watch of one life of a host's program.
type stream struct {
	etcd *simEtcd
	life *program
	// last is when the newest of what was sent arrives, if nothing is in the
	// way; stuck is what can't while the host is cut off.
	last  time.Duration
	stuck [][]*clientv3.Event
	// inbox is what has arrived; broken that nothing more will.
	inbox  [][]*clientv3.Event
	broken bool
}

// watch tells a program of all that changes from now on, and of what has since a
// revision.
func (e *simEtcd) watch(life *program, since int64) *stream {
	s := &stream{etcd: e, life: life}
	e.streams = append(e.streams, s)
	for _, c := range e.log {
		if c.revision > since {
			s.send(c.changes)
		}
	}
	return s
}

func (e *simEtcd) unwatch(s *stream) {
	e.streams = slices.DeleteFunc(e.streams, func(o *stream) bool { return o == s })
}

// send has what has changed arrive, in order.
func (s *stream) send(changes []*clientv3.Event) {
	sim := s.etcd.sim
	s.last = max(s.last, sim.now()+s.life.host.delay()+s.life.host.lag)
	sim.after(s.last-sim.now(), func() { s.arrive(changes) })
}

func (s *stream) arrive(changes []*clientv3.Event) {
	if s.life.host.cut || len(s.stuck) > 0 {
		s.stuck = append(s.stuck, changes)
		return
	}
	s.life.do(func() {
		s.inbox = append(s.inbox, changes)
		s.life.heard.release(s.etcd.sim)
	})
}

// unstick is called when a host is no longer cut off.
func (s *stream) unstick() {
	stuck := s.stuck
	s.stuck = nil
	for _, changes := range stuck {
		s.arrive(changes)
	}
}

// fail ends the stream.
func (s *stream) fail() {
	s.life.do(func() {
		s.broken = true
		s.life.heard.release(s.etcd.sim)
	})
}
