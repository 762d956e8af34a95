// Package store keeps what must survive a restart: networks, endpoints and
// the claims that endpoints have on external addresses. It is the only memory
// there is: the engine never tells a remote driver again what it told once.
//
// The file is a bbolt database of these buckets:
//
//	meta       schema → version; shared → name of this host in the ledger
//	networks   network id → Network, JSON
//	endpoints  endpoint id → Endpoint, JSON
//	claims     external address, text → id of the endpoint of this host that has it
//	reserved   external address, text → name of the reservation that keeps it
//	names      name of a reservation → Reservation, JSON
//	recent     network id/container's addresses → external addresses it had last
//	unsure     external address, text → "", from before it is handed over until it is known to be or not
//	cursors    pool, text → its address that was handed out last
//
// Hosts that share a pool have claims and reservations in a Ledger: a write of
// such a Store goes into that first, and then into the file. Reservations are in
// the ledger only; reserved and names have those of before it was shared, until
// Reclaim takes them along.
package store

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/extip/extip/pool"
	bolt "go.etcd.io/bbolt"
)

// ErrLocked is returned by Open while another process has the file open.
var ErrLocked = errors.New("another process has it open: is a second extip running?")

// Source says whom a container sees as its client.
type Source string

// Sources.
const (
	SourceClient  Source = "client"  // the client's own address
	SourceGateway Source = "gateway" // the bridge's address
)

// Egress says from which address a container's own connections leave.
type Egress string

// Egresses.
const (
	EgressExternal Egress = "external" // the endpoint's first external address
	EgressHost     Egress = "host"     // the host's address
)

// DAD says how an address is probed before it is taken: duplicate address
// detection.
type DAD string

// DADs.
const (
	DADFast    DAD = "fast"    // 3 probes, 0.45 s
	DADRFC5227 DAD = "rfc5227" // 4 to 7 s
	DADOff     DAD = "off"
)

// Alias says where an external address is put.
type Alias string

// Aliases.
const (
	AliasParent Alias = "parent"
	AliasLo     Alias = "lo"
	AliasNone   Alias = "none" // the block is routed to this host
)

// Conflict says what is done about another host that uses an address, once it
// was told and goes on: RFC 5227 §2.4 (c) and (b).
type Conflict string

// Conflicts.
const (
	ConflictKeep  Conflict = "keep"
	ConflictYield Conflict = "yield"
)

// Filter says who may connect to external addresses, to what, and how much of
// it. The zero Filter keeps nothing out.
type Filter struct {
	// Ports may be reached; none stands for all, of every protocol.
	Ports []Ports `json:"ports,omitempty"`
	// Allow may connect; none stands for everyone.
	Allow  []netip.Prefix `json:"allow,omitempty"`
	Refuse Refuse         `json:"refuse,omitempty"`
	Limit  Limit          `json:"limit,omitzero"`
}

// Equal tells whether two filters are the same.
func (f Filter) Equal(o Filter) bool {
	return slices.Equal(f.Ports, o.Ports) && slices.Equal(f.Allow, o.Allow) && f.Refuse == o.Refuse && f.Limit == o.Limit
}

// Limit says how many connections an address may have at a time, and how many
// new ones a second; 0 stands for any number.
type Limit struct {
	Connections uint32 `json:"connections,omitempty"`
	Rate        uint32 `json:"rate,omitempty"`
}

// Ports is a protocol by its name, and a range of its ports if it has any.
type Ports struct {
	Proto string `json:"proto"`
	First uint16 `json:"first,omitempty"`
	Last  uint16 `json:"last,omitempty"`
}

// Refuse says what becomes of what a Filter keeps out.
type Refuse string

// Refusals.
const (
	RefuseDrop   Refuse = "drop"
	RefuseReject Refuse = "reject" // answered by ICMP, port unreachable
)

// Spoof says whether containers may send as somebody else.
type Spoof string

// Spoofs. A record of before there was a choice has none, and denies.
const (
	SpoofDeny  Spoof = "deny"
	SpoofAllow Spoof = "allow"
)

// Network is one Docker network.
type Network struct {
	ID     string
	Bridge string
	// Parent is the host interface that carries the external addresses.
	Parent string
	// Follows: nobody named the parent; it is that of the default route,
	// wherever that goes.
	Follows bool `json:",omitempty"`
	// Gateways are the bridge's own addresses, with the container subnets'
	// prefix lengths; at most one per family.
	Gateways []netip.Prefix
	// AddressSpace is the engine's: within one, subnets never overlap.
	AddressSpace string
	// MTU of bridge and container links, in bytes.
	MTU int
	// Pool is what endpoints that ask for no address are given from.
	Pool pool.Pool
	// Auto gives an endpoint that names no address one from Pool.
	Auto   bool
	Source Source
	Egress Egress
	// DAD is how an address is probed before it is taken, Alias where it is
	// put, Conflict what is done when somebody else uses it, too.
	DAD      DAD
	Alias    Alias
	Conflict Conflict
	// Filter is what an endpoint has that says nothing else.
	Filter Filter
	// ICC lets the network's containers talk to each other directly.
	ICC bool
	// Spoof lets them send with others' MACs and addresses.
	Spoof    Spoof `json:",omitempty"`
	Internal bool
	// Leaving: the engine has deleted it; something in the kernel would not
	// go yet.
	Leaving bool `json:",omitempty"`
}

// State is how far an endpoint has come. A record always covers at least what
// the kernel holds.
type State string

// States of an endpoint.
const (
	// Plumbed: the link exists, nothing is reachable from outside.
	Plumbed State = "plumbed"
	// Published: external addresses, if any, are mapped.
	Published State = "published"
	// Leaving: the engine has deleted it; something in the kernel would not
	// go yet.
	Leaving State = "leaving"
	// Retired: the engine has deleted it and its addresses are free; only
	// its link is still to go.
	Retired State = "retired"
)

// Endpoint is one container on one network.
type Endpoint struct {
	ID      string
	Network string
	// Addresses are the container's own, with the subnet's prefix length;
	// at most one per family.
	Addresses []netip.Prefix
	MAC       string
	// External are the claimed addresses; the first of each family is the
	// one that the container's own connections leave from.
	External []netip.Addr
	// Reservation is the name under which External is kept, "" for none.
	Reservation string `json:",omitempty"`
	Source      Source
	Egress      Egress
	Filter      Filter
	// Detour: another network holds the container's default route, so it has
	// to see its bridge as the client, whatever Source says.
	Detour bool `json:",omitempty"`
	State  State
	// Since is when it got addresses that it did not have from the start.
	Since map[netip.Addr]time.Time `json:",omitempty"`
	// Draining are addresses that lead elsewhere by now, and until when what
	// was connected by them before may stay.
	Draining map[netip.Addr]time.Time `json:",omitempty"`
	// Name is the container's name, where the engine told it.
	Name    string `json:",omitempty"`
	Created time.Time
}

// Title names an endpoint in a message, by the container's name if known.
func (e Endpoint) Title() string {
	s := "endpoint " + short(e.ID)
	if e.Name != "" {
		s = fmt.Sprintf("container %q (%s)", e.Name, s)
	}
	for _, a := range e.Addresses {
		s += " " + a.Addr().String()
	}
	return s + " of network " + short(e.Network)
}

// short is the form of an id that docker's own listings use.
func short(id string) string { return id[:min(len(id), 12)] }

var (
	metaBucket      = []byte("meta")
	networksBucket  = []byte("networks")
	endpointsBucket = []byte("endpoints")
	claimsBucket    = []byte("claims")
	reservedBucket  = []byte("reserved")
	namesBucket     = []byte("names")
	recentBucket    = []byte("recent")
	cursorsBucket   = []byte("cursors")
	unsureBucket    = []byte("unsure")
	schemaKey       = []byte("schema")
	sharedKey       = []byte("shared")
)

// Store is an open file. Its methods may be called concurrently; each write
// is one transaction, on disk when the method returns.
type Store struct {
	db    *bolt.DB
	aside string
	// ledger has claims and reservations that are shared; nil if they aren't.
	ledger Ledger
	// mu is held while the file is written, and guards what follows: the
	// addresses that are claimed or reserved, and what is under way.
	mu    sync.Mutex
	taken pool.Set
	works works
	given map[Claim]time.Time // not recorded yet, and first seen then
	// unsure are addresses that are handed over, or were without an answer,
	// each with the how manieth time that was.
	unsure  map[netip.Addr]int
	handing int
	// Intercept, if set, is asked before each write of the file; its error is
	// the write's. Tests make a disk full with it, or the program end.
	Intercept func(what string) error
}

// Open opens the file, or makes it with its folder. It returns ErrLocked if
// another process keeps it open for more than a second. A file that is damaged
// is set aside and a new one begun; SetAside then tells.
func Open(path string) (*Store, error) { return openSound(path, nil) }

func openSound(path string, l Ledger) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s, err := open(path, l)
	if !errors.Is(err, errDamaged) {
		return s, err
	}
	aside := fmt.Sprintf("%s.damaged-%s", path, time.Now().UTC().Format("20060102T150405.000"))
	if rerr := os.Rename(path, aside); rerr != nil {
		return nil, errors.Join(err, fmt.Errorf("store: set aside: %w", rerr))
	}
	if s, err = open(path, l); err == nil {
		s.aside = aside
	}
	return s, err
}

// SetAside is the path that a damaged file was moved to by Open; "" if it was
// sound.
func (s *Store) SetAside() string { return s.aside }

// Close lets go of the file.
func (s *Store) Close() error { return s.db.Close() }

// PutNetwork records a network, new or changed.
func (s *Store) PutNetwork(n Network) error {
	return s.update("put network "+short(n.ID), func(tx *transaction) error {
		return tx.put(networksBucket, n.ID, n)
	})
}

// DeleteNetwork forgets a network; one that is unknown is no error.
func (s *Store) DeleteNetwork(id string) error {
	return s.update("delete network "+short(id), func(tx *transaction) error {
		prefix := []byte(id + "/")
		c := tx.Bucket(recentBucket).Cursor()
		for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Seek(prefix) {
			if err := tx.write(recentBucket, string(k), nil); err != nil {
				return err
			}
		}
		return tx.write(networksBucket, id, nil)
	})
}

// Networks returns all networks.
func (s *Store) Networks() ([]Network, error) { return all[Network](s, networksBucket) }

// PutEndpoint records a change of an endpoint that is not one of its claims.
func (s *Store) PutEndpoint(e Endpoint) error {
	return s.update("put endpoint "+short(e.ID), func(tx *transaction) error { return putEndpoint(tx, e) })
}

// RetireEndpoint releases an endpoint's claims and records that its link is all
// that is left of it.
func (s *Store) RetireEndpoint(e Endpoint) error {
	return s.update("retire endpoint "+short(e.ID), func(tx *transaction) error {
		if err := release(tx, e.ID); err != nil {
			return err
		}
		retired := e
		retired.External, retired.State = nil, Retired
		return tx.put(endpointsBucket, e.ID, retired)
	})
}

// DeleteEndpoints forgets endpoints and releases their claims, all in one
// transaction; one that is unknown is no error.
func (s *Store) DeleteEndpoints(ids ...string) error {
	return s.update(fmt.Sprintf("delete %d endpoints", len(ids)), func(tx *transaction) error {
		for _, id := range ids {
			if err := release(tx, id); err != nil {
				return err
			}
			if err := tx.write(endpointsBucket, id, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// Endpoints returns all endpoints.
func (s *Store) Endpoints() ([]Endpoint, error) { return all[Endpoint](s, endpointsBucket) }
