package store

import "net/netip"

// An Offer is an address that a host would hand over to a container of another.
type Offer struct {
	Address netip.Addr `json:"address"`
	// From and To are hosts.
	From string `json:"from"`
	To   string `json:"to"`
	// Container is the one of To that is to have it: its name, or the
	// beginning of its id or of its endpoint's.
	Container string `json:"container"`
}

// An Acceptance says which endpoint can have what was offered.
type Acceptance struct {
	// Endpoint and Network are ids at the host that was asked.
	Endpoint string `json:"endpoint"`
	Network  string `json:"network"`
	// Container is the container's name, where it is known.
	Container string `json:"container,omitempty"`
	// Reservation is the name under which the endpoint has its addresses.
	Reservation string `json:"reservation,omitempty"`
}
