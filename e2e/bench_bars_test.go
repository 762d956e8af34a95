package e2e

import "fmt"

// judge holds the figures to what the design promises. A section that was not
// run has no figures, and is not judged.
func (b *bench) judge() {
	for _, count := range []int{1, 10000} {
		b.most("calls", runCalls, mappingsOf("nftables", count), 5)
	}
	for _, what := range []string{runCalls, rmCalls} {
		b.ratio("calls", what, mappingsOf("nftables", 10000), mappingsOf("nftables", 1), "≤", 1.2)
		b.ratio("calls", what, mappingsOf("iptables", 10000), mappingsOf("nftables", 10000), "≤", 5)
	}
	for i, partner := range []string{"bridge, no port", "bridge, no port (beside iptables)"} {
		b.ratio("run", "docker run -d", "extip, "+backends[i], partner, "≤", 1)
		b.ratio("run", "docker rm -f", "extip, "+backends[i], partner, "≤", 0.75)
	}
	for backend, count := range map[string]int{"nftables": 10000, "iptables": 1000} {
		who := mappingsOf(backend, count)
		b.ratio("traffic", tcpRate, who, mappingsOf(backend, 1), "≥", 0.95)
		b.ratio("traffic", tcpRate, who, publishedWay, "≥", 1)
		b.ratio("traffic", bulkRate, who, publishedWay, "≥", 1)
	}
	for _, backend := range backends {
		who := filteredOf(backend, 10000)
		b.ratio("traffic", tcpRate, who, filteredOf(backend, 1), "≥", 0.95)
		b.ratio("traffic", tcpRate, who, publishedWay, "≥", 1)
		b.ratio("traffic", bulkRate, who, publishedWay, "≥", 1)
	}
	for _, backend := range backends {
		who := mappingsOf(backend, 10000)
		b.most("reconcile", "rules, from nothing", who, 200)
		b.most("reconcile", "everything, rules and addresses from nothing", who, 3000)
		b.most("reconcile", "rules, nothing to do", who, 100)
		b.most("reconcile", "everything, nothing to do", who, 100)
		b.most("reconcile", "the program, idle: memory (RSS)", who, 64)
		b.most("reconcile", "the program, most memory ever (RSS)", who, 64)
	}
}

// most judges a median.
func (b *bench) most(section, what, who string, limit float64) {
	if f := b.find(section, what, who); f != nil {
		b.Bars = append(b.Bars, bar{
			What: what + ": " + who, Bar: fmt.Sprintf("≤ %g %s", limit, f.Unit), Measured: short(f.P50) + " " + f.Unit, Met: f.P50 <= limit,
		})
	}
}

// ratio judges one subject by another. Where they were not measured in turn,
// it is the ratio of the medians.
func (b *bench) ratio(section, what, who, against, sign string, limit float64) {
	f, partner := b.find(section, what, who), b.find(section, what, against)
	if f == nil || partner == nil {
		return
	}
	ratio, paired := f.Ratios[against]
	if !paired {
		ratio = f.P50 / partner.P50
	}
	met := ratio <= limit
	if sign == "≥" {
		met = ratio >= limit
	}
	b.Bars = append(b.Bars, bar{
		What: fmt.Sprintf("%s: %s : %s", what, who, against), Bar: fmt.Sprintf("%s %g", sign, limit), Measured: short(ratio), Met: met,
	})
}
