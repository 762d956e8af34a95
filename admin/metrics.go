package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/extip/extip/driver"
)

// maxConflicting is how many addresses have a counter of conflicts of their
// own; those of all others are counted together, as of address "other".
const maxConflicting = 256

// causes are the values of the label cause, besides "other": the causes of
// reconciliations without the names in them.
func causes() []string {
	return []string{
		"start", "timer", "operator", "SIGHUP", "rules changed", "firewalld", "uplinks", "withheld address",
		"link gone", "link up", "link down", "port left its bridge", "address gone", "route gone", "default route", "events missed",
	}
}

// Metrics is the plugin's state and what has happened to it, as Prometheus
// wants to see it. It is the driver's Observer. The number of its series grows
// with the numbers of networks and of addresses that containers have, and with
// nothing else beyond a bound.
type Metrics struct {
	plugin   Looker
	registry *prometheus.Registry

	calls, reconciles  *prometheus.HistogramVec
	repairs, conflicts *prometheus.CounterVec
	announcements      prometheus.Counter
	lost, takeovers    prometheus.Counter

	addresses, size, free, reservations, apart *prometheus.Desc
	counted                                    counted

	mu          sync.Mutex
	conflicting map[netip.Addr]bool
}

// NewMetrics returns the Metrics of a plugin.
func NewMetrics(p Looker, about About) *Metrics {
	// Calls take from a tenth of a millisecond to as long as a probe does,
	// reconciliations from a millisecond to some seconds.
	fast := prometheus.ExponentialBuckets(0.0005, 2.5, 11)
	counter := func(name, help string) prometheus.CounterOpts { return prometheus.CounterOpts{Name: name, Help: help} }
	histogram := func(name, help string) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Name: name, Help: help, Buckets: fast}
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	m := &Metrics{
		plugin: p, registry: prometheus.NewRegistry(), conflicting: map[netip.Addr]bool{},
		calls:         prometheus.NewHistogramVec(histogram("extip_call_duration_seconds", "How long the engine's calls took, by call and result: ok or error."), []string{"call", "result"}),
		reconciles:    prometheus.NewHistogramVec(histogram("extip_reconcile_duration_seconds", "How long comparisons of the kernel with the records took, by result: ok or error."), []string{"result"}),
		repairs:       prometheus.NewCounterVec(counter("extip_repairs_total", "What was not as it should be in the kernel, by what made extip look."), []string{"cause"}),
		conflicts:     prometheus.NewCounterVec(counter("extip_conflicts_total", "How often another host was heard to use an address, by address."), []string{"address"}),
		announcements: prometheus.NewCounter(counter("extip_announcements_total", "How often neighbours were told where an address is.")),
		lost:          prometheus.NewCounter(counter("extip_cluster_lost_total", "How often an address was given up because another host had it, or used it while this one couldn't prove its claim.")),
		takeovers:     prometheus.NewCounter(counter("extip_cluster_takeovers_total", "How often an address was taken over from another host that handed it over, or answered for it without a claim.")),
		addresses:     desc("extip_addresses", "External addresses that containers have, by network and state.", "network", "state"),
		size:          desc("extip_pool_size", "Addresses of a network's pool.", "network"),
		free:          desc("extip_pool_free", "Addresses of a network's pool that are neither claimed nor reserved.", "network"),
		reservations:  desc("extip_reservations", "Names that keep addresses."),
		counted:       newCounted(),
		apart:         desc("extip_cluster_apart", "1 if this host can't reach what it shares its claims by, else 0; without a cluster there is none."),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "extip_build_info", Help: "Always 1; what runs is in the labels.",
		ConstLabels: prometheus.Labels{"version": about.Version, "backend": about.Backend},
	})
	build.Set(1)
	for _, cause := range append(causes(), "other") {
		m.repairs.WithLabelValues(cause) // 0 from the start, so that the first repair is an increase
	}
	m.registry.MustRegister(m, build, m.calls, m.reconciles, m.repairs, m.conflicts, m.announcements,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Call implements driver.Observer.
func (m *Metrics) Call(method string, took time.Duration, err error) {
	m.calls.WithLabelValues(method, result(err)).Observe(took.Seconds())
}

// Reconciled implements driver.Observer.
func (m *Metrics) Reconciled(cause string, took time.Duration, n int, err error) {
	if took > 0 {
		m.reconciles.WithLabelValues(result(err)).Observe(took.Seconds())
	}
	label := "other"
	for _, known := range causes() {
		if cause == known || strings.HasPrefix(cause, known+" ") {
			label = known
		}
	}
	m.repairs.WithLabelValues(label).Add(float64(n))
}

// Conflict implements driver.Observer.
func (m *Metrics) Conflict(a netip.Addr) {
	m.mu.Lock()
	if len(m.conflicting) < maxConflicting {
		m.conflicting[a] = true
	}
	label := "other"
	if m.conflicting[a] {
		label = a.String()
	}
	m.mu.Unlock()
	m.conflicts.WithLabelValues(label).Inc()
}

// Announced implements driver.Observer.
func (m *Metrics) Announced(netip.Addr) { m.announcements.Inc() }

// Lost implements driver.Observer.
func (m *Metrics) Lost(netip.Addr) { m.lost.Inc() }

// TakenOver implements driver.Observer.
func (m *Metrics) TakenOver(netip.Addr) { m.takeovers.Inc() }

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range append(m.counted.all(), m.addresses, m.size, m.free, m.reservations, m.apart) {
		out <- d
	}
}

// Collect implements prometheus.Collector: it looks at the plugin.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	type key struct{ network, state string }
	count := map[key]int{}
	for _, n := range m.plugin.NetworkInfos() {
		id := short(n.ID)
		gauge(m.size, float64(n.Size), id)
		gauge(m.free, float64(n.Free), id)
		for _, state := range []string{driver.StatePublished, driver.StateWithheld} {
			count[key{id, state}] = 0 // so that one that goes away is seen to
		}
	}
	addresses, err := m.plugin.Counted()
	if err != nil {
		out <- prometheus.NewInvalidMetric(m.counted.connections, err)
	}
	for _, a := range addresses {
		count[key{short(a.Network), a.State}]++
		m.counted.collect(out, a)
	}
	for k, n := range count {
		gauge(m.addresses, float64(n), k.network, k.state)
	}
	records, err := m.plugin.Reservations()
	if err != nil {
		out <- prometheus.NewInvalidMetric(m.reservations, err)
		return
	}
	gauge(m.reservations, float64(len(records)))
	members, err := m.plugin.Members()
	if err != nil {
		out <- prometheus.NewInvalidMetric(m.apart, err)
		return
	}
	for _, member := range members {
		switch {
		case !member.Own:
		case member.ApartSince.IsZero():
			gauge(m.apart, 0)
		default:
			gauge(m.apart, 1)
		}
	}
	if len(members) > 0 {
		m.lost.Collect(out)
		m.takeovers.Collect(out)
	}
}

// short is the form of an id that docker's own listings use.
func short(id string) string { return id[:min(len(id), 12)] }

// ListenMetrics binds an address for Serve. It must say which of the host's
// addresses that is: to be reached from everywhere has to be meant.
func ListenMetrics(addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" {
		return nil, fmt.Errorf("--metrics=%s: allowed is ADDRESS:PORT, such as 127.0.0.1:9323; 0.0.0.0 and [::] are all addresses", addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--metrics=%s: %w", addr, err)
	}
	return l, nil
}

// Serve answers scrapes of /metrics on l until ctx ends.
func (m *Metrics) Serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: writeTimeout}))
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout, WriteTimeout: 2 * writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: 16 << 10, ConnState: limit(maxConns),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("admin: serve metrics: %w", err)
	case <-ctx.Done():
	}
	err := server.Close() // a scrape can be repeated
	return errors.Join(err, ignoreClosed(<-failed))
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
