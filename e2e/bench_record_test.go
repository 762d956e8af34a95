package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A figure is what was measured of one subject.
type figure struct {
	Section string
	What    string // what was measured: "docker run -d"
	Who     string // of whom: "extip, nftables"
	Unit    string
	Samples int
	P50     float64
	P99     float64
	Min     float64
	Max     float64
	// Ratios to other subjects: medians of the paired samples' ratios.
	Ratios map[string]float64 `json:",omitempty"`

	samples []float64
}

// A bar is what was promised, and what came of it.
type bar struct {
	What     string
	Bar      string
	Measured string
	Met      bool
}

// record is what a run found.
type record struct {
	Date    time.Time
	Machine map[string]string
	Seconds float64
	Notes   []string
	Figures []*figure
	Bars    []bar

	section string
	printed int // figures
}

func newRecord() *record {
	first := func(args ...string) string {
		out, err := exec.Command(args[0], args[1:]...).Output()
		if err != nil {
			return "unknown"
		}
		line, _, _ := strings.Cut(string(out), "\n")
		return strings.TrimSpace(line)
	}
	return &record{Date: time.Now().UTC().Truncate(time.Second), Machine: map[string]string{
		"kernel":     first("uname", "-r"),
		"processors": fmt.Sprint(runtime.NumCPU()),
		"go":         runtime.Version(),
		"iptables":   first("iptables", "--version"),
	}}
}

// add adds samples to what was measured of a subject.
func (r *record) add(what, who, unit string, samples ...float64) {
	f := r.find(r.section, what, who)
	if f == nil {
		f = &figure{Section: r.section, What: what, Who: who, Unit: unit}
		r.Figures = append(r.Figures, f)
	}
	f.samples = append(f.samples, samples...)
	sorted := slices.Sorted(slices.Values(f.samples))
	f.Samples, f.Min, f.Max = len(sorted), sorted[0], sorted[len(sorted)-1]
	f.P50, f.P99 = quantile(sorted, 0.5), quantile(sorted, 0.99)
}

func (r *record) find(section, what, who string) *figure {
	for _, f := range r.Figures {
		if f.Section == section && f.What == what && f.Who == who {
			return f
		}
	}
	return nil
}

// compare sets a subject's ratio to another one, whose samples were taken in
// turn with its own.
func (r *record) compare(what, who, against string) {
	f, partner := r.find(r.section, what, who), r.find(r.section, what, against)
	if f == nil || partner == nil {
		return
	}
	var ratios []float64
	for i := range min(len(f.samples), len(partner.samples)) {
		ratios = append(ratios, f.samples[i]/partner.samples[i])
	}
	slices.Sort(ratios)
	if f.Ratios == nil {
		f.Ratios = map[string]float64{}
	}
	f.Ratios[against] = quantile(ratios, 0.5)
}

// quantile of sorted values: the middle between two for an even number's half.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// note records what a reader must know of the figures.
func (r *record) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// print lists the figures that are new, those of one thing together.
func (r *record) print(w io.Writer) {
	var titles []string
	byWhat := map[string][]*figure{}
	for _, f := range r.Figures[r.printed:] {
		title := fmt.Sprintf("%s (%s)", f.What, f.Unit)
		if byWhat[title] == nil {
			titles = append(titles, title)
		}
		byWhat[title] = append(byWhat[title], f)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, title := range titles {
		_, _ = fmt.Fprintf(t, "%s\tp50\tp99\tn\t\n", title)
		for _, f := range byWhat[title] {
			var ratios []string
			for _, against := range slices.Sorted(maps.Keys(f.Ratios)) {
				ratios = append(ratios, fmt.Sprintf("%s × %s", short(f.Ratios[against]), against))
			}
			_, _ = fmt.Fprintf(t, "  %s\t%s\t%s\t%d\t%s\n", f.Who, short(f.P50), short(f.P99), f.Samples, strings.Join(ratios, ", "))
		}
	}
	_ = t.Flush()
	_, _ = fmt.Fprintln(w)
}

// short writes a number with three digits that mean something.
func short(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	return fmt.Sprintf("%.*f", min(digits, 4), v)
}

func (r *record) printBars(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "\nbar\tmeasured\t\t")
	for _, b := range r.Bars {
		verdict := "met"
		if !b.Met {
			verdict = "MISSED"
		}
		_, _ = fmt.Fprintf(t, "%s %s\t%s\t%s\n", b.What, b.Bar, b.Measured, verdict)
	}
	_ = t.Flush()
	for _, n := range r.Notes {
		_, _ = fmt.Fprintln(w, "note:", n)
	}
}

// write writes the figures, and beside them the charts.
func (r *record) write(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, append(text, '\n'), 0o644); err != nil {
		return err
	}
	base := strings.TrimSuffix(file, ".json")
	for name, svg := range r.charts() {
		if err := os.WriteFile(base+"-"+name+".svg", []byte(svg), 0o644); err != nil {
			return err
		}
	}
	return nil
}
