package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

// TestClusterFlags: what can't be is refused by the flag's name.
func TestClusterFlags(t *testing.T) {
	dir := t.TempDir()
	empty, password := filepath.Join(dir, "empty.pem"), filepath.Join(dir, "password")
	for file, content := range map[string]string{empty: "", password: "se same \n"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good := config{state: filepath.Join(dir, "extip.db"), cluster: "etcd://127.0.0.1", clusterUser: "extip", clusterPasswordFile: password}
	m, err := good.member(logrus.New())
	name, _ := os.Hostname()
	if err != nil || m.Password != "se same " || m.TLS != nil || m.Host != name || m.ID == "" {
		t.Errorf("%+v, %v", m, err)
	}
	for what, change := range map[string]func(*config){
		"--cluster=":                                 func(c *config) { c.cluster = "redis://x" },
		"--cluster-ca: open":                         func(c *config) { c.clusterCA = filepath.Join(dir, "none") },
		"--cluster-ca: " + empty:                     func(c *config) { c.clusterCA = empty },
		"--cluster-cert, --cluster-key: ":            func(c *config) { c.clusterCert, c.clusterKey = empty, empty },
		"--cluster-cert and --cluster-key: one":      func(c *config) { c.clusterCert = empty },
		"--cluster-password-file: open":              func(c *config) { c.clusterPasswordFile = filepath.Join(dir, "none") },
		"--cluster-user and --cluster-password-file": func(c *config) { c.clusterUser = "" },
	} {
		c := good
		change(&c)
		if _, err := c.member(logrus.New()); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
