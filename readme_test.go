package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/extip/extip/driver"
)

// TestREADME holds the tables of options and flags to the code's.
func TestREADME(t *testing.T) {
	content, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var options, flags []string
	for _, o := range driver.Options() {
		options = append(options, fmt.Sprintf("| `%s` | %s | %s | %s |", o.Key, o.Where(), o.Value, o.Default))
	}
	serveCommand().Flags().VisitAll(func(f *pflag.Flag) {
		value := ""
		if f.DefValue != "" {
			value = "`" + f.DefValue + "`"
		}
		flags = append(flags, fmt.Sprintf("| `--%s` | %s | %s |", f.Name, value, f.Usage))
	})
	var verbs []string
	for _, c := range command().Commands() {
		if c.GroupID != "" {
			verbs = append(verbs, fmt.Sprintf("| `%s` | %s |", strings.ReplaceAll(strings.TrimSuffix(c.UseLine(), " [flags]"), "|", "\\|"), c.Short))
		}
	}
	for _, table := range []struct {
		header string
		rows   []string
	}{
		{"| verb | |\n|---|---|\n", verbs},
		{"| option | on | value | default |\n|---|---|---|---|\n", options},
		{"| flag | default | |\n|---|---|---|\n", flags},
	} {
		_, after, ok := strings.Cut(string(content), table.header)
		have, _, _ := strings.Cut(after, "\n\n")
		if want := strings.Join(table.rows, "\n"); !ok || have != want {
			t.Errorf("README.md should have:\n%s%s\n\nbut has:\n%s", table.header, want, have)
		}
	}
}

// TestPluginConfig: every flag can be set on a managed plugin, and nothing else.
func TestPluginConfig(t *testing.T) {
	content, err := os.ReadFile("plugin/config.json")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Env []struct{ Name, Value string }
	}
	if err := json.Unmarshal(content, &config); err != nil {
		t.Fatal(err)
	}
	var have, want []string
	for _, e := range config.Env {
		have = append(have, e.Name)
	}
	serveCommand().Flags().VisitAll(func(f *pflag.Flag) { want = append(want, twin(f.Name)) })
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("env %q, want %q", have, want)
	}
}

// TestEnvironmentTwins: every flag can be set by its twin, and wins over it.
func TestEnvironmentTwins(t *testing.T) {
	t.Setenv("EXTIP_PARENT", "br-ex")
	t.Setenv("EXTIP_LOG_LEVEL", "debug")
	t.Setenv("EXTIP_RECONCILE_INTERVAL", "5s")
	flags := serveCommand().Flags()
	if err := flags.Parse([]string{"--log-level", "warning"}); err != nil {
		t.Fatal(err)
	}
	if err := environment(flags); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"parent": "br-ex", "log-level": "warning", "reconcile-interval": "5s", "log-format": "text"} {
		if got := flags.Lookup(name).Value.String(); got != want {
			t.Errorf("--%s is %q, want %q", name, got, want)
		}
	}
	t.Setenv("EXTIP_RECONCILE_INTERVAL", "soon")
	if err := environment(serveCommand().Flags()); err == nil || !strings.Contains(err.Error(), "EXTIP_RECONCILE_INTERVAL=soon") {
		t.Errorf("error %v", err)
	}
}
