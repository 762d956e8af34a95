package cluster_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/extip/extip/internal/etcdtest"
	"github.com/extip/extip/store"
)

// An authority signs certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key, a.file, _ = a.issue("authority", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue makes a certificate, and files of it and of its key.
func (a *authority) issue(name string, c *x509.Certificate) (cert *x509.Certificate, key *ecdsa.PrivateKey, certFile, keyFile string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+"-key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "EC PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return cert, key, certFile, keyFile
}

// TestTLS: etcd shows a certificate and wants to see one.
func TestTLS(t *testing.T) {
	ca := newAuthority(t)
	_, _, serverCert, serverKey := ca.issue("etcd", &x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, // also for itself
	})
	_, _, clientCert, clientKey := ca.issue("docker1", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	nodes := etcdtest.StartTLS(t, etcdtest.TLS{Cert: serverCert, Key: serverKey, ClientCA: ca.file}, etcdtest.Local(2)...)
	pair, err := tls.LoadX509KeyPair(clientCert, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	c := config(t, nodes, "docker1")
	c.TLS = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}
	one, leave := join(t, c)
	if err := claim(one, key, own); err != nil {
		t.Error(err)
	}
	leave()
	for what, tt := range map[string]struct {
		tls  *tls.Config
		says string
	}{
		"nothing": {nil, ""},
		// That etcd hangs up may be heard before why.
		"no certificate":    {&tls.Config{RootCAs: roots}, ""},
		"another authority": {&tls.Config{Certificates: []tls.Certificate{pair}}, "unknown authority"},
	} {
		c.TLS = tt.tls
		var trouble error
		c.Trouble = func(err error) { trouble = err }
		m, leave := join(t, c)
		if err := claim(m, key, own); !errors.Is(err, store.ErrApart) {
			t.Errorf("with %s: %v", what, err)
		}
		leave()
		t.Logf("with %s: %v", what, trouble)
		if trouble == nil || !strings.Contains(trouble.Error(), tt.says) {
			t.Errorf("with %s: %v", what, trouble)
		}
	}
}

// TestUser: etcd wants a name and a password.
func TestUser(t *testing.T) {
	nodes := etcdtest.Start(t, etcdtest.Local(1)...)
	for _, words := range []string{
		"user add root:secret", "user grant-role root root", "role add extip", "role grant-permission extip readwrite --prefix=true /extip/v1/",
		"user add extip:sesame", "user grant-role extip extip", "auth enable",
	} {
		nodes[0].Ctl(strings.Fields(words)...)
	}
	c := config(t, nodes, "docker1")
	c.User, c.Password = "extip", "sesame"
	one, leave := join(t, c)
	if err := claim(one, key, own); err != nil {
		t.Error(err)
	}
	if err := one.Await(t.Context(), "docker2"); err != nil {
		t.Errorf("a host that there isn't: %v", err)
	}
	leave()
	c.Password = "wrong"
	m, leave := join(t, c)
	err := claim(m, key, own)
	if !errors.Is(err, store.ErrApart) || !strings.Contains(err.Error(), "authentication failed") {
		t.Errorf("with a wrong password: %v", err)
	}
	leave()
	c.User = ""
	m, _ = join(t, c)
	if err := claim(m, key, own); !errors.Is(err, store.ErrApart) || !strings.Contains(err.Error(), "user name is empty") {
		t.Errorf("without a name: %v", err)
	}
}
