// Package nftables writes NAT into nf_tables over netlink. It keeps one table
// of its own per address family, "extip", in which a mapping is an element of
// a few maps: adding or removing one, and finding it for a new connection,
// costs the same however many there are. No program is run.
//
// Its chains translate before those of Docker, iptables, Kubernetes and
// firewalld, in whatever order these are loaded. Its drops are final, but its
// accepts don't bind others: where iptables' FORWARD chain drops by default,
// nat/iptables.Admission must let the networks' traffic pass.
package nftables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// Config is how a Backend keeps its tables.
type Config struct {
	// Owner lets nobody else change or flush the tables, where the kernel
	// can (Linux 6.9). They stay when the process ends, and the next one
	// takes them over.
	//
	// The price is paid by administrators who save and load rules. While the
	// process runs, nft refuses a file that names the tables, as a whole;
	// loading one while it does not run takes them away; and nft before 1.1
	// can't load at all what it saves then.
	Owner bool
	// Account counts every packet to and from external addresses. Without it
	// only what is refused is counted, and connections when they begin.
	Account bool
}

// Backend is a nat.Backend. Make one with New.
//
// It keeps the desired state in memory and sends the kernel exact
// differences, each call one transaction over both families. Where the two
// disagree it reads the kernel and makes it match. A new Backend starts with
// Sync: what an earlier process left would otherwise go with the first
// change.
type Backend struct {
	mu sync.Mutex
	keeper
	flags uint32 // of our tables
	// unfiltered and unlimited are why the kernel can't filter, or limit; nil
	// if it can.
	unfiltered, unlimited error
	model                 *model

	reading sync.Mutex // guards reader, and is taken before mu
	reader  *kernel
	tally   nat.Tally[counter]
}

var _ nat.Backend = (*Backend)(nil)

// New uses nf_tables of the calling thread's network namespace. It returns an
// error if the kernel can't do what is needed, which it tries without leaving
// a trace.
func New(c Config) (*Backend, error) {
	k, err := dial()
	if err != nil {
		return nil, fmt.Errorf("nat: use nftables: %w", err)
	}
	b := &Backend{model: newModel()}
	b.keeper = keeper{kernel: k, commit: b.commitCounted, families: families(), want: func(f family) *table { return b.flag(b.model.whole(f)) }}
	if c.Owner {
		b.flags = flagOwner | flagPersist
	}
	bare := nat.State{Networks: []nat.Network{{
		ID: "1", Bridge: "probe", Uplinks: []string{"probe"}, Subnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Mark: 1,
	}}}
	err = k.probe(b.flags, bare)
	if b.flags != 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
		b.flags = 0 // an older kernel
		err = k.probe(b.flags, bare)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("nat: use nftables: %w", err), k.close())
	}
	b.unfiltered = k.probe(b.flags, nat.State{Mappings: []nat.Mapping{{
		Endpoint: "1", External: netip.MustParseAddr("192.0.2.1"), Internal: netip.MustParseAddr("192.0.2.2"),
		Filter: &nat.Filter{Ports: []nat.Ports{{Proto: unix.IPPROTO_TCP, First: 1, Last: 2}}, Reject: true},
	}}})
	b.unlimited = k.probe(b.flags, nat.State{Mappings: []nat.Mapping{{
		Endpoint: "1", External: netip.MustParseAddr("192.0.2.1"), Internal: netip.MustParseAddr("192.0.2.2"),
		Limit: nat.Limit{Connections: 2, Rate: 2},
	}}})
	if b.unfiltered != nil && c.Account {
		return nil, errors.Join(fmt.Errorf("nat: account for packets, which needs Linux 5.9: %w", b.unfiltered), k.close())
	}
	b.model.counting = counting{connections: b.unfiltered == nil, packets: c.Account}
	if b.reader, err = dial(); err != nil {
		return nil, errors.Join(fmt.Errorf("nat: use nftables: %w", err), k.close())
	}
	return b, nil
}

// usable is State.Usable for this kernel.
func (b *Backend) usable(s nat.State) (good nat.State, err error) {
	good, err = s.Usable()
	if b.unfiltered == nil && b.unlimited == nil {
		return good, err
	}
	errs := []error{err}
	good.Mappings = slices.DeleteFunc(good.Mappings, func(m nat.Mapping) bool {
		var err error
		switch {
		case b.unfiltered != nil && m.Filter.Canonical() != nil:
			err = fmt.Errorf("nat: mapping %q: the kernel can't filter, which needs Linux 5.9: %w", m.External, b.unfiltered)
		case b.unlimited != nil && m.Limit != (nat.Limit{}):
			err = fmt.Errorf("nat: mapping %q: the kernel can't limit connections, which needs Linux 5.7 with NFT_LIMIT and NFT_CONNLIMIT: %w", m.External, b.unlimited)
		}
		errs = append(errs, err)
		return err != nil
	})
	return good, errors.Join(errs...)
}

// Close lets go of the kernel. What was written stays.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Join(b.kernel.close(), b.reader.close())
}

// AddNetwork implements nat.Backend. Its cost grows with the number of networks.
func (b *Backend) AddNetwork(n nat.Network) error {
	put := nat.State{Networks: []nat.Network{n}}
	if _, err := put.Usable(); err != nil {
		return err
	}
	return b.change(fmt.Sprintf("add network %q", n.ID), nat.Change{Put: put})
}

// RemoveNetwork implements nat.Backend. Only the network's ID counts.
func (b *Backend) RemoveNetwork(n nat.Network) error {
	return b.change(fmt.Sprintf("remove network %q", n.ID), nat.Change{Drop: nat.State{Networks: []nat.Network{n}}})
}

// Add implements nat.Backend. Two mappings of one external address in a call
// are an error.
func (b *Backend) Add(ms ...nat.Mapping) error {
	put := nat.State{Mappings: ms}
	if _, err := b.usable(put); err != nil {
		return err
	}
	return b.change(fmt.Sprintf("add %q", externals(ms)), nat.Change{Put: put})
}

// Remove implements nat.Backend. A mapping whose external address has moved
// on, to another internal address or endpoint, counts as absent.
func (b *Backend) Remove(ms ...nat.Mapping) error {
	return b.change(fmt.Sprintf("remove %q", externals(ms)), nat.Change{Drop: nat.State{Mappings: ms}})
}

func externals(ms []nat.Mapping) string {
	var names []string
	for _, m := range ms {
		names = append(names, m.External.String())
	}
	return strings.Join(names, " ")
}

// Sync implements nat.Backend. Networks and mappings that can't be written
// are left out and reported as errors.
func (b *Backend) Sync(s nat.State) (repaired []string, err error) {
	want, uerr := b.usable(s)
	b.mu.Lock()
	defer b.mu.Unlock()
	if m := modelOf(want, b.model.counting); !m.Equal(b.model.Desired) {
		b.model, b.agreed = m, false
	}
	repaired, err = b.converge(true)
	if err != nil {
		err = fmt.Errorf("nat: sync: %w", err)
	}
	return repaired, errors.Join(uerr, err)
}

// Repair implements nat.Backend.
func (b *Backend) Repair() (repaired []string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if repaired, err = b.converge(true); err != nil {
		err = fmt.Errorf("nat: repair: %w", err)
	}
	return repaired, err
}

// Check implements nat.Backend.
func (b *Backend) Check() (differences []string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if differences, err = b.converge(false); err != nil {
		err = fmt.Errorf("nat: check: %w", err)
	}
	return differences, err
}
