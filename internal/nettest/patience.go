package nettest

import (
	"context"
	"net"
	"time"
)

// Patience is counted in turns of this process, not in time: a machine that
// stands still for seconds takes one turn from whoever is to answer, and one
// that is slow takes longer turns. Private links answer in well under a
// millisecond.
const (
	turn = 50 * time.Millisecond
	// silence is how many turns a question waits for an answer that need
	// not come: less than the second after which a lost question is asked again.
	silence = 14
	// sure is how many for one that must come.
	sure = 600
)

// Patient is the node for questions that must be answered: where somebody has
// to be woken up for the answer, it waits for him as long as a busy machine
// may take. A connection is still to be accepted as fast as usual, which no
// program has to be woken up for.
func (n *Node) Patient() *Node {
	patient := *n
	patient.turns = sure
	return &patient
}

// pass returns after that many turns, or false if over is closed before.
func pass(turns int, over <-chan struct{}) bool {
	for range turns {
		select {
		case <-over:
			return false
		case <-time.After(turn):
		}
	}
	return true
}

// dial connects within some turns.
func dial(network, addr string, turns int) (net.Conn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		if pass(turns, ctx.Done()) {
			cancel()
		}
	}()
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

// within calls fn, whose reads of c fail after some turns.
func within(turns int, c net.Conn, fn func() error) error {
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		if pass(turns, over) {
			_ = c.SetDeadline(time.Now())
		}
	}()
	defer func() {
		close(over)
		<-ended
		_ = c.SetDeadline(time.Time{})
	}()
	return fn()
}
