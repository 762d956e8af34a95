package main

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

// TestManual renders the man pages, into the folder EXTIP_MANUAL if that is
// set: packages are made so, and the program need not know how.
func TestManual(t *testing.T) {
	dir := os.Getenv("EXTIP_MANUAL")
	if dir == "" {
		dir = t.TempDir()
	}
	seconds, _ := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	date := time.Unix(seconds, 0).UTC()
	root := command()
	root.DisableAutoGenTag = true
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		// Its pages would be as many as all others.
		c.Hidden = c.Name() == "completion"
	}
	header := &doc.GenManHeader{Section: "1", Source: "extip " + os.Getenv("VERSION"), Manual: "extip", Date: &date}
	if err := doc.GenManTree(root, header, dir); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(dir + "/extip-serve.1")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(page), `\-`, "-")
	serveCommand().Flags().VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(text, "--"+f.Name) {
			t.Errorf("extip-serve(1) does not have --%s", f.Name)
		}
	})
}

// TestDefaults: what the file of a package's settings suggests are settings.
func TestDefaults(t *testing.T) {
	content, err := os.ReadFile("packaging/extip.default")
	if err != nil {
		t.Fatal(err)
	}
	var twins []string
	serveCommand().Flags().VisitAll(func(f *pflag.Flag) { twins = append(twins, twin(f.Name)) })
	for line := range strings.Lines(string(content)) {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "#"), "=")
		if !ok || strings.Contains(name, " ") {
			continue
		}
		t.Setenv(name, value)
		found := false
		for _, twin := range twins {
			found = found || twin == name
		}
		if !found {
			t.Errorf("%s is no flag's twin", name)
		}
	}
	if err := environment(serveCommand().Flags()); err != nil {
		t.Error(err)
	}
}
