package driver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/extip/extip/store"
)

// refusal words the store's answer for the person who typed docker run.
func refusal(err error) error {
	if taken, ok := errors.AsType[*store.TakenError](err); ok {
		return fmt.Errorf("extip.address=%s: %w", taken.Address, taken)
	}
	if reserved, ok := errors.AsType[*store.ReservedError](err); ok {
		return fmt.Errorf("extip.address=%s: %w; give extip.reservation=%s to have it", reserved.Address, reserved, reserved.Name)
	}
	if full, ok := errors.AsType[*store.ExhaustedError](err); ok {
		return fmt.Errorf("extip.pool: %w", full)
	}
	if errors.Is(err, store.ErrApart) {
		return apart(err)
	}
	return err
}

// apart is what the ledger's error says to a person, without what the store was
// about to do.
func apart(err error) error {
	for inner := errors.Unwrap(err); inner != nil && inner != store.ErrApart; inner = errors.Unwrap(err) {
		err = inner
	}
	return err
}

// want says which external addresses an endpoint is to have.
func (d *Driver) want(n *network, e store.Endpoint, o endpointOptions) (store.Want, error) {
	want := store.Want{Addresses: o.addresses, Reservation: o.reservation}
	switch {
	case o.reservation != "" && (o.none || n.rec.Internal):
		return want, fmt.Errorf("extip.reservation=%s: there is no external address to keep", o.reservation)
	case o.none:
		return want, nil
	case n.rec.Internal && (o.auto || len(o.addresses) > 0):
		return want, errors.New("extip.address: an --internal network has no external addresses")
	case n.rec.Internal:
		return want, nil
	}
	for _, a := range o.addresses {
		fits := d.unfit
		if o.adopt {
			fits = familyUnfit
		}
		why, err := fits(n, e, a)
		if err == nil && why != "" {
			err = fmt.Errorf("extip.address=%s: it %s", a, why)
		}
		if err != nil {
			return want, err
		}
	}
	want.Fits = func(a netip.Addr, fromPool bool) error { return d.fits(n, e, o.reservation, a, fromPool) }
	if len(o.addresses) > 0 || !o.auto && !n.rec.Auto && o.reservation == "" {
		return want, nil
	}
	for _, inside := range e.Addresses {
		if p := n.rec.Pool.Of(inside.Addr().Is4()); !p.Empty() {
			want.Pools = append(want.Pools, p)
		}
	}
	if o.auto && len(want.Pools) == 0 {
		return want, errors.New("extip.address=auto: the network has no extip.pool of its subnets' families")
	}
	want.Prefer = d.ahead(n)
	want.Unusable = func(a netip.Addr) string {
		if mac := d.segments.ownerOf(n.rec.Parent, a); mac != "" {
			return "is used by " + mac
		}
		why, err := d.unusable(n, a)
		if err != nil {
			return err.Error()
		}
		return why
	}
	return want, nil
}

// fits says why a reserved address can't be given on a network, nil if it can.
func (d *Driver) fits(n *network, e store.Endpoint, reservation string, a netip.Addr, fromPool bool) error {
	why, err := d.unfit(n, e, a)
	if why == "" && fromPool && !n.rec.Pool.Empty() && !n.rec.Pool.Contains(a) {
		why = "is not in the network's extip.pool; ask for another with extip.address, which is reserved instead"
	}
	if err == nil && why != "" {
		err = fmt.Errorf("extip.reservation=%s: %s %s", reservation, a, why)
	}
	return err
}

// unfit says why an endpoint can't have an address, as the end of a sentence
// about it; "" if it can.
func (d *Driver) unfit(n *network, e store.Endpoint, a netip.Addr) (string, error) {
	if why, err := familyUnfit(n, e, a); why != "" {
		return why, err
	}
	return d.unusable(n, a)
}

func familyUnfit(n *network, e store.Endpoint, a netip.Addr) (string, error) {
	if !slices.ContainsFunc(e.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() }) {
		return fmt.Sprintf("needs a subnet of its family, and the network has only %s", join(n.rec.Gateways)), nil
	}
	return "", nil
}

// unusable says why an address can't be an external one on this host, as the
// end of a sentence about it; "" if it can. Its cost grows with the number of
// networks, not with that of addresses.
func (d *Driver) unusable(n *network, a netip.Addr) (string, error) {
	if why := d.neverExternal(a); why != "" {
		return why, nil
	}
	if slices.Contains(n.gateways, a) {
		return "is a gateway of this host", nil
	}
	return d.kernel.Unusable(n.rec.Parent, a)
}

// neverExternal says why an address can't be an external one, wherever it is put;
// "" if it can.
func (d *Driver) neverExternal(a netip.Addr) string {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return "is not an address that others can connect to"
	}
	if subnet := d.containerSubnet(a); subnet.IsValid() {
		return fmt.Sprintf("is inside the container subnet %s", subnet)
	}
	return ""
}
