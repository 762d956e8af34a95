package e2e

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// doubleBound is how long two hosts may answer for an address while they can hear
// each other: docs/cluster.md. Questions are 20 ms apart, and a busy machine may
// keep a plugin from its work for a while.
const doubleBound = time.Second

// confirmBound is how long at most when one of them was cut off from both: until it
// asks for its addresses again.
const confirmBound = 13 * time.Second

// tardiness is of a machine that is busy with other tests.
const tardiness = 5 * time.Second

// outage is how long etcd is away. EXTIP_TEST_OUTAGE=1m is what docs/cluster.md
// tells of.
func outage(t *testing.T) time.Duration {
	d := 15 * time.Second
	if text := os.Getenv("EXTIP_TEST_OUTAGE"); text != "" {
		var err error
		if d, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// TestCluster: three hosts hand one pool out once, an address follows its container
// when a host dies, and no partition has two hosts answer for one.
func TestCluster(t *testing.T) {
	t.Parallel()
	s := newTrio(t)
	one, two, three := s.hosts["docker1"], s.hosts["docker2"], s.hosts["docker3"]

	t.Run("one pool", func(t *testing.T) {
		seen := map[string]string{}
		for host, l := range s.hosts {
			for _, name := range []string{"a", "b"} {
				l.run(name+"-"+host, "--network", "web")
			}
			for a, what := range l.status() {
				if other, twice := seen[a]; twice {
					t.Errorf("%s is had twice: %s, %s", a, other, what)
				}
				seen[a] = what
			}
		}
		if len(seen) != 6 {
			t.Errorf("addresses %v", seen)
		}
		if claims := claims(t, s.etcd[0]); len(claims) != 6 {
			t.Errorf("claims in etcd: %q", claims)
		}
		if hosts := one.extip("hosts"); strings.Count(hosts, "alive") != 3 {
			t.Errorf("hosts:\n%s", hosts)
		}
		_, err := two.tryDocker("run", "-d", "--network", "name=web,driver-opt=extip.address="+s.external("docker1", "a-docker1").String(), probeImage, "/probe", "serve")
		if err == nil {
			t.Error("an address of another host can be had")
		}
	})
	if t.Failed() {
		return
	}

	t.Run("host dies", func(t *testing.T) {
		one.run("mail1", reserved("mail")...)
		a := s.external("docker1", "mail1")
		visitor := visit(t, s.outside, a)
		visitor.await(t, "mail1", time.Now())
		one.cutPower()
		died := time.Now()
		two.docker(append(append([]string{"run", "-d", "--name", "mail2", "--hostname", "mail2"}, reserved("mail")...), probeImage, "/probe", "serve", "80")...)
		t.Logf("docker run took %s, begun as the host died", time.Since(died).Round(10*time.Millisecond))
		took := visitor.await(t, "mail2", died)
		t.Logf("the address answers from another host %s after its own died, and the container's start there (TTL %s)", took.Round(10*time.Millisecond), clusterTTL)
		if took > clusterTTL+2*time.Second+tardiness {
			t.Error("that is too long")
		}
		one.boot()
		s.start("docker1")
		if !within(time.Minute, func() bool { return strings.Count(one.extip("hosts"), "alive") == 3 }) {
			t.Error("the host that died isn't back")
		}
		if got := s.state("docker1", a); got != "" && got != "withheld" {
			t.Errorf("there %s is %s", a, got)
		}
		failed, all := visitor.failures("mail2", died.Add(took))
		t.Logf("since: %d of %d connections failed", failed, all)
		if failed > 0 {
			t.Error("the host that came back disturbs it")
		}
	})

	t.Run("cut from etcd", func(t *testing.T) {
		a := s.external("docker2", "mail2")
		visitor, witness := visit(t, s.outside, a), s.witness(a)
		began := time.Now()
		s.cut("docker2", s.back)
		time.Sleep(clusterTTL * 3 / 2)
		if failed, all := visitor.failures("mail2", began); failed > 0 || all == 0 {
			t.Errorf("%d of %d connections failed", failed, all)
		}
		asked := time.Now()
		out, err := two.tryDocker("run", "-d", "--network", "web", probeImage, "/probe", "serve")
		t.Logf("a claim there is refused after %s", time.Since(asked).Round(10*time.Millisecond))
		if err == nil || !strings.Contains(out, "etcd can't be reached") {
			t.Errorf("a host that is apart claims: %q", out)
		}
		if out := two.extip("hosts"); !strings.Contains(out, "apart") {
			t.Errorf("hosts:\n%s", out)
		}
		taken := time.Now()
		three.run("mail3", reserved("mail")...)
		t.Logf("taken over %s after docker run", visitor.await(t, "mail3", taken).Round(10*time.Millisecond))
		double, questions := witness.Double(began)
		t.Logf("both answered for %s at the longest, of %d questions", double.Round(time.Millisecond), questions)
		if double > doubleBound {
			t.Error("that is too long")
		}
		eventually(t, "the host that was cut off has given it up", func() bool { return s.state("docker2", a) == "withheld" })
		s.heal("docker2", s.back)
		eventually(t, "it knows who has it", func() bool { return strings.Contains(two.extip("show", a.String()), "docker3") })
		for _, other := range []string{"a-docker2", "b-docker2"} {
			if addr := s.external("docker2", other); greeting(s.outside, addr) != other {
				t.Errorf("%s lost %s", other, addr)
			}
		}
		three.docker("rm", "-f", "mail3")
		t.Logf("it is back %s after it was free", visitor.await(t, "mail2", time.Now()).Round(10*time.Millisecond))
	})

	t.Run("cut from the segment", func(t *testing.T) {
		a := s.external("docker2", "mail2")
		visitor := visit(t, s.outside, a)
		s.cut("docker2", s.lan)
		time.Sleep(clusterTTL * 3 / 2)
		asked := time.Now()
		out, err := three.tryDocker(append(append([]string{"run", "-d"}, reserved("mail")...), probeImage, "/probe", "serve")...)
		t.Logf("refused after %s", time.Since(asked).Round(10*time.Millisecond))
		if err == nil || !strings.Contains(out, "on host docker2") {
			t.Errorf("an address is taken whose host is alive: %q", out)
		}
		s.heal("docker2", s.lan)
		t.Logf("it answers again %s after", visitor.await(t, "mail2", time.Now()).Round(10*time.Millisecond))
	})

	t.Run("cut from both", func(t *testing.T) {
		a := s.external("docker2", "mail2")
		visitor, witness := visit(t, s.outside, a), s.witness(a)
		s.cut("docker2", s.lan, s.back)
		cut := time.Now()
		three.run("mail3", reserved("mail")...)
		t.Logf("taken over %s after the cut", visitor.await(t, "mail3", cut).Round(10*time.Millisecond))
		s.heal("docker2", s.lan)
		healed := time.Now()
		eventually(t, "the host that was cut off has given it up", func() bool { return s.state("docker2", a) == "withheld" })
		t.Logf("given up %s after the segment healed", time.Since(healed).Round(10*time.Millisecond))
		s.heal("docker2", s.back)
		eventually(t, "it is back", func() bool { return strings.Count(two.extip("hosts"), "alive") == 3 })
		double, questions := witness.Double(cut)
		t.Logf("both answered for %s at the longest, of %d questions", double.Round(time.Millisecond), questions)
		if double > confirmBound {
			t.Error("that is too long")
		}
	})

	t.Run("move to another host", func(t *testing.T) {
		one.run("mail4", "--network", "name=web,driver-opt=extip.address=none")
		a := s.external("docker3", "mail3")
		visitor := visit(t, s.outside, a)
		visitor.await(t, "mail3", time.Now())
		began := time.Now()
		report := three.extip("move", a.String(), "docker1/mail4")
		t.Logf("answers from there %s after the command's start", visitor.await(t, "mail4", began).Round(10*time.Millisecond))
		if !strings.Contains(report, "nobody's for") {
			t.Errorf("the report:\n%s", report)
		}
		if got := s.external("docker1", "mail4"); got != a {
			t.Errorf("there it has %s", got)
		}
		if got := s.state("docker3", a); got != "" {
			t.Errorf("here it is still %s", got)
		}
	})

	t.Run("no etcd", func(t *testing.T) {
		a := s.external("docker1", "mail4")
		visitor := visit(t, s.outside, a)
		visitor.await(t, "mail4", time.Now())
		began := time.Now()
		for _, n := range s.etcd {
			n.Stop()
		}
		one.docker("rm", "-f", "b-docker1") // a container can always be stopped
		for stop := began.Add(outage(t)); time.Now().Before(stop); time.Sleep(3 * time.Second) {
			asked := time.Now()
			out, err := three.tryDocker("run", "-d", "--network", "web", probeImage, "/probe", "serve")
			if err == nil || !strings.Contains(out, "etcd can't be reached") {
				t.Errorf("without etcd an address is claimed: %q", out)
			}
			t.Logf("refused after %s", time.Since(asked).Round(10*time.Millisecond))
		}
		for _, n := range s.etcd {
			n.Continue()
		}
		back := time.Now()
		eventually(t, "new claims are made again", func() bool {
			_, err := three.tryDocker("run", "-d", "--name", "late", "--hostname", "late", "--network", "web", probeImage, "/probe", "serve", "80")
			if err != nil {
				_, _ = three.tryDocker("rm", "-f", "late")
			}
			return err == nil
		})
		t.Logf("claims go on %s after etcd is back", time.Since(back).Round(10*time.Millisecond))
		failed, all := visitor.failures("mail4", began)
		t.Logf("of %d connections in and after %s without etcd, %d failed", all, back.Sub(began).Round(time.Second), failed)
		if failed > 0 || all == 0 {
			t.Error("traffic depends on etcd")
		}
	})

	t.Run("claims and containers agree", func(t *testing.T) {
		have := func() (addrs []string) {
			for _, l := range s.hosts {
				for a, what := range l.status() {
					if !strings.HasSuffix(what, " withheld") {
						addrs = append(addrs, a)
					}
				}
			}
			slices.Sort(addrs)
			return addrs
		}
		claimed := func() []string { return slices.Sorted(maps.Keys(claims(t, s.etcd[0]))) }
		if !within(time.Minute, func() bool { return slices.Equal(have(), claimed()) }) {
			t.Errorf("containers have %q, claimed are %q", have(), claimed())
		}
	})
}
