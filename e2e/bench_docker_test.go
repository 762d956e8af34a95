package e2e

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// dockerRun measures what a user waits for.
func (b *bench) dockerRun(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) { b.dockerRunWith(t, backend) })
	}
}

// A kind of container is what docker run is told of its network.
type kind struct {
	who  string
	args []string
}

func (b *bench) dockerRunWith(t *testing.T, backend string) {
	b.say("  a lab with %s", backend)
	l := newLab(t, options{backend: backend, plugin: []string{"--log-level", "info"}})
	l.network("ext", "172.31.0.0/16", "extip.pool=203.0.113.56-203.0.113.90")
	l.docker("network", "create", "--subnet", "172.30.0.0/16", "plain")
	b.Machine["engine"] = l.docker("version", "-f", "{{.Server.Version}}")
	extip := kind{"extip, " + backend, []string{"--network", "ext"}}
	partner := kind{"bridge, no port", []string{"--network", "plain"}}
	others := []kind{{"no network", []string{"--network", "none"}}, published(1)}
	if backend == backends[1] {
		// Of another lab, so it has a name of its own.
		partner.who, others = "bridge, no port (beside iptables)", nil
	} else if out, err := l.macvlan(); err != nil {
		b.note("no macvlan here: %s", out)
	} else {
		others = append(others, kind{"macvlan", []string{"--network", "mac"}})
	}
	b.say("  docker run and rm in turn, %s", backend)
	var subjects []func()
	for _, k := range append([]kind{extip, partner}, others...) {
		b.startAndRemove(l, k) // the first of each is not like the others
		subjects = append(subjects, func() { b.runOnce(l, k) })
	}
	inTurn(b.pick(6, 21), subjects...)
	for _, what := range []string{"docker run -d", "docker rm -f"} {
		for _, k := range append(others, extip) {
			b.compare(what, k.who, partner.who)
		}
	}
	if backend == backends[0] {
		b.publishedPorts(l, extip)
	}
}

// macvlan makes a network on an interface of its own: a port of a bridge can't
// have macvlans.
func (l *lab) macvlan() (string, error) {
	l.lan.Plug(l.host, "eth1")
	return l.tryDocker("network", "create", "-d", "macvlan", "--subnet", "172.29.0.0/16", "-o", "parent=eth1", "mac")
}

// published is a container whose ports of the host's address Docker publishes.
func published(count int) kind {
	return kind{fmt.Sprintf("bridge, %d published", count), []string{"--network", "plain", "-p", fmt.Sprintf("%s:1-%d:1-%d", hostAddr, count, count)}}
}

// publishedPorts measures what all ports of extip are instead of. The pairs
// are figures of their own: there are few of them.
func (b *bench) publishedPorts(l *lab, extip kind) {
	for _, many := range []struct{ ports, rounds int }{{10, b.pick(2, 5)}, {100, b.pick(0, 3)}, {400, b.pick(0, 1)}} {
		if many.rounds == 0 {
			continue
		}
		b.say("  docker run with %d published ports", many.ports)
		k := published(many.ports)
		pair := kind{fmt.Sprintf("%s, in turn with %d published", extip.who, many.ports), extip.args}
		inTurn(many.rounds, func() { b.runOnce(l, k) }, func() { b.runOnce(l, pair) })
		for _, what := range []string{"docker run -d", "docker rm -f"} {
			b.compare(what, pair.who, k.who)
		}
	}
}

// runOnce measures the start and the removal of one.
func (b *bench) runOnce(l *lab, k kind) {
	start, removal := b.startAndRemove(l, k)
	b.add("docker run -d", k.who, "ms", start)
	b.add("docker rm -f", k.who, "ms", removal)
}

func (b *bench) startAndRemove(l *lab, k kind) (start, removal float64) {
	args := append([]string{"docker", "run", "-d", "--name", "bench"}, k.args...)
	start = b.command(l, append(args, probeImage, "/probe", "sleep")...)
	return start, b.command(l, "docker", "rm", "-f", "bench")
}

// command times a program that must succeed.
func (b *bench) command(l *lab, args ...string) float64 {
	var out []byte
	var err error
	ms := took(func() { out, err = l.command(args...).CombinedOutput() })
	if err != nil {
		l.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return ms
}

// churn starts and removes many containers at once, as Compose or a reboot
// does: as many at a time as keep the machine busy.
func (b *bench) churn(t *testing.T) {
	count, atOnce := b.pick(20, 100), 4*runtime.NumCPU()
	b.say("  a lab")
	l := newLab(t, options{backend: backends[0], plugin: []string{"--log-level", "info"}})
	l.network("ext", "172.31.0.0/16", "extip.pool=203.0.113.11-203.0.113.190")
	l.docker("network", "create", "--subnet", "172.30.0.0/16", "plain")
	all := func(args func(i int) []string) float64 {
		return took(func() {
			var wg sync.WaitGroup
			turn := make(chan struct{}, atOnce)
			for i := range count {
				turn <- struct{}{}
				wg.Go(func() {
					defer func() { <-turn }()
					if out, err := l.command(args(i)...).CombinedOutput(); err != nil {
						t.Errorf("%s: %v\n%s", args(i), err, out)
					}
				})
			}
			wg.Wait()
		})
	}
	many := func(network, who string) func() {
		return func() {
			b.say("  %d containers, %d at a time: %s", count, atOnce, who)
			b.add(fmt.Sprintf("%d containers started", count), who, "s", all(func(i int) []string {
				return []string{"docker", "run", "-d", "--name", fmt.Sprintf("c%d", i), "--network", network, probeImage, "/probe", "sleep"}
			})/1000)
			b.add(fmt.Sprintf("%d containers removed", count), who, "s", all(func(i int) []string {
				return []string{"docker", "rm", "-f", fmt.Sprintf("c%d", i)}
			})/1000)
		}
	}
	inTurn(b.pick(1, 2), many("ext", "extip, nftables"), many("plain", "bridge, no port"))
	for _, f := range b.Figures {
		if f.Section == "churn" {
			b.compare(f.What, "extip, nftables", "bridge, no port")
		}
	}
}
