package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"github.com/extip/extip/internal/admintest"
	"github.com/extip/extip/link"
)

// busyMetrics are those of a plugin to which everything has happened.
func busyMetrics(t *testing.T) *Metrics {
	t.Helper()
	m := NewMetrics(admintest.Example(), About{Version: "v1.2.3", Backend: "nftables"})
	m.Call("Join", 3*time.Millisecond, nil)
	m.Call("Join", 900*time.Millisecond, errors.New("refused"))
	m.Reconciled("start", 0, 2, nil)
	m.Reconciled("address gone br-ex", 2*time.Millisecond, 3, nil)
	m.Reconciled("something else", 2*time.Millisecond, 1, errors.New("no"))
	m.Conflict(netip.MustParseAddr("203.0.113.57"))
	m.Announced(netip.MustParseAddr("203.0.113.57"))
	m.Lost(netip.MustParseAddr("203.0.113.57"))
	m.TakenOver(netip.MustParseAddr("203.0.113.57"))
	m.TakenOver(netip.MustParseAddr("203.0.113.58"))
	return m
}

// scrape asks as Prometheus does, and reads the answer as it does.
func scrape(t *testing.T, m *Metrics) (map[string]*dto.MetricFamily, string) {
	t.Helper()
	l, err := ListenMetrics("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		if err := m.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	defer done.Wait()
	defer cancel()
	res, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res.Status, err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(b)))
	if err != nil {
		t.Fatalf("%v in:\n%s", err, b)
	}
	return families, string(b)
}

func TestScrape(t *testing.T) {
	_, text := scrape(t, busyMetrics(t))
	for _, want := range []string{
		`extip_build_info{backend="nftables",version="v1.2.3"} 1`,
		`extip_addresses{network="0a1b2c3d4e5f",state="published"} 3`,
		`extip_addresses{network="0a1b2c3d4e5f",state="withheld"} 1`,
		`extip_addresses{network="1f1b2c3d4e5f",state="withheld"} 0`,
		`extip_pool_size{network="0a1b2c3d4e5f"} 20`,
		`extip_pool_free{network="0a1b2c3d4e5f"} 16`,
		`extip_reservations 2`,
		`extip_call_duration_seconds_count{call="Join",result="error"} 1`,
		`extip_call_duration_seconds_count{call="Join",result="ok"} 1`,
		`extip_repairs_total{cause="start"} 2`,
		`extip_repairs_total{cause="address gone"} 3`,
		`extip_repairs_total{cause="other"} 1`,
		`extip_repairs_total{cause="timer"} 0`,
		`extip_reconcile_duration_seconds_count{result="ok"} 1`,
		`extip_reconcile_duration_seconds_count{result="error"} 1`,
		`extip_conflicts_total{address="203.0.113.57"} 1`,
		`extip_announcements_total 1`,
		`extip_address_new_connections_total{address="203.0.113.56",direction="in"} 1.234567e+06`,
		`extip_address_new_connections_total{address="203.0.113.56",direction="out"} 89`,
		`extip_address_refused_packets_total{address="203.0.113.57"} 7`,
		`extip_address_refused_bytes_total{address="203.0.113.57"} 420`,
		`extip_address_limited_packets_total{address="203.0.113.57",direction="in"} 345`,
		`extip_address_limited_packets_total{address="203.0.113.57",direction="out"} 0`,
		`extip_address_packets_total{address="203.0.113.56",direction="in"} 9.8765432e+07`,
		`extip_address_packets_total{address="203.0.113.56",direction="out"} 8.7654321e+07`,
		`extip_address_bytes_total{address="203.0.113.56",direction="in"} 1.2345678901e+10`,
		`extip_address_bytes_total{address="203.0.113.57",direction="out"} 0`,
		`extip_cluster_apart 0`,
		`extip_cluster_lost_total 1`,
		`extip_cluster_takeovers_total 2`,
	} {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	if unwanted := `extip_address_limited_packets_total{address="203.0.113.56"`; strings.Contains(text, unwanted) {
		t.Errorf("%s, of an address without a limit", unwanted)
	}
	if unwanted := `extip_address_refused_packets_total{address="203.0.113.56"}`; strings.Contains(text, unwanted) {
		t.Errorf("%s, of an address without a filter", unwanted)
	}
	if t.Failed() {
		t.Log(text)
	}
	plugin := admintest.Example()
	plugin.Hosts[0].ApartSince = admintest.Now
	if _, text := scrape(t, NewMetrics(plugin, About{})); !strings.Contains(text, "\nextip_cluster_apart 1\n") {
		t.Errorf("apart:\n%s", text)
	}
	plugin.Hosts = nil
	if _, text := scrape(t, NewMetrics(plugin, About{})); strings.Contains(text, "extip_cluster") {
		t.Errorf("without a cluster:\n%s", text)
	}
	plugin.Err = errors.New("the disk is gone")
	m := NewMetrics(plugin, About{})
	l, err := ListenMetrics("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = m.Serve(t.Context(), l) }()
	res, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil || res.StatusCode != http.StatusInternalServerError {
		t.Errorf("of a plugin that fails: %v %v", res, err)
	}
	_ = res.Body.Close()
}

// TestCardinality: what others choose makes no series without bound.
func TestCardinality(t *testing.T) {
	m := NewMetrics(admintest.Example(), About{})
	a := netip.MustParseAddr("2001:db8::")
	for i := range 3 * maxConflicting {
		a = a.Next()
		m.Conflict(a)
		m.Reconciled(fmt.Sprintf("link gone veth%d", i), time.Millisecond, 1, nil)
		m.Reconciled(fmt.Sprintf("whim %d", i), time.Millisecond, 1, nil)
	}
	families, text := scrape(t, m)
	if n := len(families["extip_conflicts_total"].Metric); n != maxConflicting+1 {
		t.Errorf("%d series of conflicts", n)
	}
	if want := fmt.Sprintf(`extip_conflicts_total{address="other"} %d`, 2*maxConflicting); !strings.Contains(text, want) {
		t.Errorf("no %s", want)
	}
	if n := len(families["extip_repairs_total"].Metric); n != len(causes())+1 {
		t.Errorf("%d series of repairs", n)
	}
}

// TestCauses: each change of the host's network is a cause of its own.
func TestCauses(t *testing.T) {
	for _, k := range []link.Kind{link.LinkGone, link.LinkUp, link.LinkDown, link.PortGone, link.AddressGone, link.RouteGone, link.DefaultRoute, link.Missed} {
		if !slices.Contains(causes(), string(k)) {
			t.Errorf("the cause %q is among the others", k)
		}
	}
}

func TestListenMetrics(t *testing.T) {
	for _, addr := range []string{"", "9323", ":9323", "127.0.0.1:", "127.0.0.1"} {
		if l, err := ListenMetrics(addr); err == nil || !strings.Contains(err.Error(), "--metrics="+addr) {
			t.Errorf("%q: %v, %v", addr, l, err)
		}
	}
}

// metricName finds what an expression asks about.
var metricName = regexp.MustCompile(`\bextip_[a-z_]+`)

// TestDashboardAndAlerts: they ask about what there is.
func TestDashboardAndAlerts(t *testing.T) {
	families, _ := scrape(t, busyMetrics(t))
	known := map[string]bool{}
	for name, f := range families {
		known[name] = true
		if f.GetType() == dto.MetricType_HISTOGRAM {
			known[name+"_bucket"], known[name+"_count"], known[name+"_sum"] = true, true, true
		}
	}
	for _, path := range []string{"../packaging/grafana-dashboard.json", "../packaging/alerts.yaml"} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		names := metricName.FindAllString(string(b), -1)
		if len(names) == 0 {
			t.Errorf("%s: no metric in it", path)
		}
		for _, name := range names {
			if !known[name] {
				t.Errorf("%s: there is no metric %s", path, name)
			}
		}
	}
}

// TestPromtool has what Prometheus reads be read by its own tool, where that is
// installed, and else the file of alerts at least parsed.
func TestPromtool(t *testing.T) {
	b, err := os.ReadFile("../packaging/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(b, &file); err != nil || len(file.Groups) != 1 || len(file.Groups[0].Rules) == 0 {
		t.Fatalf("alerts.yaml: %v, %v", err, file)
	}
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Skip("promtool is not installed")
	}
	_, text := scrape(t, busyMetrics(t))
	for _, args := range [][]string{
		{"check", "rules", "../packaging/alerts.yaml"},
		{"test", "rules", "testdata/alerts_test.yaml"},
		{"check", "metrics"},
	} {
		cmd := exec.Command("promtool", args...)
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
