package nat

import (
	"net/netip"
	"time"
)

// A Flow is what is followed: the packets to and from an external address.
type Flow struct {
	External, Internal netip.Addr
	// Port is the container's, of the IP protocol Proto; 0 for all.
	Port  uint16
	Proto uint8
}

// A Sighting is a packet seen by a chain.
type Sighting struct {
	Time time.Time `json:"time"`
	// Packet tells packets apart, for a while.
	Packet string `json:"packet"`
	// Header is what the packet looks like there, such as
	// "203.0.113.200:4711 > 172.31.0.2:80 tcp syn"; empty if not known.
	Header string `json:"header,omitempty"`
	// Family and Table are nft's. Rule is as nft lists it; "end" is where a
	// chain has no rule left, "policy" what then decides.
	Family string `json:"family"`
	Table  string `json:"table"`
	Chain  string `json:"chain"`
	Rule   string `json:"rule"`
	// Verdict is accept, drop, continue, return, or where it goes.
	Verdict string `json:"verdict"`
}
