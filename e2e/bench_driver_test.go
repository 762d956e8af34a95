package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	api "github.com/docker/go-plugins-helpers/network"

	"github.com/extip/extip/nat"
)

var backends = []string{"nftables", "iptables"}

func mappingsOf(backend string, count int) string {
	return fmt.Sprintf("%s, %d mappings", backend, count)
}

// driver measures the driver in the test's own process, on hosts with many
// endpoints, and the program on the last of them.
func (b *bench) driver(t *testing.T) {
	counts := []int{1, 100, 1000, 10000}
	if b.quick {
		counts = []int{1, 10000}
	}
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			var fleets []*fleet
			for _, count := range counts {
				b.say("  %s: making %d endpoints", backend, count)
				fleets = append(fleets, newFleet(t, backend, count))
			}
			b.section = "calls"
			b.say("  %s: calls", backend)
			b.calls(fleets)
			b.section = "reconcile"
			b.reconcile(fleets[len(fleets)-1])
		})
	}
	b.section = "calls"
	for _, what := range []string{runCalls, rmCalls} {
		for _, backend := range backends {
			for _, count := range counts[1:] {
				b.compare(what, mappingsOf(backend, count), mappingsOf(backend, 1))
			}
		}
	}
}

const (
	runCalls = "docker run, all calls"
	rmCalls  = "docker rm, all calls"
)

// calls measures the driver's time in the calls of a container's life.
func (b *bench) calls(fleets []*fleet) {
	var subjects []func()
	var lives []*life
	for _, f := range fleets {
		l := &life{fleet: f, bench: b, who: mappingsOf(f.backend, f.count)}
		lives = append(lives, l)
		l.createNetwork()
		subjects = append(subjects, func() { f.do(func() error { return l.run(b.pick(10, 20)) }) })
	}
	inTurn(b.pick(4, 10), subjects...)
	for _, l := range lives {
		l.do(l.deleteNetwork)
	}
}

// A life is the calls that the engine makes for a container, over and over.
type life struct {
	*fleet
	bench  *bench
	who    string
	serial int
}

// network is one of its own, beside the fleet's.
const ownNetwork = 12

func (l *life) createNetwork() {
	l.do(func() error {
		rounds := l.bench.pick(5, 20)
		for i := range rounds {
			var err error
			l.bench.add("CreateNetwork", l.who, "ms", took(func() { err = l.driver.CreateNetwork(createNetwork(ownNetwork, "10.9.0.0/24")) }))
			if err == nil && i < rounds-1 {
				l.bench.add("DeleteNetwork", l.who, "ms", took(func() { err = l.deleteNetwork() }))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *life) deleteNetwork() error {
	return l.driver.DeleteNetwork(&api.DeleteNetworkRequest{NetworkID: networkID(ownNetwork)})
}

func (l *life) run(times int) error {
	network := networkID(ownNetwork)
	for range times {
		l.serial++
		id := endpointID(100000 + l.serial)
		address := fmt.Sprintf("172.%d.1.%d/16", 16+ownNetwork, l.serial%250+1)
		var sum float64
		var failed error
		call := func(name string, fn func() error) {
			if failed != nil {
				return
			}
			ms := took(func() { failed = fn() })
			l.bench.add(name, l.who, "ms", ms)
			sum += ms
		}
		l.clock.reset()
		call("CreateEndpoint", func() error {
			_, err := l.driver.CreateEndpoint(&api.CreateEndpointRequest{
				NetworkID: network, EndpointID: id, Interface: &api.EndpointInterface{Address: address},
			})
			return err
		})
		call("Join", func() error {
			_, err := l.driver.Join(&api.JoinRequest{NetworkID: network, EndpointID: id})
			return err
		})
		call("ProgramExternalConnectivity", func() error {
			return l.driver.ProgramExternalConnectivity(&api.ProgramExternalConnectivityRequest{NetworkID: network, EndpointID: id})
		})
		l.account(runCalls, sum)
		sum = 0
		call("Leave", func() error { return l.driver.Leave(&api.LeaveRequest{NetworkID: network, EndpointID: id}) })
		call("DeleteEndpoint", func() error {
			return l.driver.DeleteEndpoint(&api.DeleteEndpointRequest{NetworkID: network, EndpointID: id})
		})
		l.account(rmCalls, sum)
		if failed != nil {
			return failed
		}
		l.bench.add("  the link is gone, after the answer", l.who, "ms", took(func() { failed = l.forgotten(network, id) }))
		if failed != nil {
			return failed
		}
	}
	return nil
}

// forgotten waits until an endpoint has no record any more.
func (l *life) forgotten(network, id string) error {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Microsecond) {
		info, err := l.driver.EndpointInfo(&api.InfoRequest{NetworkID: network, EndpointID: id})
		if err != nil || len(info.Value) == 0 {
			return err
		}
	}
	return fmt.Errorf("endpoint %s stays", id)
}

// account adds a sum of calls, and what it consists of.
func (l *life) account(what string, sum float64) {
	l.bench.add(what, l.who, "ms", sum)
	spent := l.clock.reset()
	rest := sum
	for _, part := range slices.Sorted(maps.Keys(spent)) {
		l.bench.add("  of "+what+": "+part, l.who, "ms", spent[part])
		rest -= spent[part]
	}
	l.bench.add("  of "+what+": the rest, records written", l.who, "ms", rest)
}

// reconcile measures what is compared and repaired as a whole, and what the
// program needs while nothing happens.
func (b *bench) reconcile(f *fleet) {
	who := mappingsOf(f.backend, f.count)
	b.say("  %s: reconcile", f.backend)
	state := f.natState()
	rounds := b.pick(3, 7)
	f.do(func() error {
		for range rounds {
			if _, err := f.nat.Sync(nat.State{}); err != nil {
				return err
			}
			var err error
			b.add("rules, from nothing", who, "ms", took(func() { _, err = f.nat.Sync(state) }))
			if err != nil {
				return err
			}
			b.add("rules, nothing to do", who, "ms", took(func() { _, err = f.nat.Repair() }))
			if err != nil {
				return err
			}
			// What a restart does: nothing is known of the kernel.
			fresh, err := openBackend(f.t, f.backend)
			if err != nil {
				return err
			}
			var repaired []string
			b.add("rules, nothing to do, after a restart", who, "ms", took(func() { repaired, err = fresh.Sync(state) }))
			if err != nil || len(repaired) > 0 {
				return fmt.Errorf("repaired %q: %w", repaired, err)
			}
		}
		return nil
	})
	for range rounds {
		b.reconcileAll(f, "everything, nothing to do", who, 0)
	}
	for range b.pick(1, 3) {
		f.host.Run("ip", "addr", "flush", "dev", "eth0", "label", "eth0:xip")
		f.do(func() error {
			other, err := openBackend(f.t, f.backend)
			if err == nil {
				_, err = other.Sync(nat.State{})
			}
			return err
		})
		b.reconcileAll(f, "everything, rules and addresses from nothing", who, f.count)
	}
	b.program(f, who)
}

// reconcileAll times the driver's own, which looks at links, addresses and rules.
func (b *bench) reconcileAll(f *fleet, what, who string, atLeast int) {
	f.do(func() error {
		var lines []string
		var err error
		b.add(what, who, "ms", took(func() { lines, err = f.driver.Reconcile("bench") }))
		if err == nil && (len(lines) < atLeast || atLeast == 0 && len(lines) > 0) {
			err = fmt.Errorf("%d lines: %q", len(lines), lines[:min(3, len(lines))])
		}
		return err
	})
}

// program measures the program itself while nothing happens.
func (b *bench) program(f *fleet, who string) {
	t := f.t
	f.stop()
	program := filepath.Join(t.TempDir(), "extip")
	install(t, extipBinary(t), program)
	socket := filepath.Join(t.TempDir(), "extip.sock")
	cmd := f.host.Command(program, "serve", "--backend", f.backend, "--plugin-socket", socket, "--state", f.state, "--engine-socket", "")
	output := filepath.Join(t.TempDir(), "extip.log")
	log, err := os.Create(output)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	b.add("the program, until it serves", who, "ms", took(func() {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the program serves", func() bool {
			text, err := os.ReadFile(output)
			return err == nil && bytes.Contains(text, []byte("msg=serving"))
		})
	}))
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if text, err := os.ReadFile(output); err == nil && t.Failed() {
			t.Log(tail(string(text), 20))
		}
	}()
	pid := cmd.Process.Pid
	time.Sleep(3 * time.Second) // what the start set off
	began, ticks := time.Now(), cpuTicks(t, pid)
	b.say("  %s: the program, idle", f.backend)
	// As long as it is between two looks of its own, or a bit of it.
	time.Sleep(time.Duration(b.pick(5, 31)) * time.Second)
	const tick = 10 // milliseconds: USER_HZ is 100 wherever Linux runs today
	used := float64(cpuTicks(t, pid)-ticks) * tick / 10 / time.Since(began).Seconds()
	b.add("the program, idle: processor", who, "% of one", used)
	b.add("the program, idle: memory (RSS)", who, "MB", memory(t, pid, "VmRSS"))
	b.add("the program, most memory ever (RSS)", who, "MB", memory(t, pid, "VmHWM"))
}

// cpuTicks is the time that a process has used: fields 14 and 15 of its stat.
func cpuTicks(t *testing.T, pid int) (ticks int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	for _, field := range strings.Fields(rest)[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return ticks
}

// memory is a line of a process's status, in MB.
func memory(t *testing.T, pid int, name string) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Fatal(err)
			}
			return float64(kb) / 1024
		}
	}
	t.Fatalf("no %s in the status of process %d", name, pid)
	return 0
}
