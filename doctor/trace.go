package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
)

// A Question is what Trace follows: the first packet of a connection to an
// external address, and the answer.
type Question struct {
	To netip.Addr
	// Port and Proto, an IP protocol, are 0 if any.
	Port  uint16
	Proto uint8
	// From is who sends it; if not valid, somebody beyond the parent. A
	// container of extip's is known by its internal address.
	From netip.Addr
}

// A Step is a part of the packet's way.
type Step struct {
	Step string `json:"step"`
	OK   bool   `json:"ok"`
	// Detail is what was found; if not OK, why the packet ends there.
	Detail string `json:"detail"`
}

// Steps are named, in order: the address on record, the parent, the alias on
// it, NAT, the route, the forward hook, the bridge, the container's port, the
// container, and its answer.
const (
	stepAddress   = "address"
	stepParent    = "parent"
	stepAlias     = "alias"
	stepSource    = "source"
	stepNAT       = "nat"
	stepRoute     = "route"
	stepForward   = "forward"
	stepBridge    = "bridge"
	stepPort      = "port"
	stepContainer = "container"
	stepAnswer    = "answer"
)

// Trace follows a packet by what the kernel says of it. The last step is the
// one where it ends, if any does; no packet is sent, but for the question who
// else has the address.
func (d *Doctor) Trace(ctx context.Context, s Subject, q Question) ([]Step, error) {
	x, err := d.exam(ctx, s)
	if err != nil {
		return nil, err
	}
	w := &walk{exam: x, question: q}
	for _, step := range []struct {
		name string
		take func(*walk) (detail string, ok bool)
	}{
		{stepAddress, (*walk).address},
		{stepParent, (*walk).parent},
		{stepAlias, (*walk).alias},
		{stepSource, (*walk).source},
		{stepNAT, (*walk).nat},
		{stepRoute, (*walk).route},
		{stepForward, (*walk).forward},
		{stepBridge, (*walk).bridge},
		{stepPort, (*walk).port},
		{stepContainer, (*walk).container},
		{stepAnswer, (*walk).answer},
	} {
		detail, ok := step.take(w)
		if detail == "" {
			continue // not on this packet's way
		}
		w.steps = append(w.steps, Step{step.name, ok, detail})
		if !ok {
			break
		}
	}
	return w.steps, x.errs()
}

// A walk is how far a packet has come.
type walk struct {
	*exam
	question Question
	addr     Address
	network  Network
	// in is where the packet comes in, from who sent it.
	in     string
	from   netip.Addr
	packet nat.Packet // as it is now
	seen   string     // the source that the container sees, if not from
	steps  []Step
}

func (w *walk) address() (string, bool) {
	i := slices.IndexFunc(w.subject.Addresses, func(a Address) bool { return a.External == w.question.To })
	if i < 0 {
		return fmt.Sprintf("%s is no external address of a container", w.question.To), false
	}
	w.addr = w.subject.Addresses[i]
	w.network = w.networks[w.addr.Network]
	w.in, w.from = w.network.in, w.question.From
	if !w.from.IsValid() {
		w.from = w.somebody(w.in, w.question.To)
	}
	for _, n := range w.subject.Networks {
		if slices.ContainsFunc(n.Subnets, func(p netip.Prefix) bool { return p.Contains(w.from) }) {
			w.in = n.Bridge
		}
	}
	w.packet = nat.Packet{In: w.iface(w.in), Src: w.from, Dst: w.question.To, Proto: w.question.Proto, Port: w.question.Port}
	whose := w.addr.Container
	if whose == "" {
		whose = "endpoint " + w.addr.Endpoint
	}
	return fmt.Sprintf("%s is %s's, %s on %s", w.addr.External, whose, w.addr.Internal, w.network.Bridge), true
}

// inside tells whether the packet comes from a container.
func (w *walk) inside() bool { return w.in != w.network.in }

func (w *walk) parent() (string, bool) {
	name := w.in
	l, ok := w.links[name]
	switch {
	case !ok:
		return "there is no interface " + name, false
	case !l.On:
		return name + " is switched off", false
	case !l.Carrier:
		return name + " has no carrier", false
	}
	return fmt.Sprintf("%s comes in by %s, which is up", w.from, name), true
}

// alias: who has the address, as the sender's side is told?
func (w *walk) alias() (string, bool) {
	n := w.network
	if n.On == "" || w.inside() {
		return "", true
	}
	if w.addr.Withheld != "" {
		return fmt.Sprintf("%s %s: it is withheld", w.addr.External, w.addr.Withheld), false
	}
	if !slices.ContainsFunc(w.links[n.On].Addresses, func(a link.AddressInfo) bool { return a.Addr() == w.addr.External }) {
		return fmt.Sprintf("%s is not on %s: nobody answers for it", w.addr.External, n.On), false
	}
	if w.addr.External.Is4() {
		if why, err := w.Host.ARPTrouble(n.Parent, n.On); w.noted(err) && why != "" {
			return fmt.Sprintf("%s %s", w.addr.External, why), false
		}
	}
	if w.Probe != nil {
		macs, err := w.Probe(w.ctx, n.Parent, []netip.Addr{w.addr.External})
		w.noted(err)
		if mac, taken := macs[w.addr.External]; taken {
			return fmt.Sprintf("%s is used by %s, too: packets may go there", w.addr.External, mac), false
		}
	}
	return fmt.Sprintf("%s is on %s, which answers for it", w.addr.External, n.On), true
}

// source: may a packet from there come in here?
func (w *walk) source() (string, bool) {
	way, err := w.Host.Way(link.Journey{From: w.from, To: w.question.To, In: w.in})
	if !w.noted(err) {
		return "", true
	}
	if way.Source {
		why := "it can't come from there"
		if value, err := w.Host.Effective(w.in, "rp_filter"); w.noted(err) && value == 1 {
			why = "rp_filter is 1 there, and answers would leave elsewhere"
		}
		return fmt.Sprintf("a packet from %s is dropped on %s: %s", w.from, w.in, why), false
	}
	return fmt.Sprintf("%s may come in by %s", w.from, w.in), true
}

func (w *walk) nat() (string, bool) {
	if count, most, ok, err := w.Host.TableFull(); w.noted(err) && ok && count >= most && most > 0 {
		return fmt.Sprintf("the table of connections is full, %d of %d: new ones are dropped", count, most), false
	}
	after, translated, dropped := w.enter(w.packet)
	switch {
	case dropped != nil:
		return w.dropped(*dropped), false
	case translated == nil:
		return "no rule translates it: extip's mapping is missing", false
	case translated.To != w.addr.Internal && !translated.To.IsValid():
		return where(*translated) + " takes it to the host itself", false
	case translated.To != w.addr.Internal:
		return fmt.Sprintf("%s takes it to %s", where(*translated), translated.To), false
	}
	w.packet = after
	return fmt.Sprintf("to %s, by %s", translated.To, where(*translated)), true
}

// dropped says that a rule drops the packet, or why it may not.
func (w *walk) dropped(r nat.Ruling) string {
	switch said := where(r) + " drops it"; {
	case r.Doubt && w.question.Port == 0:
		return said + ", unless it is to a port that a rule before accepts: name one"
	case r.Doubt:
		return said + ", unless a rule before, which is not understood here, accepts it"
	default:
		return said
	}
}

func (w *walk) route() (string, bool) {
	of := link.Families{V4: w.addr.External.Is4(), V6: w.addr.External.Is6()}
	if off := w.notForwarding(of, []string{w.in, w.network.Bridge}); len(off) > 0 {
		return link.SettingName(off[0]) + " is 0: the host doesn't forward", false
	}
	way, err := w.Host.Way(link.Journey{From: w.from, To: w.addr.Internal, In: w.in})
	switch {
	case !w.noted(err):
		return "", true
	case way.Refused != "":
		return fmt.Sprintf("a packet to %s %s", w.addr.Internal, way.Refused), false
	case way.Local:
		return fmt.Sprintf("%s is the host's own", w.addr.Internal), false
	case way.Out != w.network.Bridge:
		return fmt.Sprintf("%s is reached by %s, not %s", w.addr.Internal, way.Out, w.network.Bridge), false
	}
	return fmt.Sprintf("%s is reached by %s", w.addr.Internal, way.Out), true
}

func (w *walk) forward() (string, bool) {
	p := w.packet
	p.Out = w.iface(w.network.Bridge)
	if r := drop(w.ask(nat.Forward, p)); r != nil {
		return w.dropped(*r), false
	}
	rulings := w.ask(nat.Postrouting, p)
	if r := drop(rulings); r != nil {
		return w.dropped(*r), false
	}
	if r := translation(rulings); r != nil {
		if w.seen = r.To.String(); !r.To.IsValid() {
			w.seen = "the host"
		}
		return fmt.Sprintf("no rule drops it; the container will see %s", w.seen), true
	}
	return fmt.Sprintf("no rule drops it; the container will see %s", w.from), true
}

func (w *walk) bridge() (string, bool) {
	if seen := w.bridgeTrouble(w.network); seen != "" {
		return seen, false
	}
	return w.network.Bridge + " is up", true
}

func (w *walk) port() (string, bool) {
	if seen, _ := w.portTrouble(w.addr); seen != "" {
		return w.addr.Port + " is " + seen, false
	}
	l := w.links[w.addr.Port]
	if w.from == w.addr.Internal && !l.Hairpin && w.bridgeFilters(w.addr.External) {
		return w.addr.Port + " doesn't send back what came in by it: hairpin mode is off, and net.bridge.bridge-nf-call-iptables is 1", false
	}
	if !l.Forwards {
		return w.network.Bridge + " blocks " + w.addr.Port, false
	}
	return w.addr.Port + " is a port of " + w.network.Bridge + " and up", true
}

func (w *walk) container() (string, bool) {
	n, err := w.Host.Neighbour(w.network.Bridge, w.addr.Internal)
	switch {
	case !w.noted(err):
		return "", true
	case n.Failed:
		return fmt.Sprintf("nobody answers for %s on %s", w.addr.Internal, w.network.Bridge), false
	case n.MAC == "":
		return fmt.Sprintf("%s was not asked for yet", w.addr.Internal), true
	case n.Port != "" && n.Port != w.addr.Port:
		return fmt.Sprintf("%s is %s behind %s, not %s: somebody else uses it", w.addr.Internal, n.MAC, n.Port, w.addr.Port), false
	}
	return fmt.Sprintf("%s is %s, behind %s", w.addr.Internal, n.MAC, w.addr.Port), true
}

// answer is the way back, by the mark of the network if it has one.
func (w *walk) answer() (string, bool) {
	p := nat.Packet{
		In: w.iface(w.network.Bridge), Out: w.iface(w.in), Src: w.addr.Internal, Dst: w.from, Proto: w.question.Proto,
		Reply: true, DNAT: true, OrigDst: w.question.To,
	}
	if w.seen == "" {
		way, err := w.Host.Way(link.Journey{From: w.addr.Internal, To: w.from, In: w.network.Bridge, Mark: w.network.Mark})
		switch {
		case !w.noted(err):
			return "", true
		case way.Refused != "":
			return fmt.Sprintf("it is sent to %s, which %s", w.from, way.Refused), false
		case way.Out != w.in:
			return fmt.Sprintf("it leaves by %s, not by %s", way.Out, w.in), false
		}
	}
	for _, h := range []nat.Hook{nat.Prerouting, nat.Forward, nat.Postrouting} {
		if r := drop(w.ask(h, p)); r != nil {
			return w.dropped(*r), false
		}
	}
	detail := fmt.Sprintf("it leaves by %s, from %s again", w.in, w.question.To)
	if count, err := w.Host.CountFlows(w.question.To); w.noted(err) && count > 0 {
		detail += fmt.Sprintf("; connections there are: %d", count)
	}
	return detail, true
}

// Text is the steps for a terminal of 80 columns.
func Text(steps []Step) string {
	var out strings.Builder
	for _, s := range steps {
		mark := "ok"
		if !s.OK {
			mark = "ENDS"
		}
		write(&out, fmt.Sprintf("%-4s %-9s ", mark, s.Step), s.Detail)
	}
	return out.String()
}
