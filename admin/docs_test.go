package admin

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// section is what is between a heading of the documentation and the next one.
func section(t *testing.T, heading string) string {
	t.Helper()
	b, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(b), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("docs/api.md has no heading %q", heading)
	}
	end := regexp.MustCompile(`(?m)^#`).FindStringIndex(after)
	if end != nil {
		after = after[:end[0]]
	}
	return after
}

// firstCells are those of a table's rows, from a line that begins so.
func firstCells(text, header string) []string {
	_, after, _ := strings.Cut("\n"+text, "\n"+header)
	var cells []string
	for i, line := range strings.Split(after, "\n") {
		if i > 0 && !strings.HasPrefix(line, "|") {
			break
		}
		if i >= 2 {
			cells = append(cells, strings.Trim(strings.Split(line, "|")[1], " `"))
		}
	}
	return cells
}

// TestCallsDocumented holds the table of calls to the code's.
func TestCallsDocumented(t *testing.T) {
	var want []string
	for _, c := range calls() {
		request := ""
		if c.request != nil {
			request = " " + reflect.TypeOf(c.request).Name()
		}
		want = append(want, fmt.Sprintf("| %s | `/v%d/%s` |%s | %s", c.method, apiVersion, c.path, request, reflect.TypeOf(c.answer).Name()))
	}
	var have []string
	for line := range strings.Lines(section(t, "## Calls")) {
		if m := regexp.MustCompile(`^\| (GET|POST) .*? \|( \w+)? \| \w+`).FindString(line); m != "" {
			have = append(have, m)
		}
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("docs/api.md (-code +docs):\n%s", diff)
	}
}

// TestFieldsDocumented holds the table of each type to its fields.
func TestFieldsDocumented(t *testing.T) {
	types := map[string]reflect.Type{}
	var walk func(reflect.Type)
	walk = func(rt reflect.Type) {
		switch rt.Kind() {
		case reflect.Slice, reflect.Pointer:
			walk(rt.Elem())
		case reflect.Struct:
			if !strings.Contains(rt.PkgPath(), "extip") {
				return
			}
			types[rt.Name()] = rt
			for i := range rt.NumField() {
				walk(rt.Field(i).Type)
			}
		}
	}
	for _, c := range calls() {
		walk(reflect.TypeOf(c.answer))
		if c.request != nil {
			walk(reflect.TypeOf(c.request))
		}
	}
	for name, rt := range types {
		var want []string
		for i := range rt.NumField() {
			tag, _, _ := strings.Cut(rt.Field(i).Tag.Get("json"), ",")
			want = append(want, tag)
		}
		if diff := cmp.Diff(want, firstCells(section(t, "### "+name), "| field | |")); diff != "" {
			t.Errorf("docs/api.md, %s (-code +docs):\n%s", name, diff)
		}
	}
}

func TestErrorsDocumented(t *testing.T) {
	have := map[string]int{}
	for line := range strings.Lines(section(t, "## Errors")) {
		if m := regexp.MustCompile("^\\| `(\\w+)` \\| (\\d+) \\|").FindStringSubmatch(line); m != nil {
			status, err := strconv.Atoi(m[2])
			if err != nil {
				t.Fatal(err)
			}
			have[m[1]] = status
		}
	}
	if diff := cmp.Diff(statuses, have); diff != "" {
		t.Errorf("docs/api.md (-code +docs):\n%s", diff)
	}
}

// TestEventsDocumented holds the table of kinds to the driver's constants.
func TestEventsDocumented(t *testing.T) {
	source, err := os.ReadFile("../driver/events.go")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, m := range regexp.MustCompile(`(?m)^\tEvent\w+ += "([a-z-]+)"`).FindAllStringSubmatch(string(source), -1) {
		want = append(want, m[1])
	}
	if diff := cmp.Diff(want, firstCells(section(t, "### Event"), "| kind | |")); diff != "" || len(want) == 0 {
		t.Errorf("docs/api.md (-code +docs):\n%s", diff)
	}
}

// TestMetricsDocumented holds the table of metrics to a scrape.
func TestMetricsDocumented(t *testing.T) {
	families, _ := scrape(t, busyMetrics(t))
	var want []string
	for _, name := range slices.Sorted(maps.Keys(families)) {
		if f := families[name]; strings.HasPrefix(name, "extip_") {
			labels := map[string]bool{}
			for _, m := range f.Metric {
				for _, l := range m.Label {
					labels["`"+l.GetName()+"`"] = true
				}
			}
			cell := ""
			if len(labels) > 0 {
				cell = " " + strings.Join(slices.Sorted(maps.Keys(labels)), ", ")
			}
			want = append(want, fmt.Sprintf("| `%s` | %s |%s |", name, strings.ToLower(f.GetType().String()), cell))
		}
	}
	var have []string
	for line := range strings.Lines(section(t, "# Metrics")) {
		if strings.HasPrefix(line, "| `extip_") {
			have = append(have, strings.Join(strings.SplitAfterN(line, "|", 5)[:4], ""))
		}
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("docs/api.md (-scrape +docs):\n%s", diff)
	}
}
