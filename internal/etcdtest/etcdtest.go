// Package etcdtest runs etcd for tests: real ones, one or several that agree, in
// network namespaces of the test.
//
//	nodes := etcdtest.Start(t, etcdtest.Local(3)...)
//	nodes.URL()           // etcd://127.0.0.1:…,127.0.0.2:…,127.0.0.3:…
//	nodes[0].Kill()       // as if its machine had lost its power
//	nodes[0].Start()      // with what it has on disk
//	nodes[1].Stop()       // it hangs; its sockets stay
//	nodes[1].Continue()
package etcdtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/extip/extip/internal/nettest"
)

// patience is how long etcd may take to start: it waits for its disk, which
// others use, too.
const patience = time.Minute

// A Place is where one etcd listens.
type Place struct {
	// On is the machine; nil is the test's own namespace.
	On *nettest.Node
	// IP is its address there.
	IP string
}

// Local is n places in the test's own namespace.
func Local(n int) []Place {
	places := make([]Place, n)
	for i := range places {
		places[i].IP = fmt.Sprintf("127.0.0.%d", i+1)
	}
	return places
}

// TLS are files of PEM: what the nodes show to clients, and whose certificates
// clients have to show, if any.
type TLS struct{ Cert, Key, ClientCA string }

// A Node is one etcd.
type Node struct {
	// Endpoint is where clients find it: host:port.
	Endpoint string

	t        testing.TB
	place    Place
	program  string
	data     string   // its folder
	self     []string // what it is in its cluster, as arguments
	args     []string
	tls      bool
	cmd      *exec.Cmd
	log      *output
	finished chan struct{} // closed when cmd has ended
}

// Nodes agree with each other.
type Nodes []*Node

// Start starts one etcd per place, which end with the test, and returns when
// they serve.
func Start(t testing.TB, places ...Place) Nodes {
	t.Helper()
	return StartTLS(t, TLS{}, places...)
}

// StartTLS is Start for nodes that speak TLS with clients.
func StartTLS(t testing.TB, files TLS, places ...Place) Nodes {
	t.Helper()
	program := find(t, "etcd")
	scheme := "http"
	if files.Cert != "" {
		scheme = "https"
	}
	var nodes Nodes
	var cluster []string
	peers := make([]string, len(places))
	for i, p := range places {
		client, peer := freePort(t, p, 2379), freePort(t, p, 2380)
		peers[i] = "http://" + peer
		cluster = append(cluster, fmt.Sprintf("etcd%d=%s", i, peers[i]))
		nodes = append(nodes, &Node{Endpoint: client, t: t, place: p, program: program, tls: files.Cert != "", log: &output{}})
	}
	for i, n := range nodes {
		url := scheme + "://" + n.Endpoint
		n.data = filepath.Join(t.TempDir(), "etcd")
		n.self = []string{
			"--name", fmt.Sprintf("etcd%d", i), "--initial-advertise-peer-urls", peers[i],
			"--initial-cluster", strings.Join(cluster, ","), "--data-dir", n.data,
		}
		n.args = append([]string{
			"--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peers[i], "--logger", "zap", "--log-level", "warn",
		}, n.self...)
		if files.Cert != "" {
			n.args = append(n.args, "--cert-file", files.Cert, "--key-file", files.Key)
		}
		if files.ClientCA != "" {
			n.args = append(n.args, "--client-cert-auth", "--trusted-ca-file", files.ClientCA)
		}
		n.begin()
	}
	for _, n := range nodes {
		n.Await()
	}
	return nodes
}

// find finds a program of etcd's: on PATH, or where scripts/test.sh unpacks it.
func find(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		cache := os.Getenv("XDG_CACHE_HOME")
		if cache == "" {
			cache = "/var/cache"
		}
		path, err = exec.LookPath(filepath.Join(cache, "extip/etcd", name))
	}
	nettest.Require(t, err == nil, "the program "+name)
	return path
}

// freePort is an address of a place that nobody listens at, of a port that the
// kernel gives to no connection meanwhile.
func freePort(t testing.TB, p Place, from int) (address string) {
	t.Helper()
	do(t, p, func() (err error) {
		for port := from; port < from+1000; port += 2 {
			address = net.JoinHostPort(p.IP, strconv.Itoa(port))
			var l net.Listener
			if l, err = net.Listen("tcp", address); err == nil {
				return l.Close()
			}
		}
		return err
	})
	return address
}

// do runs fn with the network of a place.
func do(t testing.TB, p Place, fn func() error) {
	t.Helper()
	if p.On != nil {
		p.On.MustDo(fn)
	} else if err := fn(); err != nil {
		t.Fatal(err)
	}
}

// URL is the nodes' as extip's flag has it.
func (ns Nodes) URL() string {
	var list []string
	for _, n := range ns {
		list = append(list, n.Endpoint)
	}
	return "etcd://" + strings.Join(list, ",")
}

// Ctl runs etcdctl on the node, which must not want to see a certificate, and
// returns what it prints.
func (n *Node) Ctl(args ...string) string {
	n.t.Helper()
	args = append([]string{find(n.t, "etcdctl"), "--endpoints", "http://" + n.Endpoint}, args...)
	cmd := n.command(args...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	out, err := cmd.CombinedOutput()
	n.t.Logf("# %s\n%s", strings.Join(args, " "), out)
	if err != nil {
		n.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (n *Node) command(args ...string) *exec.Cmd {
	if n.place.On != nil {
		return n.place.On.Command(args...)
	}
	return exec.Command(args[0], args[1:]...)
}

// begin starts the program.
func (n *Node) begin() {
	n.t.Helper()
	n.cmd = n.command(append([]string{n.program}, n.args...)...)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	cmd, finished := n.cmd, make(chan struct{})
	n.finished = finished
	go func() {
		defer close(finished)
		_ = cmd.Wait()
	}()
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-finished
		if n.t.Failed() && n.cmd == cmd {
			n.t.Logf("%s %s:\n%s", n.program, n.Endpoint, n.log)
		}
	})
}

// Await returns when the node serves, with a leader.
func (n *Node) Await() {
	n.t.Helper()
	scheme := "http"
	if n.tls {
		scheme = "https"
	}
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		// Who it is is not the question here.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(_ context.Context, network, addr string) (c net.Conn, err error) {
			do(n.t, n.place, func() error {
				c, err = net.DialTimeout(network, addr, time.Second)
				return nil
			})
			return c, err
		},
	}}
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var r *http.Response
		if r, err = client.Get(scheme + "://" + n.Endpoint + "/health"); err == nil {
			_ = r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
			err = errors.New(r.Status)
		} else if strings.Contains(err.Error(), "tls: ") {
			return // it serves, but not us
		}
	}
	n.t.Fatalf("etcd at %s doesn't serve: %v\n%s", n.Endpoint, err, n.log)
}

// Kill ends the node at once.
func (n *Node) Kill() {
	n.t.Helper()
	n.signal(syscall.SIGKILL)
	<-n.finished
}

// Start starts a node that was killed, with what it has on disk.
func (n *Node) Start() {
	n.t.Helper()
	n.begin()
}

// Save writes a backup of what the node has.
func (n *Node) Save(file string) {
	n.t.Helper()
	n.Ctl("snapshot", "save", file)
}

// PutBack gives a node that was killed what a backup has.
func (n *Node) PutBack(file string) {
	n.t.Helper()
	if err := os.RemoveAll(n.data); err != nil {
		n.t.Fatal(err)
	}
	n.Ctl(append([]string{"snapshot", "restore", file}, n.self...)...)
}

// Stop has the node hang: the kernel accepts connections for it, and nothing is
// answered. It returns when all its threads have stopped.
func (n *Node) Stop() {
	n.t.Helper()
	n.signal(syscall.SIGSTOP)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if n.stopped() {
			return
		}
	}
	n.t.Fatalf("etcd at %s doesn't stop", n.Endpoint)
}

func (n *Node) stopped() bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", n.cmd.Process.Pid))
	if err != nil || len(threads) == 0 {
		return false
	}
	for _, thread := range threads {
		// The state is behind the name, which is in parentheses: proc(5).
		stat, err := os.ReadFile(thread)
		if _, state, ok := bytes.Cut(stat, []byte(") ")); err != nil || !ok || state[0] != 'T' {
			return false
		}
	}
	return true
}

// Continue ends that.
func (n *Node) Continue() {
	n.t.Helper()
	n.signal(syscall.SIGCONT)
}

func (n *Node) signal(s os.Signal) {
	n.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.t.Fatalf("etcd at %s: %v", n.Endpoint, err)
	}
}

// output keeps what a program prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
