package e2e

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// A column is one bar of a chart.
type column struct {
	label string
	value float64
	// ours is what the chart is about.
	ours bool
}

// charts draws what was measured, by name; a section that was not run has none.
func (r *record) charts() map[string]string {
	charts := map[string]string{}
	draw := func(name, title, unit, section, what string, logarithmic bool) {
		var columns []column
		for _, f := range r.Figures {
			if f.Section == section && f.What == what && !strings.Contains(f.Who, "in turn with") && !strings.Contains(f.Who, "beside") {
				columns = append(columns, column{f.Who, f.P50, strings.Contains(f.Who, "tables")})
			}
		}
		if len(columns) > 0 {
			charts[name] = chart(title, unit, columns, logarithmic)
		}
	}
	draw("start", "docker run -d: median, logarithmic", "ms", "run", "docker run -d", true)
	draw("removal", "docker rm -f: median, logarithmic", "ms", "run", "docker rm -f", true)
	draw("calls", "the driver's share of a docker run: median", "ms", "calls", runCalls, false)
	draw("connections", "new TCP connections per second, one client: median", "", "traffic", tcpRate, false)
	draw("throughput", "one TCP stream: median", "Gbit/s", "traffic", bulkRate, false)
	return charts
}

// chart draws lying bars, so that their names can be read. Its colours are
// right on white and on black.
func chart(title, unit string, columns []column, logarithmic bool) string {
	const left, width, row, top = 260, 360, 22, 34
	most := slices.MaxFunc(columns, func(a, b column) int { return int(math.Copysign(1, a.value-b.value)) }).value
	least := slices.MinFunc(columns, func(a, b column) int { return int(math.Copysign(1, a.value-b.value)) }).value
	length := func(v float64) float64 { return width * v / most }
	if logarithmic {
		from := math.Log10(least) - 0.3
		length = func(v float64) float64 { return width * (math.Log10(v) - from) / (math.Log10(most) - from) }
	}
	var b strings.Builder
	height := top + row*len(columns) + 8
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12" fill="#777">`+"\n",
		left+width+100, height, left+width+100, height)
	fmt.Fprintf(&b, `<text x="8" y="20" font-size="14" font-weight="bold">%s</text>`+"\n", html.EscapeString(title))
	for i, c := range columns {
		y, colour := top+i*row, "#9aa7b4"
		if c.ours {
			colour = "#2a7de1"
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, left-8, y+14, html.EscapeString(c.label))
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, left, y+2, length(c.value), row-6, colour)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d">%s %s</text>`+"\n", left+length(c.value)+6, y+14, short(c.value), unit)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
