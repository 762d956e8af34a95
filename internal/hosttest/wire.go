package hosttest

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/extip/extip/announce"
)

// A Wire joins the interfaces of several machines that have the same name: who
// has an address there answers for it, and hears what the others say. What is
// heard comes a moment later, as on a real one; see Settle.
type Wire struct {
	mu      sync.Mutex
	idle    *sync.Cond
	hosts   []*Host
	cut     map[*Host]bool
	queue   []delivery
	running bool
	doubles []string
}

// A delivery is what a machine hears: that another one uses an address.
type delivery struct {
	to, from *Host
	parent   string
	addr     netip.Addr
}

// NewWire returns one that nobody is plugged into.
func NewWire() *Wire {
	w := &Wire{cut: map[*Host]bool{}}
	w.idle = sync.NewCond(&w.mu)
	return w
}

// plug is what a machine is on a wire.
type plug struct {
	wire *Wire
	mac  net.HardwareAddr
	// permit and conflict are the program's that listens, nil if none does.
	permit   func(netip.Addr) bool
	conflict func(announce.Conflict)
	// held are the addresses that it defends, and defended those that it has
	// defended already.
	held, defended map[netip.Addr]bool
}

// Plug plugs a machine in. A program listens there: conflict is called as by
// announce.Announcer.Run, and permit is what its SetPermit would be given; nil
// for a machine whose program is dead, and whose kernel answers all the same.
// Whoever plugs it in again begins anew, as a program does.
func (w *Wire) Plug(h *Host, mac net.HardwareAddr, permit func(netip.Addr) bool, conflict func(announce.Conflict)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(w.hosts, h) {
		w.hosts = append(w.hosts, h)
	}
	h.plug = plug{wire: w, mac: mac, permit: permit, conflict: conflict, held: map[netip.Addr]bool{}, defended: map[netip.Addr]bool{}}
	clear(h.watched)
}

// Cut takes a machine off the wire, or puts it back: it isn't told.
func (w *Wire) Cut(h *Host, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[h] = cut
}

// Settle returns once everything that was said is heard and dealt with.
func (w *Wire) Settle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.running {
		w.idle.Wait()
	}
}

// Doubles lists, since the last call, which machine put an address up that
// another one answered for.
func (w *Wire) Doubles() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.doubles
	w.doubles = nil
	return list
}

// Answering lists the MACs of those that answer for an address.
func (w *Wire) Answering(parent string, a netip.Addr) (macs []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		if !w.cut[h] && h.answers(parent, a) {
			macs = append(macs, h.mac.String())
		}
	}
	return macs
}

// answers tells whether a machine's kernel does for an address on an interface.
func (h *Host) answers(parent string, a netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	on, ok := h.aliases[a]
	return ok && (on == parent || on == "lo") && !h.Unplugged[parent]
}

// others are the machines that hear one; mu is held.
func (w *Wire) others(h *Host) []*Host {
	if w.cut[h] {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(w.hosts), func(o *Host) bool { return o == h || w.cut[o] })
}

// ask is a probe: it returns who answers for addresses, and who listens to one
// without having it hears of it.
func (w *Wire) ask(h *Host, parent string, addrs []netip.Addr) map[netip.Addr]net.HardwareAddr {
	w.mu.Lock()
	defer w.mu.Unlock()
	owners := map[netip.Addr]net.HardwareAddr{}
	for _, o := range w.others(h) {
		for _, a := range addrs {
			if o.answers(parent, a) {
				owners[a] = o.mac
			} else if o.listens(parent, a) {
				w.say(delivery{o, h, parent, a})
			}
		}
	}
	return owners
}

// tell is an announcement.
func (w *Wire) tell(h *Host, parent string, a netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.others(h) {
		if o.listens(parent, a) {
			w.say(delivery{o, h, parent, a})
		}
	}
}

// put notes whether an address that a machine puts up is answered for.
func (w *Wire) put(h *Host, parent string, a netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.others(h) {
		if o.answers(parent, a) {
			w.doubles = append(w.doubles, fmt.Sprintf("%s by %s and %s", a, o.mac, h.mac))
		}
	}
}

func (h *Host) listens(parent string, a netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.watched[a] == parent && h.conflict != nil
}

// say has something heard soon; mu is held.
func (w *Wire) say(d delivery) {
	w.queue = append(w.queue, d)
	if !w.running {
		w.running = true
		go w.deliver()
	}
}

func (w *Wire) deliver() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) > 0 {
		d := w.queue[0]
		w.queue = w.queue[1:]
		if w.cut[d.to] || w.cut[d.from] {
			continue
		}
		w.mu.Unlock()
		d.to.hear(d)
		w.mu.Lock()
	}
	w.running = false
	w.idle.Broadcast()
}

// hear is what announce.Announcer.Run does with what it hears. It defends an
// address once: the tests are over before it would again.
func (h *Host) hear(d delivery) {
	h.mu.Lock()
	p, listens, held := h.plug, h.watched[d.addr] == d.parent, h.held[d.addr]
	defend := held && !h.defended[d.addr] && (p.permit == nil || p.permit(d.addr))
	if defend {
		h.defended[d.addr] = true
	}
	h.mu.Unlock()
	if !listens || p.conflict == nil {
		return
	}
	if defend {
		p.wire.tell(h, d.parent, d.addr)
	}
	p.conflict(announce.Conflict{Parent: d.parent, Address: d.addr, MAC: d.from.mac, Defended: defend})
}

// Steps lists what was written and said since the last call, in order.
func (h *Host) Steps() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	steps := h.steps
	h.steps = nil
	return steps
}

// Aliases are the addresses that it has put up, with their interfaces.
func (h *Host) Aliases() map[netip.Addr]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.aliases)
}
