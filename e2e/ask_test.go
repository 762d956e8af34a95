package e2e

import (
	"fmt"
	"sync"
	"testing"

	"github.com/extip/extip/internal/nettest"
)

// A question is a line of the traffic table: who asks what, and who must
// answer and whom it must see. An empty answer means that nobody may answer.
type question struct {
	from    *nettest.Node
	network string // tcp, udp, or icmp with the answer "ttl 63"
	addr    string
	want    string
}

// ask asks all at once: silence takes a while to hear.
func ask(t *testing.T, questions []question) {
	t.Helper()
	var wg sync.WaitGroup
	for _, q := range questions {
		wg.Go(func() {
			if got := q.ask(); got != q.want {
				t.Errorf("%s asks %s %s: got %q, want %q", q.from.Name, q.network, q.addr, got, q.want)
			}
		})
	}
	wg.Wait()
}

func (q question) ask() string {
	from := q.from
	if q.want != "" {
		from = from.Patient()
	}
	if q.network != "icmp" {
		return from.Ask(q.network, q.addr)
	}
	if ttl := from.Ping(q.addr); ttl != 0 {
		return fmt.Sprintf("ttl %d", ttl)
	}
	return ""
}
