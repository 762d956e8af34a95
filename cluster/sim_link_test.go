package cluster

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// A simDoor is one program's way to etcd. It asks as a door does, one attempt after
// the other; how long each waits is a process's.
type simDoor struct {
	etcdserverpb.KVClient
	clientv3.Lease
	life *program
	to   *clientv3.Client
	// limit is how long the attempt under way waits.
	limit time.Duration
}

func newSimDoor(life *program) *simDoor {
	d := &simDoor{life: life}
	d.to = &clientv3.Client{KV: clientv3.NewKVFromKVClient(d, nil), Lease: d}
	return d
}

func (d *simDoor) client(context.Context) (*clientv3.Client, int, <-chan struct{}, error) {
	return d.to, 0, nil, nil
}

func (d *simDoor) close() error { return nil }

// ask is door.ask with three endpoints.
func (d *simDoor) ask(ctx context.Context, fn func(context.Context, *clientv3.Client) error) error {
	s, p := d.life.host.sim, d.life.host.sim.running
	until, timeout := s.now()+requestTimeout, firstTimeout
	for tried := 1; ; tried++ {
		d.limit = min(timeout, until-s.now())
		err := fn(ctx, d.to)
		if err == nil || !unanswered(err) {
			return err
		}
		timeout = nextTimeout
		if tried%3 == 0 {
			p.sleep(pause)
		}
		if s.now() >= until {
			return fmt.Errorf("%w: %s", errSilent, err)
		}
	}
}

// call has etcd do something, and waits for its answer.
func (d *simDoor) call(do func(*simEtcd) (any, error)) (answer any, err error) {
	s, p, h := d.life.host.sim, d.life.host.sim.running, d.life.host
	answered, over := false, false
	limit := d.limit
	if !h.cut && !s.odds(h.loses) {
		s.after(h.delay(), func() {
			s.etcd.reach(func() {
				got, failed := do(s.etcd)
				if s.odds(h.loses) {
					return
				}
				s.after(h.delay(), d.life.guard(func() {
					if !over && !h.cut {
						answered, over, answer, err = true, true, got, failed
						p.step()
					}
				}))
			})
		})
	}
	s.after(limit, d.life.guard(func() {
		if !over {
			over = true
			p.step()
		}
	}))
	p.park()
	if !answered {
		return nil, context.DeadlineExceeded
	}
	return answer, err
}

func ask[T any](d *simDoor, kind string, request any, do func(*simEtcd) (T, error)) (T, error) {
	answer, err := d.call(func(e *simEtcd) (any, error) {
		answer, err := do(e)
		e.meter.count(kind, request, answer)
		return answer, err
	})
	t, _ := answer.(T)
	return t, err
}

// Range, Put and Txn are etcdserverpb.KVClient's.
func (d *simDoor) Range(_ context.Context, r *etcdserverpb.RangeRequest, _ ...grpc.CallOption) (*etcdserverpb.RangeResponse, error) {
	return ask(d, "reads", r, func(e *simEtcd) (*etcdserverpb.RangeResponse, error) { return e.get(r), nil })
}

func (d *simDoor) Put(_ context.Context, r *etcdserverpb.PutRequest, _ ...grpc.CallOption) (*etcdserverpb.PutResponse, error) {
	return ask(d, "writes", r, func(e *simEtcd) (*etcdserverpb.PutResponse, error) {
		_, err := e.do([]*etcdserverpb.RequestOp{{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: r}}})
		return &etcdserverpb.PutResponse{Header: e.header()}, err
	})
}

func (d *simDoor) Txn(_ context.Context, r *etcdserverpb.TxnRequest, _ ...grpc.CallOption) (*etcdserverpb.TxnResponse, error) {
	return ask(d, kindOf(r), r, func(e *simEtcd) (*etcdserverpb.TxnResponse, error) { return e.txn(r) })
}

// Grant, KeepAliveOnce and TimeToLive are clientv3.Lease's.
func (d *simDoor) Grant(_ context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	return ask(d, "writes", nil, func(e *simEtcd) (*clientv3.LeaseGrantResponse, error) {
		l := e.grant(time.Duration(ttl)*time.Second, d.life.host.pace)
		return &clientv3.LeaseGrantResponse{ResponseHeader: e.header(), ID: clientv3.LeaseID(l.id), TTL: ttl}, nil
	})
}

func (d *simDoor) KeepAliveOnce(_ context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	return ask(d, "renewals", nil, func(e *simEtcd) (*clientv3.LeaseKeepAliveResponse, error) {
		l := e.leases[int64(id)]
		if l == nil || l.left(e.sim.now()) <= 0 {
			return nil, rpctypes.ErrLeaseNotFound
		}
		e.renew(l)
		return &clientv3.LeaseKeepAliveResponse{ResponseHeader: e.header(), ID: id, TTL: int64(l.ttl / time.Second)}, nil
	})
}

func (d *simDoor) TimeToLive(_ context.Context, id clientv3.LeaseID, _ ...clientv3.LeaseOption) (*clientv3.LeaseTimeToLiveResponse, error) {
	return ask(d, "reads", nil, func(e *simEtcd) (*clientv3.LeaseTimeToLiveResponse, error) {
		answer := &clientv3.LeaseTimeToLiveResponse{ResponseHeader: e.header(), ID: id, TTL: -1}
		if l := e.leases[int64(id)]; l != nil {
			answer.TTL = int64(l.left(e.sim.now()) / time.Second)
		}
		return answer, nil
	})
}
