package cluster

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Bounds and default of Config.TTL. etcd itself grants no lease of less than
// two seconds, and a third of it has to be enough for a renewal.
const (
	MinTTL     = 3 * time.Second
	MaxTTL     = 5 * time.Minute
	DefaultTTL = 10 * time.Second
)

// Config says where the ledger is, and who this host is in it.
type Config struct {
	// Endpoints are etcd's, each as host:port. They are tried in this order;
	// one that answers is kept to.
	Endpoints []string
	// Prefix is that of all keys: "/extip/v1/".
	Prefix string
	// Host is this host's name in the ledger, and ID tells it from another
	// that has the same name by mistake.
	Host, ID string
	// Version is that of the program, for others to see.
	Version string
	// TTL is how long this host's claims outlive it, a whole number of seconds
	// from MinTTL to MaxTTL. A lease that is gone on with keeps its own.
	TTL time.Duration
	// TLS is nil for connections that are not encrypted.
	TLS *tls.Config
	// User and Password are those of etcd; no User: none is needed.
	User, Password string
	// Trouble, unless nil, is called when this host loses touch with the
	// ledger, with the reason, when the reason changes, and with nil when it
	// is back. Calls don't overlap.
	Trouble func(error)
}

// Parse reads where the ledger is: "etcd://HOST[:PORT],…[/PREFIX]". The port is
// 2379 unless named, and the prefix of the keys is extip. What follows is the
// version of their layout.
func Parse(s string) (endpoints []string, prefix string, err error) {
	rest, ok := strings.CutPrefix(s, "etcd://")
	if !ok {
		return nil, "", errors.New("it should be etcd://HOST[:PORT],…[/PREFIX]")
	}
	hosts, path, _ := strings.Cut(rest, "/")
	for host := range strings.SplitSeq(hosts, ",") {
		e, err := endpoint(host)
		if err != nil {
			return nil, "", err
		}
		endpoints = append(endpoints, e)
	}
	if path = strings.Trim(path, "/"); path == "" {
		path = "extip"
	}
	return endpoints, "/" + path + "/v1/", nil
}

// endpoint completes one of a list.
func endpoint(host string) (string, error) {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = strings.Trim(host, "[]"), "2379"
	}
	if _, err := netip.ParseAddr(name); err != nil && !isName.MatchString(name) {
		return "", fmt.Errorf("%q is no host", host)
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
		return "", fmt.Errorf("%q has no port", host)
	}
	return net.JoinHostPort(name, port), nil
}

// isName matches names of hosts, as they are and as they are in keys.
var isName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)

// check finds what a Config can't be.
func (c Config) check() error {
	switch {
	case len(c.Endpoints) == 0:
		return errors.New("no endpoint is named")
	case !isName.MatchString(c.Host):
		return fmt.Errorf("%q can't be a host's name: letters, digits, dots, hyphens and underscores can", c.Host)
	case c.ID == "":
		return errors.New("this host has no id")
	case c.TTL < MinTTL || c.TTL > MaxTTL || c.TTL%time.Second != 0:
		return fmt.Errorf("a TTL of %s: it is a whole number of seconds from %s to %s", c.TTL, MinTTL, MaxTTL)
	}
	return nil
}

// Identity reads a host's id from a file, which it makes with a random one if
// there is none.
func Identity(path string) (string, error) {
	b, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(b)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cluster: %w", err)
	}
	random := make([]byte, 8)
	_, _ = rand.Read(random) // never fails
	id := hex.EncodeToString(random)
	// Never half of it, whenever the machine stops.
	part := path + ".part"
	err = os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = os.WriteFile(part, []byte(id+"\n"), 0o600)
	}
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return "", fmt.Errorf("cluster: %w", err)
	}
	return id, nil
}
