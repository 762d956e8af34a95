package driver_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	api "github.com/docker/go-plugins-helpers/network"

	"github.com/extip/extip/internal/nettest"
	"github.com/extip/extip/link"
)

// killEngine ends all containers without a call, and starts them anew, as
// after a kill of dockerd: with new endpoints and the old addresses.
func (s *soak) killEngine() {
	for _, c := range s.containers {
		s.host.Run("ip", "netns", "del", c.netns)
	}
	s.call("GetCapabilities", func() error {
		_, err := s.plugin.GetCapabilities()
		return err
	})
	for _, name := range sortedKeys(s.containers) {
		if !s.startContainer(s.containers[name]) {
			delete(s.containers, name)
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// damage runs a command behind the plugin's back, and has it repaired.
func (s *soak) damage(args ...string) func() {
	return func() {
		s.host.Run(args...)
		s.reconcile()
	}
}

func (s *soak) reconcile() {
	s.call("Reconcile", func() error {
		_, err := s.plugin.Reconcile("soak")
		return err
	})
}

func (s *soak) flushAddresses() {
	s.host.Run("ip", "-4", "addr", "flush", "dev", "eth0")
	s.host.Run("ip", "addr", "add", "203.0.113.10/24", "dev", "eth0")
	s.host.Run("ip", "-6", "addr", "flush", "dev", "eth0", "scope", "global")
	s.host.Run("ip", "addr", "add", "2001:db8::10/64", "dev", "eth0", "nodad")
	s.reconcile()
}

func (s *soak) deleteBridge() {
	if id, ok := pick(s.random, s.networks); ok {
		s.host.Run("ip", "link", "del", fmt.Sprintf("br-soak%d", s.networks[id]))
		s.reconcile()
	}
}

// ping asks a container on its external address, from outside.
func (s *soak) ping() {
	name, ok := pick(s.random, s.containers)
	if !ok {
		return
	}
	for a := range strings.SplitSeq(s.externalOf(s.containers[name]), ",") {
		if a == "" {
			continue
		}
		host, _ := link.VethNames(s.containers[name].endpoint)
		s.host.AwaitPort(host)
		// The parent may have been down, and its segment may not know yet.
		for deadline := time.Now().Add(time.Minute); s.peer.Ping("203.0.113.10") == 0 && time.Now().Before(deadline); {
		}
		s.host.AwaitIPv6("eth0")
		nettest.Adopt(s.t, name, "/run/netns/"+s.containers[name].netns).AwaitIPv6("eth0")
		// 64 less the router in between: the host itself would show 64.
		if ttl := s.peer.Patient().Ping(a); ttl != 63 {
			s.t.Errorf("%s on %s: ttl %d\n%s", name, a, ttl, s.host.Dump())
		}
	}
}

func (s *soak) externalOf(c *container) string {
	info, err := s.plugin.EndpointInfo(&api.InfoRequest{NetworkID: c.network, EndpointID: c.endpoint})
	if err != nil {
		s.t.Error(err)
		return ""
	}
	return info.Value["extip.external"]
}

// check compares the engine, the records and the kernel.
func (s *soak) check() {
	s.t.Helper()
	s.call("check", func() error {
		if lines, err := s.plugin.Reconcile("check"); len(lines) > 0 || err != nil {
			return fmt.Errorf("left to repair: %q, %w", lines, err)
		}
		found, err := s.kernel.Survey()
		if err != nil {
			return err
		}
		claims, err := s.records.Claims()
		if err != nil {
			return err
		}
		endpoints, err := s.records.Endpoints()
		if err != nil {
			return err
		}
		var errs []error
		if len(endpoints) != len(s.containers) {
			errs = append(errs, fmt.Errorf("%d endpoints on record, %d containers", len(endpoints), len(s.containers)))
		}
		if got, want := len(found.Links), len(s.networks)+len(s.containers); got != want {
			errs = append(errs, fmt.Errorf("%d links, want %d: %v", got, want, found.Links))
		}
		published := map[netip.Addr]bool{}
		for _, c := range s.containers {
			for text := range strings.SplitSeq(s.externalOf(c), ",") {
				if a, err := netip.ParseAddr(text); err == nil {
					published[a] = true
				} else if c.external != "none" && !c.operated {
					errs = append(errs, fmt.Errorf("container %+v has no external address", *c))
				}
			}
		}
		for a := range published {
			if !slices.Equal(found.Aliases[a], []string{"eth0"}) || claims[a] == "" {
				errs = append(errs, fmt.Errorf("%s: alias on %q, claimed by %q", a, found.Aliases[a], claims[a]))
			}
		}
		if len(found.Aliases) != len(published) || len(claims) != len(published) {
			errs = append(errs, fmt.Errorf("%d published, %d aliases, %d claims", len(published), len(found.Aliases), len(claims)))
		}
		return errors.Join(errs...)
	})
}
