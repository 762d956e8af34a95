package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/extip/extip/nat"
)

// What is counted is counted by elements of sets, which the kernel can since
// Linux 5.7: where it filters, it counts. They are sets of their own, since of
// a map that counts nft 0.9.8 can't load what it has saved.

// A counter is an element's that counts: of the set for a Count, by key.
type counter struct {
	what nat.Count
	key  netip.Addr
}

func (f family) countedSet() *set {
	return &set{kind: setKind{key: f.addrType().Name, does: counts}, elements: map[string]string{}}
}

// countedSets are the sets that count, by name.
func countedSets() map[string]nat.Count {
	return map[string]nat.Count{
		setRefused: nat.Refused, setIncoming: nat.Incoming, setOutgoing: nat.Outgoing, setReceived: nat.Received, setSent: nat.Sent,
		setLimited: nat.LimitedIn,
	}
}

// counting is what is counted besides refusals.
type counting struct{ connections, packets bool }

// does tells whether there is a set for a Count whether or not anything is
// filtered.
func (c counting) does(what nat.Count) bool {
	switch what {
	case nat.Incoming, nat.Outgoing:
		return c.connections
	case nat.Received, nat.Sent:
		return c.packets
	}
	return false
}

// frameAccounts adds what looks at every packet that comes or leaves.
func (f family) frameAccounts(t *table) {
	put := func(name string, number uint32, priority int32, at uint32, set string) {
		t.chains[name] = chain{hook{nftables.ChainTypeFilter, number, priority, nftables.ChainPolicyAccept}, []rule{f.rule(f.load(at), contains(set))}}
	}
	put(chainArriving, unix.NF_INET_PRE_ROUTING, afterRefusal, f.target(), setReceived)
	put(chainLeaving, unix.NF_INET_POST_ROUTING, afterSNAT, f.source(), setSent)
}

// counters are those of a set's elements.
func counters(set string, keys []string) []counter {
	var list []counter
	for _, key := range keys {
		if a, ok := netip.AddrFromSlice([]byte(key)); ok {
			list = append(list, counter{countedSets()[set], a})
		}
	}
	return list
}

// count adds an element to a set that counts, if there is one.
func (t *table) count(name, key string) {
	if s := t.sets[name]; s != nil {
		s.elements[key] = ""
	}
}

// commitCounted is the kernel's commit; what begins with it is told to the tally.
func (b *Backend) commitCounted(bt *batch) error {
	err := b.kernel.commit(bt)
	if err == nil {
		b.tally.Restart(bt.begun...)
	}
	return err
}

// Counters implements nat.Backend.
func (b *Backend) Counters() (map[netip.Addr]nat.Counters, error) {
	b.reading.Lock()
	defer b.reading.Unlock()
	if b.unfiltered != nil {
		return nil, nil
	}
	b.tally.Begin()
	readings, err := b.reader.readCounters()
	if err != nil {
		return nil, fmt.Errorf("nat: read counters: %w", err)
	}
	// No change may come between the kernel and the tally.
	b.mu.Lock()
	defer b.mu.Unlock()
	mapped := make(map[netip.Addr]bool, len(b.model.Mappings))
	for a := range b.model.Mappings {
		mapped[a] = true
	}
	for i, r := range readings {
		switch {
		case r.What == nat.Outgoing:
			readings[i].External = b.model.egress(r.External)
		case r.What == nat.LimitedIn && !mapped[r.External]:
			readings[i].What, readings[i].External = nat.LimitedOut, b.model.limiter(r.External)
		}
	}
	return b.tally.End(readings, mapped), nil
}

// readCounters reads what all elements show. As External they have their key.
func (k *kernel) readCounters() (readings []nat.Reading[counter], err error) {
	for _, f := range families() {
		for name, what := range countedSets() {
			err := k.eachElement(f.proto(), name, func(e attrs) {
				key, ok := netip.AddrFromSlice(e.find(unix.NFTA_SET_ELEM_KEY, unix.NFTA_DATA_VALUE))
				shows := e.find(unix.NFTA_SET_ELEM_EXPR, unix.NFTA_EXPR_DATA)
				if ok && shows != nil {
					readings = append(readings, nat.Reading[counter]{
						Counter: counter{what, key}, External: key, What: what,
						Shows: nat.Traffic{Packets: shows.number64(unix.NFTA_COUNTER_PACKETS), Bytes: shows.number64(unix.NFTA_COUNTER_BYTES)},
					})
				}
			})
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) {
				return nil, err
			}
		}
	}
	return readings, nil
}

// number64 is number32 of 8 bytes.
func (a attrs) number64(path ...uint16) uint64 {
	if n := a.find(path...); len(n) == 8 {
		return binary.BigEndian.Uint64(n)
	}
	return 0
}
