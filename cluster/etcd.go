package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// How long something is waited for.
const (
	// requestTimeout is for whatever is asked of etcd, with all attempts. By
	// then an etcd that lost its leader has another one, after one to two
	// seconds unless it is told other figures; what was asked meanwhile gets no
	// answer and has to be asked again.
	requestTimeout = 2500 * time.Millisecond
	// openTimeout is for all that Open asks: a plugin that starts without etcd
	// has containers to serve.
	openTimeout = 2 * time.Second
	// firstTimeout is for the endpoint that has answered so far; one that takes
	// longer may be up and hung, or cut off without anybody saying so.
	// nextTimeout is for those after it.
	firstTimeout = time.Second
	nextTimeout  = 500 * time.Millisecond
	// pause is between two rounds of all endpoints.
	pause = 100 * time.Millisecond
)

// An asker leads to etcd: a door, or what simulates one.
type asker interface {
	client(ctx context.Context) (c *clientv3.Client, at int, moved <-chan struct{}, err error)
	ask(ctx context.Context, fn func(ctx context.Context, c *clientv3.Client) error) error
	close() error
}

// A door leads to etcd by one endpoint at a time: to the next one when that
// gives no answer. The client can hold connections to all at once, but then one
// that is hung costs every third request its time, for as long as it is.
type door struct {
	config    clientv3.Config
	endpoints []string
	// turn is held by whoever looks at the fields below.
	turn    chan struct{}
	clients []*clientv3.Client // nil until needed
	at      int
	moved   chan struct{} // closed when at changes
	closed  bool
}

func newDoor(c Config) *door {
	d := &door{
		turn: make(chan struct{}, 1), clients: make([]*clientv3.Client, len(c.Endpoints)), moved: make(chan struct{}),
		config: clientv3.Config{
			TLS: c.TLS, Username: c.User, Password: c.Password,
			// Logs nothing: whoever asks is told what is wrong.
			Logger: zap.NewNop(),
			// Of logging in, which New does.
			DialTimeout: firstTimeout,
			// An endpoint that is up and never answers is found out by the
			// requests; this is for the watch, which only listens. The timeout is
			// TCP's, too.
			DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
			// What fails is tried by the next endpoint, not by the same.
			MaxUnaryRetries: 1,
			// The default would be two minutes by the time that etcd is back.
			DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
				MinConnectTimeout: firstTimeout,
			})},
		},
	}
	scheme := "http://"
	if c.TLS != nil {
		scheme = "https://"
	}
	for _, e := range c.Endpoints {
		d.endpoints = append(d.endpoints, scheme+e)
	}
	return d
}

// client is that of the endpoint in use, its number, and what is closed when it
// is in use no more.
func (d *door) client(ctx context.Context) (*clientv3.Client, int, <-chan struct{}, error) {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return nil, 0, nil, ctx.Err()
	}
	if d.closed {
		return nil, 0, nil, context.Canceled
	}
	if d.clients[d.at] == nil {
		config := d.config
		config.Endpoints = []string{d.endpoints[d.at]}
		c, err := clientv3.New(config)
		if err != nil { // it could not log in
			d.next()
			return nil, 0, nil, err
		}
		d.clients[d.at] = c
	}
	return d.clients[d.at], d.at, d.moved, nil
}

// leave has the endpoint after one be used.
func (d *door) leave(at int) {
	d.turn <- struct{}{}
	defer func() { <-d.turn }()
	if d.at == at {
		d.next()
	}
}

func (d *door) next() {
	d.at = (d.at + 1) % len(d.endpoints)
	close(d.moved)
	d.moved = make(chan struct{})
}

// errSilent says that no endpoint has given an answer in time.
var errSilent = errors.New("etcd can't be reached")

// ask calls fn, which makes one request, until there is an answer, by one endpoint
// after the other, for requestTimeout. An attempt without an answer may have done
// what it asked for.
func (d *door) ask(ctx context.Context, fn func(ctx context.Context, c *clientv3.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var why error
	timeout := firstTimeout
	for tried := 1; ; tried++ {
		err := d.attempt(ctx, timeout, fn)
		if err == nil || !unanswered(err) {
			return err
		}
		// That there was no time tells less than anything else.
		if why == nil || !errors.Is(err, context.DeadlineExceeded) {
			why = err
		}
		timeout = nextTimeout
		if tried%len(d.endpoints) == 0 {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %s", errSilent, status.Convert(why).Message())
		}
	}
}

func (d *door) attempt(ctx context.Context, timeout time.Duration, fn func(context.Context, *clientv3.Client) error) error {
	c, at, _, err := d.client(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err = connected(ctx, c.ActiveConnection()); err == nil {
		err = fn(ctx, c)
	}
	if err != nil && unanswered(err) {
		d.leave(at)
	}
	return err
}

// connected returns when there is a connection, or at once when there can't be
// one: a request would wait for it as long as it may.
func connected(ctx context.Context, c *grpc.ClientConn) error {
	c.Connect()
	for failed := false; ; {
		state := c.GetState()
		switch {
		case state == connectivity.Ready:
			return nil
		case state == connectivity.TransientFailure && failed:
			// What is asked without waiting for a connection says why there
			// is none.
			_, err := pb.NewMaintenanceClient(c).Status(ctx, &pb.StatusRequest{})
			return err
		case state == connectivity.TransientFailure:
			c.ResetConnectBackoff() // once more, without waiting
		}
		failed = failed || state != connectivity.Idle
		if !c.WaitForStateChange(ctx, state) {
			return ctx.Err()
		}
	}
}

// unanswered tells whether an error is for want of an answer, so that another
// endpoint may have one.
func unanswered(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return true
	}
	var code codes.Code
	if s, ok := status.FromError(err); ok {
		code = s.Code()
	}
	if e := (rpctypes.EtcdError{}); errors.As(err, &e) {
		code = e.Code()
	}
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal, codes.Unknown:
		return true // Unknown is also how etcd says that its own time is over
	}
	return false
}

// close lets go of all connections.
func (d *door) close() error {
	d.turn <- struct{}{}
	defer func() { <-d.turn }()
	d.closed = true
	var err error
	for _, c := range d.clients {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
	}
	if errors.Is(err, context.Canceled) { // its way to say that it is closed
		return nil
	}
	return err
}
