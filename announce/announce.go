// Package announce sees to it that a segment agrees on whose an external
// address is: it asks whether somebody has the address, tells the neighbours
// that it is here, and listens for others who claim it. It speaks ARP for
// IPv4 and neighbour discovery for IPv6, and is the only door to raw sockets.
package announce

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Spacing between the announcements of one address. Kernels before 4.11
// ignore an update within a second of the one before (locktime, net/core/neighbour.c);
// the first may be lost, or come while the switch still learns.
const Spacing = 1100 * time.Millisecond

// Times is how often an address is announced.
const Times = 3

// An Announcer probes, announces and watches addresses in one network
// namespace. All methods may be called concurrently.
//
// An interface is named by its parent argument and looked up at each call, so
// it may be deleted and made again. One that has no neighbours (lo, a tunnel,
// whatever isn't Ethernet or has no ARP) is no error: there is nobody to ask
// or tell. ErrNoParent and ErrParentDown tell those apart that have none now.
type Announcer struct {
	arp, ndp *socket
	names    *socket // receives nothing; to look interfaces up with
	readers  sync.WaitGroup
	// failures has a reader's error; conflicts what readers saw, for Run.
	failures  chan error
	conflicts chan Conflict
	// wake tells Run that repeats are queued where none were.
	wake  chan struct{}
	start time.Time

	refresh time.Duration
	// permit is asked before what nobody has called for; nil permits all.
	permit func(netip.Addr) bool
	// peer tells whose probes are no claim; nil tells nobody's.
	peer func(net.HardwareAddr) bool
	// Fields so that tests needn't wait.
	spacing, defendInterval, reportInterval time.Duration

	mu      sync.Mutex // for what is below; held while a packet is sent, not for a wait
	parents map[string]*parent
	byIndex map[int]*parent
	repeats []repeat // in order of time
}

// New returns an Announcer for the calling thread's network namespace, whose
// sockets it opens. It needs CAP_NET_RAW. Nothing is received before the first
// Probe, Announce or Watch, and then only from the interfaces in use.
func New() (*Announcer, error) {
	var sockets [3]*socket
	for i, open := range []struct {
		protocol uint16
		sight    func([]byte, mac) (sighting, bool)
	}{{unix.ETH_P_ARP, sightARP}, {unix.ETH_P_IPV6, sightNDP}, {}} {
		s, err := openSocket(open.protocol, open.sight)
		if err != nil {
			return nil, err // the others are closed when they are collected
		}
		sockets[i] = s
	}
	a := &Announcer{
		arp: sockets[0], ndp: sockets[1], names: sockets[2],
		failures:  make(chan error, 2),
		conflicts: make(chan Conflict, 64),
		wake:      make(chan struct{}, 1),
		// An hour ago, so that time 0 is long ago.
		start:          time.Now().Add(-time.Hour),
		spacing:        Spacing,
		defendInterval: DefendInterval,
		reportInterval: ReportInterval,
		parents:        map[string]*parent{},
		byIndex:        map[int]*parent{},
	}
	for _, s := range sockets[:2] {
		a.readers.Go(func() { a.read(s) })
	}
	return a, nil
}

// Close closes the sockets; call it after Run and every Probe have returned.
func (a *Announcer) Close() error {
	err := errors.Join(a.arp.file.Close(), a.ndp.file.Close(), a.names.file.Close())
	a.readers.Wait()
	return err
}

// Announce tells the neighbours on parent at once that addr is here, lets Run
// do so again, and has addr defended until Unwatch. It doesn't wait, nor does
// it take longer the more addresses there are. If parent is missing or down,
// nothing changes; after another error, Run repeats all the same.
func (a *Announcer) Announce(parent string, addr netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.announce(parent, addr); err != nil {
		return fmt.Errorf("announce: %s on %s: %w", addr, parent, err)
	}
	return nil
}

func (a *Announcer) announce(parent string, addr netip.Addr) error {
	l, p, err := a.hold(parent, addr)
	if err != nil || p == nil {
		return err
	}
	e := p.addrs[addr]
	e.left, e.due = Times-1, a.now()+a.spacing
	p.addrs[addr] = e
	a.queue(repeat{place{p, addr}, e.due})
	return a.tell(l, addr)
}

// Defend has addr refreshed and defended as Announce does, without telling
// anybody: a program that is no more has announced it.
func (a *Announcer) Defend(parent string, addr netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, _, err := a.hold(parent, addr); err != nil {
		return fmt.Errorf("announce: defend %s on %s: %w", addr, parent, err)
	}
	return nil
}

// Challenge tells the neighbours on parent once that addr is here, and neither
// repeats nor defends it: a host that uses it still, and knows that it must not,
// hears so.
func (a *Announcer) Challenge(parent string, addr netip.Addr) error {
	if err := a.challenge(parent, addr); err != nil {
		return fmt.Errorf("announce: challenge for %s on %s: %w", addr, parent, err)
	}
	return nil
}

func (a *Announcer) challenge(parent string, addr netip.Addr) error {
	if err := usable(addr); err != nil {
		return err
	}
	l, ok, err := a.locate(parent)
	if err != nil || !ok {
		return err
	}
	return a.tell(l, addr)
}

// hold notes that addr is ours; there is no parent to note it with where there
// are no neighbours. mu must be held.
func (a *Announcer) hold(name string, addr netip.Addr) (link, *parent, error) {
	if err := usable(addr); err != nil {
		return link{}, nil, err
	}
	l, ok, err := a.find(name)
	if err != nil || !ok {
		return l, nil, err
	}
	p, err := a.use(name, l, addr)
	if err != nil {
		return l, nil, err
	}
	e := p.addrs[addr]
	e.announced = true
	p.addrs[addr] = e
	return l, p, nil
}

// tell sends one announcement in every form that neighbours may need.
func (a *Announcer) tell(l link, addr netip.Addr) error {
	if addr.Is6() {
		return a.claim(l, addr)
	}
	return errors.Join(a.claim(l, addr), a.arp.send(l.index, broadcast, gratuitousReply(l.mac, addr).marshal()))
}

// claim sends one announcement in the form that updates every entry.
func (a *Announcer) claim(l link, addr netip.Addr) error {
	if addr.Is6() {
		return a.ndp.send(l.index, groupMAC(allNodes), unsolicited(l.mac, addr).marshal())
	}
	return a.arp.send(l.index, broadcast, gratuitousARP(l.mac, addr).marshal())
}

// socket is the one that speaks of addresses of addr's family.
func (a *Announcer) socket(addr netip.Addr) *socket {
	if addr.Is6() {
		return a.ndp
	}
	return a.arp
}

// now is a clock that fits an entry.
func (a *Announcer) now() time.Duration { return time.Since(a.start) }

func usable(addr netip.Addr) error {
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() || addr.Is4In6() || addr.Zone() != "" {
		return errors.New("not the address of one host")
	}
	return nil
}
