package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// A bench is one run of scripts/bench.sh. What is compared is measured in
// turn, in the same run, on networks of its own; only then is a ratio worth
// anything on a machine that does other things, too.
type bench struct {
	*record
	t     *testing.T
	quick bool
	began time.Time
}

// TestBench measures; scripts/bench.sh calls it. EXTIP_BENCH is the file for
// the figures. EXTIP_BENCH_QUICK=1 is for a look: fewer of everything.
// EXTIP_BENCH_ONLY names sections.
func TestBench(t *testing.T) {
	file := os.Getenv("EXTIP_BENCH")
	if file == "" {
		t.Skip("EXTIP_BENCH names no file: run scripts/bench.sh")
	}
	b := &bench{record: newRecord(), t: t, quick: os.Getenv("EXTIP_BENCH_QUICK") == "1", began: time.Now()}
	only := os.Getenv("EXTIP_BENCH_ONLY")
	for _, section := range []struct {
		name, title string
		run         func(*testing.T)
	}{
		{"driver", "the driver's time in the engine's calls, and for a look at everything", b.driver},
		{"run", "docker run and docker rm", b.dockerRun},
		{"traffic", "traffic", b.traffic},
		{"churn", "many containers at once", b.churn},
	} {
		if only != "" && !strings.Contains(","+only+",", ","+section.name+",") {
			continue
		}
		b.say("%s", section.title)
		b.section = section.name
		b.printed = len(b.Figures)
		t.Run(section.name, func(t *testing.T) { section.run(t) })
		b.print(os.Stdout)
	}
	b.judge()
	b.printBars(os.Stdout)
	b.Seconds = time.Since(b.began).Seconds()
	if err := b.write(file); err != nil {
		t.Fatal(err)
	}
	b.say("done: %s", file)
}

// say tells how far it is.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "[%4.0f s] %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// pick is full, or quick in a quick run.
func (b *bench) pick(quick, full int) int {
	if b.quick {
		return quick
	}
	return full
}

// inTurn runs each of the subjects in each of the rounds, and begins with
// another one each time, so that none is always the one after a slow one.
func inTurn(rounds int, subjects ...func()) {
	for r := range rounds {
		for i := range subjects {
			subjects[(r+i)%len(subjects)]()
		}
	}
}

// took is how many milliseconds fn takes.
func took(fn func()) float64 {
	began := time.Now()
	fn()
	return float64(time.Since(began).Nanoseconds()) / 1e6
}
