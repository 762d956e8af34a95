package store

import (
	"errors"
	"time"
)

// A Ledger has the claims and reservations that several hosts share; package
// cluster keeps one in etcd. Its keys are "claims/ADDRESS", "reserved/ADDRESS"
// and "names/NAME", and their values are those of the file's buckets, but for a
// claim, which is a Claim in JSON. Methods may be called concurrently.
type Ledger interface {
	// Host is this host's name in the ledger.
	Host() string
	// Get is a value as this host knows it, and its version; nil and 0 if
	// there is none. It doesn't wait. What it knows of one key may be newer than
	// what it knows of another.
	Get(key string) (value []byte, version int64)
	// Scan calls fn for the keys with a prefix, in order, as this host knows
	// them, until fn returns an error, which it returns. It doesn't wait. fn
	// must not call methods of the Ledger.
	Scan(prefix string, fn func(key string, value []byte) error) error
	// Commit makes all writes at once if everything that was read has its
	// version still (0: it is absent). Without writes it only finds that out,
	// and with nothing read that the ledger answers. After nil, Get knows what
	// was written. ErrStale: something has changed, nothing was written, and Get
	// knows what has changed. ErrApart: there was no answer; the writes may have
	// been made or not. After any other error nothing was written.
	//
	// The store reads and writes at most 100 keys in one, except for
	// reservations that keep more addresses than that.
	Commit(read map[string]int64, writes []Write) error
	// Notify has fn called after each change that Get knows of, with the keys
	// that have changed: whoever changed them, and once for all that there is if
	// it was read anew. fn may call Get and Scan, so it must be called without a
	// lock that these need; it doesn't call Commit. There may be several.
	Notify(fn func(keys []string))
}

// A Write puts a value, or deletes the key if it is nil. The key ends with the
// lease of Host, which must be alive; "" is for keys that stay.
type Write struct {
	Key   string
	Value []byte
	Host  string
}

// What a Ledger's Commit returns, and with it the methods of a Store that is
// shared. Both are meant to be wrapped.
var (
	// ErrStale: something has changed since it was read. A Store tries again;
	// it returns this only if that goes on for ten seconds.
	ErrStale = errors.New("the ledger has changed meanwhile")
	// ErrApart: the ledger gave no answer. Its text is the end of a sentence
	// that says what can't be reached: "etcd can't be reached: nothing new …".
	ErrApart = errors.New("nothing new is claimed until it can (claims that are held are kept)")
)

// ErrAlive says that a host whose end is waited for lives.
var ErrAlive = errors.New("the host is alive")

// A Claim says who has an external address: the value of "claims/ADDRESS".
type Claim struct {
	// Host is the name of the host in the ledger; "" is this one, if its claims
	// are in its file.
	Host string `json:"host"`
	// Endpoint and Network are their ids there.
	Endpoint string `json:"endpoint"`
	Network  string `json:"network"`
	// Container is the container's name, where the engine told it.
	Container string `json:"container,omitempty"`
	// Reservation is the name under which the endpoint has it, "" for none.
	Reservation string    `json:"reservation,omitempty"`
	Since       time.Time `json:"since"`
	// From is the host that handed it over, until Host has recorded that.
	From string `json:"from,omitempty"`
}

// A HostInfo is what is known of one host that shares the ledger.
type HostInfo struct {
	Name string `json:"name"`
	// Alive: its lease holds, as far as is known.
	Alive bool `json:"alive"`
	// Own: it is this host.
	Own bool `json:"own,omitempty"`
	// MACs are those by which it answers for addresses, on all its segments.
	MACs []string `json:"macs,omitempty"`
	// Version is that of its program.
	Version string `json:"version,omitempty"`
	// TTL is how long its lease holds when it is not renewed.
	TTL time.Duration `json:"ttl,omitempty"`
	// Seen is when it became alive, or when it is not, was last.
	Seen time.Time `json:"seen,omitzero"`
}
