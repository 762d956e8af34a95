package announce

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoParent: there is no interface of this name.
	ErrNoParent = errors.New("no such interface")
	// ErrParentDown: the interface is down or has no carrier, so nothing
	// can be asked or told; it may come up later.
	ErrParentDown = errors.New("the interface is down or has no carrier")
)

// link is what an interface was when it was looked up.
type link struct {
	index int
	mac   mac
}

// A parent is an interface in use: addresses are announced, watched or probed
// there. It is known by its name, so that it may be made again.
type parent struct {
	name string
	link
	addrs  map[netip.Addr]entry
	probes map[netip.Addr][]*probe
}

// entry is an address that is announced or watched. It is kept small, as
// there may be ten thousand. Times are as of Announcer.now, 0 for never.
type entry struct {
	announced bool
	left      uint8         // repetitions to come
	joined    int32         // the interface on which its group was joined, or 0
	due       time.Duration // when the next repetition is
	defended  time.Duration
	reported  time.Duration
}

// find looks an interface up; ok says whether it has neighbours to speak to.
// mu must be held.
func (a *Announcer) find(name string) (l link, ok bool, err error) {
	err = a.names.control(func(fd int) error {
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return unix.ENODEV // too long for a name
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
			return err
		}
		l.index = int(ifr.Uint32())
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
			return err
		}
		flags := ifr.Uint16()
		// A bound packet socket knows its interface's kind and MAC, in
		// the namespace that the socket was made in.
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.index}); err != nil {
			return err
		}
		address, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		own, known := address.(*unix.SockaddrLinklayer)
		if !known || own.Hatype != unix.ARPHRD_ETHER || flags&unix.IFF_NOARP != 0 {
			return nil // lo, a tunnel
		}
		if flags&unix.IFF_UP == 0 || flags&unix.IFF_RUNNING == 0 {
			return ErrParentDown
		}
		l.mac, ok = mac(own.Addr[:6]), true
		return nil
	})
	return l, ok, gone(err)
}

// gone gives an error of the kernel that says so its name.
func gone(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return ErrNoParent
	case errors.Is(err, unix.ENETDOWN):
		return ErrParentDown
	}
	return err
}

// locate is find without mu held.
func (a *Announcer) locate(name string) (link, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.find(name)
}

// use returns the parent of this name, from which packets of addr's family
// are received from now on. mu must be held.
func (a *Announcer) use(name string, l link, addr netip.Addr) (*parent, error) {
	p := a.parents[name]
	if p == nil {
		p = &parent{name: name, addrs: map[netip.Addr]entry{}, probes: map[netip.Addr][]*probe{}}
		a.parents[name] = p
	}
	err := a.move(p, l)
	if err == nil {
		err = a.socket(addr).bind()
	}
	if err != nil {
		a.drop(p)
		return nil, fmt.Errorf("listen: %w", err)
	}
	return p, nil
}

// move notes what a parent is now: it may have been deleted and made again.
// mu must be held.
func (a *Announcer) move(p *parent, l link) error {
	before := p.link
	p.link = l
	if before.index == l.index {
		return nil
	}
	if err := a.listen(); err != nil {
		p.link = before
		return err
	}
	for addr, e := range p.addrs {
		if e.joined == 0 {
			continue
		}
		if err := a.ndp.join(l.index, groupOf(addr)); err != nil {
			return err
		}
		a.ndp.leave(int(e.joined), groupOf(addr))
		e.joined = int32(l.index)
		p.addrs[addr] = e
	}
	return nil
}

// drop forgets a parent that is no longer in use. mu must be held.
func (a *Announcer) drop(p *parent) {
	if len(p.addrs) > 0 || len(p.probes) > 0 || a.parents[p.name] != p {
		return
	}
	delete(a.parents, p.name)
	// A filter that can't be narrowed passes too much, nothing worse.
	_ = a.listen()
}

// listen makes the sockets receive from the parents in use. mu must be held.
func (a *Announcer) listen() error {
	clear(a.byIndex)
	for _, p := range a.parents {
		if p.index != 0 {
			a.byIndex[p.index] = p
		}
	}
	indexes := slices.Collect(maps.Keys(a.byIndex))
	return errors.Join(a.arp.restrict(indexes), a.ndp.restrict(indexes))
}
