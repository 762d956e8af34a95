package hosttest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/extip/extip/link"
)

// Forget implements driver.Addresses.
func (h *Host) Forget(f link.Flows) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.write(fmt.Sprint("forget ", f)); err != nil {
		return err
	}
	for _, a := range slices.Concat(f.External, f.Internal) {
		h.forgotten = append(h.forgotten, a.String())
	}
	for _, p := range f.Pairs {
		h.forgotten = append(h.forgotten, p.External.String()+"/"+p.Internal.String())
	}
	maps.DeleteFunc(h.flows, func(fl flow, _ int) bool {
		return !fl.out && slices.Contains(f.External, fl.External) || slices.Contains(f.Internal, fl.Internal) || slices.Contains(f.Pairs, fl.Pair)
	})
	return nil
}

// A flow is connections by an external address, to a container or out of one.
type flow struct {
	link.Pair
	out bool
}

// Connect has a client connect by an external address to wherever it leads now,
// if anywhere.
func (h *Host) Connect(a netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m, ok := h.rules.mappings[a]; ok {
		h.flows[flow{Pair: link.Pair{External: a, Internal: m.Internal}}]++
	}
}

// Dial has a container connect to somebody, by the external address that it goes
// out from, if any.
func (h *Host) Dial(inside netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for a, m := range h.rules.mappings {
		if m.Internal == inside && m.Egress {
			h.flows[flow{link.Pair{External: a, Internal: inside}, true}]++
		}
	}
}

// Disconnect ends all connections.
func (h *Host) Disconnect() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.flows)
}

// Flows lists what is connected, as "external/internal", sorted; a minus sign
// begins what containers have opened.
func (h *Host) Flows() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []string
	for f := range h.flows {
		list = append(list, flag(f.out, "-")+f.External.String()+"/"+f.Internal.String())
	}
	slices.Sort(list)
	return list
}

// Remaining implements driver.Addresses.
func (h *Host) Remaining(pairs []link.Pair) (map[link.Pair]int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	left := map[link.Pair]int{}
	for _, p := range pairs {
		if n := h.flows[flow{p, false}] + h.flows[flow{p, true}]; n > 0 {
			left[p] = n
		}
	}
	return left, nil
}
