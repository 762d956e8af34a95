package link

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// A way is how the flows of an address family are deleted: the best that the
// kernel was seen to be capable of.
type way int32

const (
	// unproven is readAll until there was a flow to try the kernel's filter
	// with.
	unproven way = iota
	// readAll reads the whole table: before 5.8, and where a later kernel's
	// filter is wrong.
	readAll
	// readFiltered has the kernel choose, and deletes flow by flow: since 5.8.
	readFiltered
	// deleteAtOnce has the kernel choose and delete: since 6.12.
	deleteAtOnce
)

// manySearches is from how many on reading the whole table once is cheaper than
// having the kernel go through it for each. Measured with 200,000 flows: 390 ms to
// 500 ms against 47 ms to 80 ms a search, by how busy the machine is; with
// 20,000: 45 ms against 3 ms.
const manySearches = 8

// Flows are the connections of endpoints, by the addresses that connection
// tracking knows them by.
type Flows struct {
	// External addresses are connected to.
	External []netip.Addr
	// Internal addresses connect, and answer for the external ones.
	Internal []netip.Addr
	// Pairs are those of containers by one of their external addresses.
	Pairs []Pair
}

// A Pair is an external address and a container's that it leads to, or led.
type Pair struct{ External, Internal netip.Addr }

// A search is for the flows that have an address in a field, and unless also is
// none, another one in that.
type search struct {
	field    field
	addr     netip.Addr
	also     field
	alsoAddr netip.Addr
}

// finds tells whether a flow is one of those.
func (s search) finds(f flow) bool {
	return f.addrs[s.field] == s.addr && f.addrs[s.also] == s.alsoAddr
}

// in is the search of the same fields that finds the flow.
func (s search) in(f flow) search {
	return search{s.field, f.addrs[s.field], s.also, f.addrs[s.also]}
}

// searches are those for a pair: who connected to the container, and what it
// connects to.
func (p Pair) searches() []search {
	return []search{{origDst, p.External, replySrc, p.Internal}, {origSrc, p.Internal, replyDst, p.External}}
}

// searches are those of a family.
func (fl Flows) searches(family uint8) []search {
	var list []search
	add := func(addrs []netip.Addr, in ...field) {
		for _, a := range addrs {
			if a = a.Unmap(); a.IsValid() && a.Is4() == (family == unix.AF_INET) {
				for _, f := range in {
					list = append(list, search{field: f, addr: a})
				}
			}
		}
	}
	add(fl.External, origDst)
	add(fl.Internal, origSrc, replySrc)
	for _, p := range fl.Pairs {
		if p.External.Is4() == (family == unix.AF_INET) {
			list = append(list, p.searches()...)
		}
	}
	return list
}

// Forget removes the flows from connection tracking. What was established before
// a mapping came or went would follow the old way for as long as it sends.
func (h *Host) Forget(fl Flows) error {
	err := errors.Join(h.forget(unix.AF_INET, fl.searches(unix.AF_INET)), h.forget(unix.AF_INET6, fl.searches(unix.AF_INET6)))
	if err != nil {
		return fmt.Errorf("link: forget flows of %v, %v, %v: %w", fl.External, fl.Internal, fl.Pairs, err)
	}
	return nil
}

// forget is Forget for one family.
func (h *Host) forget(family uint8, searches []search) error {
	if len(searches) == 0 {
		return nil
	}
	known := &h.ways[0]
	if family == unix.AF_INET6 {
		known = &h.ways[1]
	}
	w := way(known.Load())
	if w == deleteAtOnce && len(searches) < manySearches {
		err := h.forgetAtOnce(family, searches)
		if !unsupported(err) {
			return err
		}
		w = readFiltered
		known.Store(int32(w))
	}
	if w == readFiltered && len(searches) < manySearches {
		return h.forgetFiltered(family, searches)
	}
	sample, err := h.forgetAll(family, searches)
	if err == nil && w == unproven && sample != nil {
		known.Store(int32(h.prove(family, sample)))
	}
	return err
}

func (h *Host) forgetAtOnce(family uint8, searches []search) error {
	for _, s := range searches {
		if err := h.deleteFiltered(family, s); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) forgetFiltered(family uint8, searches []search) error {
	var keys [][]byte
	for _, s := range searches {
		err := h.dump(family, s.filter(), func(found flow) {
			if s.finds(found) {
				keys = append(keys, found.key())
			}
		})
		if err != nil {
			return err
		}
	}
	return h.deleteEach(family, keys)
}

// forgetAll reads the whole table. It returns a flow that it leaves there, nil
// if there is none.
func (h *Host) forgetAll(family uint8, searches []search) (*flow, error) {
	wanted := map[search]bool{}
	var kinds []search // one for each combination of fields
	for _, s := range searches {
		wanted[s] = true
		if !slices.ContainsFunc(kinds, func(k search) bool { return k.field == s.field && k.also == s.also }) {
			kinds = append(kinds, s)
		}
	}
	var keys [][]byte
	var sample *flow
	err := h.dump(family, nil, func(found flow) {
		for _, k := range kinds {
			if wanted[k.in(found)] {
				keys = append(keys, found.key())
				return
			}
		}
		if sample == nil {
			first := found // found itself would be allocated for every flow
			sample = &first
		}
	})
	if err == nil {
		err = h.deleteEach(family, keys)
	}
	return sample, err
}

// Remaining counts the flows of pairs; those that have none are not in the
// answer. It reads the whole table.
func (h *Host) Remaining(pairs []Pair) (map[Pair]int, error) {
	count := map[Pair]int{}
	by := map[uint8]map[search]Pair{unix.AF_INET: {}, unix.AF_INET6: {}}
	for _, p := range pairs {
		family := uint8(unix.AF_INET6)
		if p.External.Is4() {
			family = unix.AF_INET
		}
		for _, s := range p.searches() {
			by[family][s] = p
		}
	}
	kinds := Pair{}.searches()
	for family, wanted := range by {
		if len(wanted) == 0 {
			continue
		}
		err := h.dump(family, nil, func(found flow) {
			for _, k := range kinds {
				if p, ok := wanted[k.in(found)]; ok {
					count[p]++
				}
			}
		})
		if err != nil {
			return nil, fmt.Errorf("link: count flows: %w", err)
		}
	}
	return count, nil
}

// A FlowCount is how many flows an address has.
type FlowCount struct {
	// All is the entries of the table, Open those of them that are no TCP
	// connections which have ended.
	All, Open int
}

// Count counts the flows that were opened to the External addresses, and by the
// Internal ones; those that have none are not in the answer. It reads the whole
// table: 0.4 s for 200,000.
func (h *Host) Count(fl Flows) (map[netip.Addr]FlowCount, error) {
	count := map[netip.Addr]FlowCount{}
	wanted := map[search]bool{}
	for _, a := range fl.External {
		wanted[search{field: origDst, addr: a}] = true
	}
	for _, a := range fl.Internal {
		wanted[search{field: origSrc, addr: a}] = true
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := h.dump(family, nil, func(found flow) {
			for _, f := range []field{origDst, origSrc} {
				if a := found.addrs[f]; wanted[search{field: f, addr: a}] {
					n := count[a]
					n.All++
					if !found.ended() {
						n.Open++
					}
					count[a] = n
				}
			}
		})
		if err != nil {
			return nil, fmt.Errorf("link: count flows: %w", err)
		}
	}
	return count, nil
}

func (h *Host) deleteEach(family uint8, keys [][]byte) error {
	for _, key := range keys {
		if err := h.delete(family, key); err != nil {
			return err
		}
	}
	return nil
}

// prove tells by a flow that is there what the kernel's filter is worth. The
// version doesn't say: from 5.8, which brought it, to 6.18 at least, it takes
// IPv6 addresses the wrong way round (ctnetlink_filter_match_tuple), and would
// delete all flows but those that it is asked for; and before 5.17 it forgets
// the address in replies (ctnetlink_alloc_filter,
// net/netfilter/nf_conntrack_netlink.c). Such a filter never finds the flow.
// What finds it, and no other, is trusted.
func (h *Host) prove(family uint8, sample *flow) way {
	key := sample.key()
	for f := none + 1; f < fields; f++ {
		s := search{field: f, addr: sample.addrs[f]}
		found, others := false, false
		err := h.dump(family, s.filter(), func(answer flow) {
			found = found || bytes.Equal(answer.key(), key)
			others = others || !s.finds(answer)
		})
		switch {
		case unsupported(err), others:
			return readAll
		case err != nil:
			return unproven
		case found:
			continue
		}
		if there, err := h.tracked(family, key); err == nil && there {
			return readAll
		}
		return unproven // the flow went meanwhile
	}
	return deleteAtOnce
}

// unsupported tells whether the kernel's answer means that it doesn't know
// what it was asked to do; see deleteFiltered for ENOENT.
func unsupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT)
}
