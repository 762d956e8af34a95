// Package admintest is a plugin for tests of what operators use: it says what
// it is told to, and remembers what it was asked to change.
package admintest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/extip/extip/doctor"
	"github.com/extip/extip/driver"
	"github.com/extip/extip/store"
)

// Now is the time of the tests.
var Now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// Plugin is an admin.Plugin. What it says may be set before it is asked.
type Plugin struct {
	Has     []driver.Address
	Nets    []driver.NetworkInfo
	Kept    []store.Reservation
	Hosts   []driver.Member
	Differs []string
	// Left and Err are answers of all changes.
	Left []string
	Err  error
	// Gate, if set, holds changes up until it is closed or their context
	// ends.
	Gate chan struct{}

	mu        sync.Mutex
	changes   []string
	listeners []chan driver.Event
}

// Changes are the changes asked for so far.
func (p *Plugin) Changes() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.changes)
}

// Listeners is how many subscribers of events there are.
func (p *Plugin) Listeners() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.listeners)
}

// Emit sends an event to all subscribers.
func (p *Plugin) Emit(e driver.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.listeners {
		l <- e
	}
}

// Counted implements admin.Looker.
func (p *Plugin) Counted() ([]driver.Address, error) { return p.Has, p.Err }

// NetworkInfos implements admin.Looker.
func (p *Plugin) NetworkInfos() []driver.NetworkInfo { return p.Nets }

// Reservations implements admin.Looker.
func (p *Plugin) Reservations() ([]store.Reservation, error) { return p.Kept, p.Err }

// Members implements admin.Looker.
func (p *Plugin) Members() ([]driver.Member, error) { return p.Hosts, p.Err }

// Check implements admin.Looker.
func (p *Plugin) Check() ([]string, error) { return p.Differs, p.Err }

// Events implements admin.Looker.
func (p *Plugin) Events() (<-chan driver.Event, func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := make(chan driver.Event, 100)
	p.listeners = append(p.listeners, l)
	return l, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.listeners = slices.DeleteFunc(p.listeners, func(other chan driver.Event) bool { return other == l })
	}
}

func (p *Plugin) change(ctx context.Context, format string, args ...any) (driver.Report, error) {
	p.mu.Lock()
	line := fmt.Sprintf(format, args...)
	p.changes = append(p.changes, line)
	p.mu.Unlock()
	if p.Gate != nil {
		select {
		case <-p.Gate:
		case <-ctx.Done():
			return driver.Report{}, ctx.Err()
		}
	}
	if p.Err != nil {
		return driver.Report{}, p.Err
	}
	return driver.Report{Done: []string{"+ " + line}, Left: p.Left}, nil
}

// Attach implements admin.Changer.
func (p *Plugin) Attach(ctx context.Context, endpoint string, addrs []netip.Addr, dryRun bool) (driver.Report, error) {
	return p.change(ctx, "attach %v to %s%s", addrs, endpoint, dry(dryRun))
}

// Detach implements admin.Changer.
func (p *Plugin) Detach(ctx context.Context, a netip.Addr, dryRun bool) (driver.Report, error) {
	return p.change(ctx, "detach %s%s", a, dry(dryRun))
}

// Move implements admin.Changer.
func (p *Plugin) Move(ctx context.Context, a netip.Addr, endpoint string, drain, dryRun bool) (driver.Report, error) {
	return p.change(ctx, "move %s to %s, drain %t%s", a, endpoint, drain, dry(dryRun))
}

// Doctor implements admin.Examiner.
func (p *Plugin) Doctor(context.Context) ([]doctor.Finding, error) {
	return []doctor.Finding{
		{Level: doctor.OK, Check: "forwarding", Seen: "the host forwards"},
		{Level: doctor.Fail, Check: "filter", Seen: "the policy of FORWARD is DROP", Why: "nothing passes", Remedy: "iptables -P FORWARD ACCEPT"},
	}, p.Err
}

// Trace implements admin.Examiner.
func (p *Plugin) Trace(_ context.Context, q doctor.Question) ([]doctor.Step, error) {
	return []doctor.Step{
		{Step: "address", OK: true, Detail: fmt.Sprintf("%s port %d protocol %d from %v", q.To, q.Port, q.Proto, q.From)},
		{Step: "forward", Detail: "the policy of FORWARD drops it"},
	}, p.Err
}

// Live implements admin.Examiner: it tells of one packet that is let pass, and
// then waits.
func (p *Plugin) Live(ctx context.Context, q doctor.Question, fn func(doctor.Sighting) error) error {
	if p.Err != nil {
		return p.Err
	}
	client := netip.MustParseAddrPort("203.0.113.200:4711")
	header := fmt.Sprintf("%s > %s tcp syn", client, netip.AddrPortFrom(q.To, q.Port))
	for _, s := range []doctor.Sighting{
		{Header: header, Chain: "filter", Rule: "ip daddr vmap @filter_by_ext", Verdict: "jump check-d201897e45ce3bfd"},
		{Chain: "check-d201897e45ce3bfd", Rule: "ip saddr . meta l4proto . th dport @open-d201897e45ce3bfd accept", Verdict: "accept"},
		{Header: header, Chain: "prerouting", Rule: "dnat to ip daddr map @ext2ctr", Verdict: "accept"},
		{Header: fmt.Sprintf("%s > 172.31.0.2:%d tcp syn", client, q.Port), Chain: "forward", Rule: "policy", Verdict: "accept"},
	} {
		s.Time, s.Packet, s.Family, s.Table = Now, "5a6b7c8d", "ip", "extip"
		if err := fn(s); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

// Export implements admin.Examiner.
func (p *Plugin) Export(format string) (string, error) { return "as " + format + "\n", p.Err }

// Adopt implements admin.Examiner.
func (p *Plugin) Adopt(ctx context.Context, dryRun bool) (driver.Report, error) {
	return p.change(ctx, "adopt%s", dry(dryRun))
}

// SetFilter implements admin.Changer.
func (p *Plugin) SetFilter(endpoint, ports, allow string, dryRun bool) (driver.Report, error) {
	return p.change(context.Background(), "filter of %s: ports %q, allow %q%s", endpoint, ports, allow, dry(dryRun))
}

// SetLimit implements admin.Changer.
func (p *Plugin) SetLimit(endpoint, limit string, dryRun bool) (driver.Report, error) {
	return p.change(context.Background(), "limit of %s: %s%s", endpoint, limit, dry(dryRun))
}

// Reserve implements admin.Changer.
func (p *Plugin) Reserve(name string, addrs []netip.Addr, dryRun bool) (driver.Report, error) {
	return p.change(context.Background(), "reserve %v as %s%s", addrs, name, dry(dryRun))
}

// Unreserve implements admin.Changer.
func (p *Plugin) Unreserve(name string, dryRun bool) (driver.Report, error) {
	return p.change(context.Background(), "unreserve %s%s", name, dry(dryRun))
}

// Reconcile implements admin.Changer.
func (p *Plugin) Reconcile(cause string) ([]string, error) {
	r, err := p.change(context.Background(), "reconcile for %s", cause)
	return r.Done, err
}

func dry(dryRun bool) string {
	if dryRun {
		return ", dry"
	}
	return ""
}
