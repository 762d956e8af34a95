package driver

import (
	"net"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/store"
)

// port is an endpoint as the guard knows it: what its container may send.
func port(n store.Network, e store.Endpoint) nat.Guarded {
	host, _ := link.VethNames(e.ID)
	mac, _ := net.ParseMAC(e.MAC) // one that can't be read, the guard refuses
	p := nat.Port{Link: host, MAC: mac, Trusted: n.Spoof == store.SpoofAllow}
	for _, a := range e.Addresses {
		p.Addresses = append(p.Addresses, a.Addr())
	}
	return nat.Guarded{Ports: []nat.Port{p}}
}

func (d *Driver) guardStep(n store.Network, e store.Endpoint) step {
	return step{
		name: "guard",
		do:   func() error { return d.kernel.Guard.Add(port(n, e)) },
		undo: func() error { return d.kernel.Guard.Remove(port(n, e)) },
	}
}

// guardState is what the guard should hold. An endpoint that is leaving may
// still have its link.
func (d *Driver) guardState() nat.Guarded {
	var state nat.Guarded
	for _, n := range d.networkRecords() {
		state.Networks = append(state.Networks, n.ID)
	}
	d.eachEndpoint(func(n *network, e *endpoint) {
		state.Ports = append(state.Ports, port(n.rec, e.rec).Ports...)
	})
	return state
}
