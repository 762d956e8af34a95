package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/extip/extip/store"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// seenInterval is how often a host writes that it lives into its record, which
// stays when it is dead. Others are told of each, so it isn't often.
const seenInterval = time.Minute

// A record is the value of "hosts/HOST".
type record struct {
	ID string `json:"id"`
	// MACs are those by which the host answers for addresses.
	MACs    []string  `json:"macs"`
	Version string    `json:"version"`
	TTL     int64     `json:"ttl"` // of its lease, in seconds
	Seen    time.Time `json:"seen"`
}

// introduce writes this host's record.
func (m *Member) introduce(ctx context.Context) error {
	m.mu.Lock()
	r := record{ID: m.config.ID, Version: m.config.Version, TTL: int64(m.ttl / time.Second), Seen: time.Now().UTC().Truncate(time.Second)}
	var before record
	if _, ok := m.decode(hostsPrefix+m.config.Host, &before); ok {
		r.MACs = before.MACs
	}
	m.mu.Unlock()
	if m.ownMACs != nil {
		if macs, err := m.ownMACs(); err == nil {
			r.MACs = []string{}
			for _, mac := range macs {
				r.MACs = append(r.MACs, mac.String())
			}
			slices.Sort(r.MACs)
			r.MACs = slices.Compact(r.MACs)
		}
	}
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	err = m.door.ask(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Put(ctx, m.config.Prefix+hostsPrefix+m.config.Host, string(value))
		return err
	})
	if err != nil {
		return fmt.Errorf("write this host's record: %w", err)
	}
	return nil
}

// Member is the host that has a MAC; "" for none of the cluster.
func (m *Member) Member(mac net.HardwareAddr) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.macs == nil {
		m.macs = map[string]string{}
		for _, key := range m.mirror.keys(hostsPrefix) {
			var r record
			m.decode(key, &r)
			for _, text := range r.MACs {
				m.macs[text] = strings.TrimPrefix(key, hostsPrefix)
			}
		}
	}
	return m.macs[mac.String()]
}

// Hosts are the members, this one among them, in the order of their names.
func (m *Member) Hosts() []store.HostInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []store.HostInfo
	for _, key := range m.mirror.keys(hostsPrefix) {
		info := store.HostInfo{Name: strings.TrimPrefix(key, hostsPrefix)}
		var r record
		m.decode(key, &r)
		info.MACs, info.Version, info.Seen, info.TTL = r.MACs, r.Version, r.Seen, time.Duration(r.TTL)*time.Second
		var l life
		if _, info.Alive = m.decode(alivePrefix+info.Name, &l); info.Alive {
			info.Seen = l.Since
		}
		if info.Own = info.Name == m.config.Host; info.Own {
			info.Alive = m.fence.Proven(time.Now())
		}
		list = append(list, info)
	}
	return list
}
