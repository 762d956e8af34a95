package driver

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/extip/extip/link"
	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
)

// A link of ours carries, beside its owner's id, a note of what is recorded of
// it: if the store is lost, the records are rebuilt from the notes. A note is
// words of the form key=value.

func networkNote(n store.Network) string {
	note := fmt.Sprintf("parent=%s source=%s egress=%s dad=%s alias=%s conflict=%s auto=%t icc=%t internal=%t",
		n.Parent, n.Source, n.Egress, n.DAD, n.Alias, n.Conflict, n.Auto, n.ICC, n.Internal)
	if n.Spoof == store.SpoofAllow {
		note += " spoof=allow"
	}
	note += filterNote(n.Filter, func(more string) bool { return link.NoteFits(n.ID, note+more) })
	if more := limitNote(n.Filter.Limit); link.NoteFits(n.ID, note+more) {
		note += more
	}
	if withPool := note + " pool=" + n.Pool.String(); link.NoteFits(n.ID, withPool) {
		return withPool
	}
	return note
}

func endpointNote(e store.Endpoint) string {
	note := fmt.Sprintf("network=%s ip=%s external=%s source=%s egress=%s", short(e.Network), join(e.Addresses), join(e.External), e.Source, e.Egress)
	if e.MAC != link.MAC(e.Addresses).String() {
		note += " mac=" + e.MAC
	}
	note += filterNote(e.Filter, func(more string) bool { return link.NoteFits(e.ID, note+more) })
	if more := limitNote(e.Filter.Limit); link.NoteFits(e.ID, note+more) {
		note += more
	}
	if e.Reservation != "" {
		if more := note + " reservation=" + e.Reservation; link.NoteFits(e.ID, more) {
			return more
		}
	}
	return note
}

// filterNote notes a filter. One that is too long is noted as lost: what is
// rebuilt then lets nobody in, instead of everybody.
func filterNote(f store.Filter, fits func(string) bool) string {
	if len(f.Ports)+len(f.Allow) == 0 {
		return ""
	}
	note := fmt.Sprintf(" ports=%s allow=%s refuse=%s", portsText(f.Ports), allowText(f.Allow), f.Refuse)
	if !fits(note) {
		return " ports=lost"
	}
	return note
}

// limitNote notes a limit.
func limitNote(l store.Limit) string {
	if l == (store.Limit{}) {
		return ""
	}
	return " limit=" + limitText(l)
}

// notedFilter reads a filterNote and a limitNote.
func notedFilter(w map[string]string) (f store.Filter, err error) {
	if limit, ok := w["limit"]; ok {
		if f.Limit, err = parseLimit(limit); err != nil {
			return f, err
		}
	}
	switch w["ports"] {
	case "":
		f.Refuse = store.RefuseDrop
		return f, nil
	case "lost":
		f.Refuse, f.Allow = store.RefuseDrop, []netip.Prefix{nobody[true], nobody[false]}
		return f, nil
	}
	f.Refuse = store.Refuse(w["refuse"])
	if f.Ports, err = parsePorts(w["ports"]); err == nil {
		f.Allow, err = parseAllow(w["allow"])
	}
	return f, err
}

func words(note string) map[string]string {
	m := map[string]string{}
	for _, word := range strings.Fields(note) {
		key, value, _ := strings.Cut(word, "=")
		m[key] = value
	}
	return m
}

// noted makes a network's record of its bridge. Its pool, if it was too long
// for the note, is the default one.
func (d *Driver) noted(name string, found link.Found) (store.Network, error) {
	w := words(found.Note)
	n := store.Network{
		ID: found.Owner, Bridge: name, Parent: w["parent"], MTU: found.MTU, Gateways: found.Addresses,
		Source: store.Source(w["source"]), Egress: store.Egress(w["egress"]), Pool: d.defaults.Pool,
		DAD: store.DAD(w["dad"]), Alias: store.Alias(w["alias"]), Conflict: store.Conflict(w["conflict"]),
		Spoof: cmp.Or(store.Spoof(w["spoof"]), store.SpoofDeny),
	}
	var errs []error
	var err error
	n.Filter, err = notedFilter(w)
	errs = append(errs, err)
	for key, to := range map[string]*bool{"auto": &n.Auto, "icc": &n.ICC, "internal": &n.Internal} {
		value, err := strconv.ParseBool(w[key])
		*to = value
		errs = append(errs, err)
	}
	if text, ok := w["pool"]; ok {
		var err error
		n.Pool, err = pool.Parse(text)
		errs = append(errs, err)
	}
	if n.Parent == "" || len(n.Gateways) == 0 {
		errs = append(errs, errors.New("its note is incomplete"))
	}
	return n, errors.Join(errs...)
}

// notedEndpoint makes an endpoint's record of the host's end of its veth pair.
// Of its network it has the short id.
func notedEndpoint(found link.Found) (store.Endpoint, error) {
	w := words(found.Note)
	e := store.Endpoint{
		ID: found.Owner, Network: w["network"], State: store.Published, Created: time.Now().UTC(),
		Source: store.Source(w["source"]), Egress: store.Egress(w["egress"]), Reservation: w["reservation"],
	}
	for text := range strings.SplitSeq(w["ip"], ",") {
		inside, err := netip.ParsePrefix(text)
		if err != nil {
			return e, fmt.Errorf("its note is incomplete: %w", err)
		}
		e.Addresses = append(e.Addresses, inside)
	}
	if e.MAC = w["mac"]; e.MAC == "" {
		e.MAC = link.MAC(e.Addresses).String()
	}
	var err error
	if e.Filter, err = notedFilter(w); err != nil {
		return e, err
	}
	for text := range strings.SplitSeq(w["external"], ",") {
		if text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			return e, err
		}
		e.External = append(e.External, a)
	}
	return e, nil
}

// rebuild fills an empty store from the notes in the kernel. What can't be
// read is reported; reconciling will remove it.
func (d *Driver) rebuild() error {
	found, err := d.kernel.Survey()
	if err != nil {
		return err
	}
	var errs []error
	ids := map[string]string{} // short → whole
	failed := func(name string, err error) { errs = append(errs, fmt.Errorf("%s can't be rebuilt: %w", name, err)) }
	for name, l := range found.Links {
		if !l.IsBridge {
			continue
		}
		rec, err := d.noted(name, l)
		if err == nil {
			err = d.store.PutNetwork(rec)
		}
		if err != nil {
			failed(name, err)
			continue
		}
		d.networks[rec.ID] = &network{rec: rec, known: true}
		d.subnets[rec.ID] = subnets(rec)
		d.parents[rec.ID], d.pools[rec.ID] = uplinkOf(rec), rec.Pool
		ids[short(rec.ID)] = rec.ID
	}
	for name, l := range found.Links {
		if l.IsBridge {
			continue
		}
		rec, err := notedEndpoint(l)
		id, ok := ids[rec.Network]
		if err == nil && !ok {
			err = fmt.Errorf("unknown network %s", rec.Network)
		}
		rec.Network = id
		if err == nil {
			rec, err = d.store.CreateEndpoint(rec, store.Want{Addresses: rec.External, Reservation: rec.Reservation})
		}
		if err != nil {
			failed(name, err)
			continue
		}
		e := &endpoint{id: rec.ID, network: rec.Network, rec: rec, known: true}
		d.endpoints[e.id] = e
		d.remember(e)
		d.markPublished(e, rec.External, aliasLink(d.networks[id].rec))
	}
	d.log.Warnf("rebuilt from the kernel: %d networks, %d endpoints", len(d.networks), len(d.endpoints))
	return errors.Join(errs...)
}
