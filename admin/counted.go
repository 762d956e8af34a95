package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/extip/extip/driver"
)

// counted is the metrics of single addresses.
type counted struct {
	connections, refusedPackets, refusedBytes, limited, packets, bytes *prometheus.Desc
}

func newCounted() counted {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("extip_address_"+name+"_total", help, append([]string{"address"}, labels...), nil)
	}
	return counted{
		connections:    desc("new_connections", "Connections begun to an address, in, or from it, out.", "direction"),
		refusedPackets: desc("refused_packets", "Packets to an address that its filter kept out."),
		refusedBytes:   desc("refused_bytes", "Bytes of the packets that an address's filter kept out."),
		limited:        desc("limited_packets", "Packets that an address's limit has kept from opening a connection, in, to it, or out, by its container.", "direction"),
		packets:        desc("packets", "With --accounting: packets to an address, in, or from it, out.", "direction"),
		bytes:          desc("bytes", "With --accounting: bytes of packets to an address, in, or from it, out.", "direction"),
	}
}

func (c counted) all() []*prometheus.Desc {
	return []*prometheus.Desc{c.connections, c.refusedPackets, c.refusedBytes, c.limited, c.packets, c.bytes}
}

// collect sends what was counted of an address. Without a filter nothing is
// refused, without a limit nothing limited, and there is no series of it.
func (c counted) collect(out chan<- prometheus.Metric, a driver.Address) {
	n := a.Counters
	if n == nil {
		return
	}
	send := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), append([]string{a.External.String()}, labels...)...)
	}
	send(c.connections, n.Incoming, "in")
	send(c.connections, n.Outgoing, "out")
	if a.Refuse != "" || n.Refused.Packets > 0 {
		send(c.refusedPackets, n.Refused.Packets)
		send(c.refusedBytes, n.Refused.Bytes)
	}
	if a.Limit != "" || n.LimitedIn+n.LimitedOut > 0 {
		send(c.limited, n.LimitedIn, "in")
		send(c.limited, n.LimitedOut, "out")
	}
	if n.Received != nil {
		send(c.packets, n.Received.Packets, "in")
		send(c.bytes, n.Received.Bytes, "in")
	}
	if n.Sent != nil {
		send(c.packets, n.Sent.Packets, "out")
		send(c.bytes, n.Sent.Bytes, "out")
	}
}
