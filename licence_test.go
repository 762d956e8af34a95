package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// licences are those that what is part of the program may have, each with
// words that stand in no other.
var licences = map[string]string{
	"MIT":        "permission is hereby granted, free of charge, to any person obtaining a copy",
	"BSD":        "redistribution and use in source and binary forms, with or without modification, are permitted",
	"Apache-2.0": "apache license version 2.0, january 2004",
}

// TestLicences holds every module that is part of the program to a licence that
// lets it be.
func TestLicences(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", `{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}`, ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) != 2 || seen[fields[0]] {
			continue
		}
		seen[fields[0]] = true
		if licenceIn(t, fields[1]) == "" {
			t.Errorf("%s has a licence that is in no table of licence_test.go, or none", fields[0])
		}
	}
	if len(seen) < 10 {
		t.Errorf("only %d modules were looked at: %v", len(seen), seen)
	}
}

func licenceIn(t *testing.T, dir string) string {
	t.Helper()
	for _, pattern := range []string{"LICENSE*", "LICENCE*", "COPYING*"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Join(strings.Fields(strings.ToLower(string(content))), " ")
			for name, words := range licences {
				if strings.Contains(text, words) {
					return name
				}
			}
		}
	}
	return ""
}
