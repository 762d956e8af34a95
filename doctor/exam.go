package doctor

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/nat/iptables"
	"github.com/extip/extip/nat/nftables"
)

// An exam is one look at the host.
type exam struct {
	*Doctor
	ctx      context.Context
	subject  Subject
	networks map[string]Network // by ID
	links    map[string]link.LinkInfo
	native   *nftables.Ruleset
	tables   *iptables.Ruleset
	// own tells the host's own addresses.
	own map[netip.Addr]bool
	// peers are what somebody has found out.
	peers map[peerKey]netip.Addr
	// counted is how many flows addresses have; nil until somebody asks.
	counted map[netip.Addr]link.FlowCount
	// failed is what could not be looked at.
	failed []error
}

type peerKey struct {
	parent string
	v4     bool
}

func (d *Doctor) exam(ctx context.Context, s Subject) (*exam, error) {
	x := &exam{Doctor: d, ctx: ctx, subject: s, networks: map[string]Network{}, own: map[netip.Addr]bool{}, peers: map[peerKey]netip.Addr{}}
	x.subject.Networks = slices.Clone(s.Networks)
	for i := range s.Networks {
		n := &x.subject.Networks[i]
		n.in = x.wayIn(n.Parent)
		x.networks[n.ID] = *n
	}
	var err error
	if x.links, err = d.Host.Links(); err != nil {
		return nil, err
	}
	for _, l := range x.links {
		for _, a := range l.Addresses {
			x.own[a.Addr()] = true
		}
	}
	if x.tables, err = iptables.Read(d.IPTables); err != nil {
		x.failed = append(x.failed, err)
	}
	if x.native, err = nftables.Read(); err != nil {
		x.native = &nftables.Ruleset{} // a kernel without them has no such rules
		if d.Backend != "iptables" {
			x.failed = append(x.failed, err)
		}
	}
	return x, nil
}

func (x *exam) errs() error { return errors.Join(x.failed...) }

// noted keeps an error of something that could not be looked at, and tells
// whether there is none.
func (x *exam) noted(err error) bool {
	if err != nil {
		x.failed = append(x.failed, err)
	}
	return err == nil
}

// setting reads one; ok is false if there is none.
func (x *exam) setting(path string) (value int, ok bool) {
	value, err := x.Host.Setting(path)
	return value, err == nil
}

// wayIn is where packets for the addresses of a parent come in.
func (x *exam) wayIn(parent string) string {
	if parent == "lo" {
		if name, err := x.Host.DefaultParent(); err == nil {
			return name
		}
	}
	return parent
}

// parentsOf are the interfaces by which packets for external addresses come in,
// with the families that are used there.
func (x *exam) parentsOf() map[string]link.Families {
	parents := map[string]link.Families{}
	for _, n := range x.subject.Networks {
		if n.Internal || n.in == "" {
			continue
		}
		f, of := parents[n.in], link.FamiliesOf(n.Subnets)
		parents[n.in] = link.Families{V4: f.V4 || of.V4, V6: f.V6 || of.V6}
	}
	return parents
}

// working tells whether packets can pass an interface.
func (x *exam) working(name string) bool {
	l, ok := x.links[name]
	return ok && l.On && l.Carrier
}

func (x *exam) iface(name string) nat.Interface {
	return nat.Interface{Name: name, Index: x.links[name].Index}
}

// somebody is an address of a family that a client on a parent's side may
// have: the next router, or a neighbour.
func (x *exam) somebody(parent string, like netip.Addr) netip.Addr {
	key := peerKey{parent, like.Is4()}
	if _, known := x.peers[key]; !known {
		x.peers[key] = x.findSomebody(parent, like)
	}
	return x.peers[key]
}

func (x *exam) findSomebody(parent string, like netip.Addr) netip.Addr {
	gateways, err := x.Host.Gateways()
	x.noted(err)
	for _, a := range x.links[parent].Addresses {
		if a.Addr().Is4() != like.Is4() || a.IsSingleIP() {
			continue
		}
		for _, g := range gateways {
			if a.Contains(g) {
				return g
			}
		}
		if next := a.Masked().Addr().Next(); next != a.Addr() {
			return next
		}
		return a.Addr().Next()
	}
	return far(like)
}

// far is an address of a family that is nobody's and routed like most: one for
// documentation (RFC 5737, RFC 3849). No packet is sent there.
func far(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.AddrFrom4([4]byte{198, 51, 100, 1})
	}
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1})
}
