package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/extip/extip/cluster"
	"github.com/extip/extip/driver"
	"github.com/extip/extip/store"
)

// openRecords opens the state file, and where the claims are shared with other
// hosts, the membership among them; it is nil otherwise.
func openRecords(c config, log logrus.FieldLogger) (*store.Store, *cluster.Member, error) {
	if c.cluster == "" {
		records, err := store.Open(c.state)
		return records, nil, err
	}
	settings, err := c.member(log)
	if err != nil {
		return nil, nil, err
	}
	member, err := cluster.Open(settings)
	if err != nil {
		return nil, nil, fmt.Errorf("--cluster=%s: %w", c.cluster, err)
	}
	records, err := store.OpenShared(c.state, member)
	if err != nil {
		return nil, nil, errors.Join(err, member.Close())
	}
	return records, member, nil
}

func closeRecords(records *store.Store, member *cluster.Member) error {
	err := records.Close()
	if member != nil {
		err = errors.Join(err, member.Close())
	}
	return err
}

// share has the kernel and the driver heed the other hosts. What it returns is to
// be run.
func share(member *cluster.Member, k kernel, d *driver.Driver) func(context.Context) error {
	if member == nil {
		return func(context.Context) error { return nil }
	}
	member.SetMACs(k.host.MACs)
	k.announcer.SetPermit(member.MayDefend)
	// Of two that ask for an address at the same time the ledger says who gets it,
	// if it can be asked; by the wire neither would.
	k.announcer.SetPeer(func(mac net.HardwareAddr) bool {
		_, apart := member.Apart()
		return !apart && member.Member(mac) != ""
	})
	d.JoinCluster(member)
	return func(ctx context.Context) error {
		member.Follow(d)
		return member.Run(ctx)
	}
}

// member is what the flags say of the cluster.
func (c config) member(log logrus.FieldLogger) (m cluster.Config, err error) {
	m = cluster.Config{Host: c.clusterHost, Version: version, TTL: c.clusterTTL, User: c.clusterUser}
	if m.Endpoints, m.Prefix, err = cluster.Parse(c.cluster); err != nil {
		return m, fmt.Errorf("--cluster=%s: %w", c.cluster, err)
	}
	if m.Host == "" {
		if m.Host, err = os.Hostname(); err != nil {
			return m, fmt.Errorf("--cluster-host: %w", err)
		}
	}
	if m.ID, err = cluster.Identity(filepath.Join(filepath.Dir(c.state), "cluster-id")); err != nil {
		return m, err
	}
	if m.TLS, err = c.clusterTLS(); err != nil {
		return m, err
	}
	if (c.clusterUser == "") != (c.clusterPasswordFile == "") {
		return m, errors.New("--cluster-user and --cluster-password-file: one needs the other")
	}
	if c.clusterPasswordFile != "" {
		password, err := os.ReadFile(c.clusterPasswordFile)
		if err != nil {
			return m, fmt.Errorf("--cluster-password-file: %w", err)
		}
		m.Password = strings.TrimRight(string(password), "\r\n")
	}
	m.Trouble = func(err error) {
		log := log.WithField("cluster", c.cluster)
		if err != nil {
			log.WithError(err).Warn("this host is not joined with the others")
		} else {
			log.WithField("host", m.Host).Info("joined with the other hosts")
		}
	}
	return m, nil
}

// clusterTLS is nil if no file is named.
func (c config) clusterTLS() (*tls.Config, error) {
	if c.clusterCA == "" && c.clusterCert == "" && c.clusterKey == "" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.clusterCA != "" {
		pem, err := os.ReadFile(c.clusterCA)
		if err != nil {
			return nil, fmt.Errorf("--cluster-ca: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--cluster-ca: %s has no certificate", c.clusterCA)
		}
	}
	if (c.clusterCert == "") != (c.clusterKey == "") {
		return nil, errors.New("--cluster-cert and --cluster-key: one needs the other")
	}
	if c.clusterCert != "" {
		pair, err := tls.LoadX509KeyPair(c.clusterCert, c.clusterKey)
		if err != nil {
			return nil, fmt.Errorf("--cluster-cert, --cluster-key: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}
