package driver

import "time"

// A Member is a host that shares its addresses with this one, or this one itself.
type Member struct {
	Name string `json:"name"`
	Own  bool   `json:"own,omitempty"`
	// Alive: its lease holds, as far as is known here.
	Alive bool `json:"alive"`
	// Claims is how many external addresses its containers have.
	Claims int `json:"claims"`
	// ApartSince is since when this host can't prove its claims; zero if it
	// can, and for others.
	ApartSince time.Time `json:"apart_since,omitzero"`
	// MACs are those by which it answers for addresses.
	MACs    []string `json:"macs"`
	Version string   `json:"version,omitempty"`
	// TTL is how long its lease holds when it is not renewed, in seconds.
	TTL float64 `json:"ttl_seconds"`
	// Seen is when it became alive, or when it is not, was last.
	Seen time.Time `json:"seen,omitzero"`
}

// Members are the hosts that share addresses; none if this one shares its with no
// other. Its cost grows with the number of claims.
func (d *Driver) Members() ([]Member, error) {
	if d.cluster == nil {
		return nil, nil
	}
	claims, err := d.store.HostClaims()
	if err != nil {
		return nil, err
	}
	var list []Member
	for _, h := range d.cluster.Hosts() {
		m := Member{
			Name: h.Name, Own: h.Own, Alive: h.Alive, Claims: claims[h.Name], MACs: h.MACs, Version: h.Version, TTL: h.TTL.Seconds(), Seen: h.Seen,
		}
		if since, apart := d.cluster.Apart(); apart && h.Own {
			m.ApartSince = since
		}
		list = append(list, m)
	}
	return list, nil
}

// fence notes what the ledger keeps from containers that should have it.
func (r *repair) fence() {
	if r.cluster == nil || !r.dry {
		return
	}
	if since, apart := r.cluster.Apart(); apart {
		r.note("apart from etcd since %s: nothing new is claimed", since.Format(time.RFC3339))
	}
	r.eachEndpoint(func(_ *network, e *endpoint) {
		for _, a := range e.rec.External {
			if l, ok := e.lost[a]; ok {
				r.note("%s of endpoint %s %s", a, short(e.id), l.text)
			}
		}
	})
}

// A Standing is how this host stands in its cluster.
type Standing struct {
	// ApartSince is since when it can't prove its claims; zero if it can.
	ApartSince time.Time
}

// Standing is how this host stands in its cluster; nil without one.
func (d *Driver) Standing() *Standing {
	if d.cluster == nil {
		return nil
	}
	s := &Standing{}
	if since, apart := d.cluster.Apart(); apart {
		s.ApartSince = since
	}
	return s
}
