package driver_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/extip/extip/driver"
)

// mostAddresses is how many a container may have of a family, so that the pool
// has enough for all.
const mostAddresses = 2

// operate makes an operator's change, or has the plugin killed in a write of it.
func (s *soak) operate(what string, change func(context.Context) (driver.Report, error)) {
	if s.random.IntN(4) == 0 {
		s.steps["("+what+", killed)"]++
		left := s.random.IntN(2)
		s.records.Intercept = func(string) error {
			if left == 0 {
				panic(crash)
			}
			left--
			return nil
		}
		err := s.host.Do(func() (err error) {
			defer func() {
				if p := recover(); p != nil {
					err = fmt.Errorf("%v", p)
				}
			}()
			_, err = change(s.t.Context())
			return err
		})
		s.records.Intercept = nil
		if err != nil && err.Error() != crash {
			s.t.Errorf("%s before the crash: %v", what, err)
		}
		s.restart()
		return
	}
	s.call(what, func() error {
		_, err := change(s.t.Context())
		return err
	})
}

// room picks a container that may get another address of a family.
func (s *soak) room(v4 bool) (*container, bool) {
	name, ok := pick(s.random, s.containers)
	if !ok {
		return nil, false
	}
	c, has := s.containers[name], 0
	for text := range strings.SplitSeq(s.externalOf(c), ",") {
		if a, err := netip.ParseAddr(text); err == nil && a.Is4() == v4 {
			has++
		}
	}
	return c, has < mostAddresses && (v4 || c.address6 != "")
}

// attach gives a container an address that is no pool's.
func (s *soak) attach() {
	a := netip.AddrFrom4([4]byte{203, 0, 113, byte(180 + s.random.IntN(20))})
	if s.random.IntN(3) == 0 {
		a = netip.MustParseAddr(fmt.Sprintf("2001:db8::2:%x", s.random.IntN(20)))
	}
	c, ok := s.room(a.Is4())
	if _, had := s.owner(a); had || !ok {
		return
	}
	s.operate("attach", func(ctx context.Context) (driver.Report, error) {
		return s.plugin.Attach(ctx, c.endpoint, []netip.Addr{a}, false)
	})
}

// owner is the container that has an address.
func (s *soak) owner(a netip.Addr) (*container, bool) {
	for _, c := range s.containers {
		for text := range strings.SplitSeq(s.externalOf(c), ",") {
			if text == a.String() {
				return c, true
			}
		}
	}
	return nil, false
}

// taken picks an address that a container has, which is about to lose it: it
// will not ask for it again.
func (s *soak) taken() (netip.Addr, bool) {
	list := s.plugin.Addresses()
	if len(list) == 0 {
		return netip.Addr{}, false
	}
	a := list[s.random.IntN(len(list))].External
	c, ok := s.owner(a)
	if ok {
		c.operated = true
		if c.external != "none" {
			c.external = ""
		}
	}
	return a, ok
}

func (s *soak) detach() {
	if a, ok := s.taken(); ok {
		s.operate("detach", func(ctx context.Context) (driver.Report, error) { return s.plugin.Detach(ctx, a, false) })
	}
}

// move moves an address between any two containers.
func (s *soak) move() {
	a, ok := s.taken()
	if !ok {
		return
	}
	to, ok := s.room(a.Is4())
	if !ok {
		return
	}
	drain := s.random.IntN(2) == 0
	s.operate("move", func(ctx context.Context) (driver.Report, error) {
		return s.plugin.Move(ctx, a, to.endpoint, drain, false)
	})
}
