// Package admin lets an operator see and change what the plugin does while it
// runs: the control API on a unix socket, its client, and metrics as a view of
// the same. The command line that people type is the package cli in it.
//
// The API is JSON over HTTP. calls.go has the table of what can be asked;
// docs/api.md describes it and is held to that table by a test.
package admin

import (
	"context"
	"net/netip"
	"time"

	"github.com/extip/extip/doctor"
	"github.com/extip/extip/driver"
	"github.com/extip/extip/store"
)

// Looker is what can be seen of the plugin. Nothing of it changes anything.
type Looker interface {
	// Counted is all addresses, and what was counted of them. After an error
	// some of that is missing.
	Counted() ([]driver.Address, error)
	NetworkInfos() []driver.NetworkInfo
	Reservations() ([]store.Reservation, error)
	// Members are the hosts that share addresses, none if they aren't shared.
	Members() ([]driver.Member, error)
	// Check lists in what the kernel differs from the records.
	Check() ([]string, error)
	// Events are those from now on, until the returned function is called. A
	// reader that is too slow misses some.
	Events() (<-chan driver.Event, func())
}

// Changer is what can be changed. With dryRun nothing is; the report is what
// would be.
type Changer interface {
	Attach(ctx context.Context, endpoint string, addrs []netip.Addr, dryRun bool) (driver.Report, error)
	Detach(ctx context.Context, a netip.Addr, dryRun bool) (driver.Report, error)
	Move(ctx context.Context, a netip.Addr, endpoint string, drain, dryRun bool) (driver.Report, error)
	SetFilter(endpoint, ports, allow string, dryRun bool) (driver.Report, error)
	SetLimit(endpoint, limit string, dryRun bool) (driver.Report, error)
	Reserve(name string, addrs []netip.Addr, dryRun bool) (driver.Report, error)
	Unreserve(name string, dryRun bool) (driver.Report, error)
	// Reconcile lists what it repaired.
	Reconcile(cause string) ([]string, error)
}

// Examiner looks at the host as a whole, and not only at what is extip's.
type Examiner interface {
	Doctor(context.Context) ([]doctor.Finding, error)
	Trace(context.Context, doctor.Question) ([]doctor.Step, error)
	// Live calls fn for each rule that packets to and from an address meet,
	// until ctx ends, which is no error, or fn returns one.
	Live(ctx context.Context, q doctor.Question, fn func(doctor.Sighting) error) error
	// Export writes what there should be on the host in one of the formats of
	// package export.
	Export(format string) (string, error)
	// Adopt takes over addresses that were set up by hand for containers of
	// extip's networks.
	Adopt(ctx context.Context, dryRun bool) (driver.Report, error)
}

// Plugin is what the API stands for: *driver.Driver, with an Examiner.
type Plugin interface {
	Looker
	Changer
	Examiner
}

// About says what runs.
type About struct {
	Version string `json:"version"`
	// API is the version of the API, that of its paths.
	API     int    `json:"api"`
	Backend string `json:"backend"`
	// Started is when the plugin was.
	Started time.Time `json:"started"`
}

// Reservation is what the API says of a store.Reservation, whose form on disk
// may change.
type Reservation struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Created   time.Time    `json:"created"`
}

// Addresses, Networks, Reservations, Hosts and so on are answers.
type (
	Addresses struct {
		Addresses []driver.Address `json:"addresses"`
	}
	Networks struct {
		Networks []driver.NetworkInfo `json:"networks"`
	}
	Reservations struct {
		Reservations []Reservation `json:"reservations"`
	}
	Hosts struct {
		Hosts []driver.Member `json:"hosts"`
	}
	Findings struct {
		Findings []doctor.Finding `json:"findings"`
	}
	Steps struct {
		Steps []doctor.Step `json:"steps"`
	}
	Export struct {
		Text string `json:"text"`
	}
	// Differences are lines; none means that all is as recorded.
	Differences struct {
		Differences []string `json:"differences"`
	}
)

// AttachRequest asks for addresses at an endpoint: the next one of its
// network's pool if none is named.
type AttachRequest struct {
	Endpoint  string       `json:"endpoint"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	DryRun    bool         `json:"dry_run,omitempty"`
}

// DetachRequest asks that an address leave its endpoint.
type DetachRequest struct {
	Address netip.Addr `json:"address"`
	DryRun  bool       `json:"dry_run,omitempty"`
}

// MoveRequest asks that an address go to another endpoint, or as HOST/CONTAINER to
// a container of another host of the cluster. With Drain the
// flows that there are stay with the endpoint of before until they end.
type MoveRequest struct {
	Address  netip.Addr `json:"address"`
	Endpoint string     `json:"endpoint"`
	Drain    bool       `json:"drain,omitempty"`
	DryRun   bool       `json:"dry_run,omitempty"`
}

// FilterRequest asks that an endpoint let in other clients, or to other ports.
// Ports and Allow are in the form of the options extip.ports and extip.allow; ""
// leaves what is.
type FilterRequest struct {
	Endpoint string `json:"endpoint"`
	Ports    string `json:"ports,omitempty"`
	Allow    string `json:"allow,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

// LimitRequest asks that an endpoint have another limit, in the form of the
// option extip.limit.
type LimitRequest struct {
	Endpoint string `json:"endpoint"`
	Limit    string `json:"limit"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

// AdoptRequest asks that what was set up by hand be taken over.
type AdoptRequest struct {
	DryRun bool `json:"dry_run,omitempty"`
}

// ReserveRequest asks that addresses be kept under a name.
type ReserveRequest struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	DryRun    bool         `json:"dry_run,omitempty"`
}

// UnreserveRequest asks that a name keep nothing any more.
type UnreserveRequest struct {
	Name   string `json:"name"`
	DryRun bool   `json:"dry_run,omitempty"`
}

// ReconcileRequest asks that the kernel be made to match the records.
type ReconcileRequest struct {
	DryRun bool `json:"dry_run,omitempty"`
}
