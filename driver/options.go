package driver

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/extip/extip/link"
	"github.com/extip/extip/pool"
	"github.com/extip/extip/store"
)

// prefix begins the keys that nobody but us may define, and in which a typing
// error must not pass unnoticed.
const prefix = "extip."

// An Option is one key of docker network create -o, or of an endpoint's
// driver-opt, or of both.
type Option struct {
	Key string
	// Value says what is allowed, Default what holds without the option.
	Value, Default string

	network  func(*networkOptions, string) error
	endpoint func(*endpointOptions, string) error
}

// Where tells what the option can be set on.
func (o Option) Where() string {
	switch {
	case o.endpoint == nil:
		return "network"
	case o.network == nil:
		return "endpoint"
	default:
		return "network, endpoint"
	}
}

// networkOptions is what a network was created with; zero values are options
// that were not given.
type networkOptions struct {
	parent   string
	pool     pool.Pool
	auto     bool
	source   store.Source
	egress   store.Egress
	filter   store.Filter
	dad      store.DAD
	alias    store.Alias
	conflict store.Conflict
	bridge   string
	mtu      int
	icc      bool
	spoof    store.Spoof
}

// endpointOptions is what an endpoint was created with.
type endpointOptions struct {
	// addresses that were asked for; auto if "auto" was, none if "none" was.
	addresses   []netip.Addr
	auto, none  bool
	reservation string
	source      store.Source
	egress      store.Egress
	filter      filterOptions
	// adopt: the addresses are the host's own already, set up by hand.
	adopt bool
}

// filterOptions is what of a filter was given: what was not, is the network's.
type filterOptions struct {
	store.Filter
	ports, allow, limit bool
}

// over returns the filter that holds on a network with another one.
func (o filterOptions) over(network store.Filter) store.Filter {
	f := network
	if o.ports {
		f.Ports = o.Ports
	}
	if o.allow {
		f.Allow = o.Allow
	}
	if o.Refuse != "" {
		f.Refuse = o.Refuse
	}
	if o.limit {
		f.Limit = o.Limit
	}
	return f
}

// Options is every option there is: the decoder, the messages and the README
// table are made from it.
func Options() []Option {
	return []Option{
		{
			Key: "extip.parent", Value: "name of a host interface", Default: "`--parent`, else the interface of the default route",
			network: func(o *networkOptions, v string) error { return interfaceName(v, &o.parent) },
		},
		{
			Key: "extip.pool", Value: "comma-separated addresses, `first-last` ranges and CIDRs of both families; what follows a `!` is left out", Default: "`--pool`, else none",
			network: func(o *networkOptions, v string) (err error) {
				o.pool, err = pool.Parse(v)
				return err
			},
		},
		{
			Key: "extip.auto", Value: "`true` or `false`: whether an endpoint that names no address gets one from the pool", Default: "`true`",
			network: func(o *networkOptions, v string) error { return boolean(v, &o.auto) },
		},
		{
			Key: "extip.source", Value: "`client`: the container sees who connects; `gateway`: it sees the bridge's address", Default: "`client`",
			network: func(o *networkOptions, v string) error {
				return oneOf(v, &o.source, store.SourceClient, store.SourceGateway)
			},
			endpoint: func(o *endpointOptions, v string) error {
				return oneOf(v, &o.source, store.SourceClient, store.SourceGateway)
			},
		},
		{
			Key: "extip.egress", Value: "`external`: connections that the container opens leave from its external address; `host`: from the host's", Default: "`external`",
			network: func(o *networkOptions, v string) error {
				return oneOf(v, &o.egress, store.EgressExternal, store.EgressHost)
			},
			endpoint: func(o *endpointOptions, v string) error {
				return oneOf(v, &o.egress, store.EgressExternal, store.EgressHost)
			},
		},
		{
			Key: "extip.ports", Value: "`all`, or a list of `tcp/22`, `udp/8000-8099`, `sctp/5060`, `udplite/9`, `icmp`, `esp`, `ah`: what may be reached from outside", Default: "`all`",
			network: func(o *networkOptions, v string) (err error) {
				o.filter.Ports, err = parsePorts(v)
				return err
			},
			endpoint: func(o *endpointOptions, v string) (err error) {
				o.filter.ports = true
				o.filter.Ports, err = parsePorts(v)
				return err
			},
		},
		{
			Key: "extip.allow", Value: "`everyone`, or a list of CIDRs that may connect; a container of this host counts by its internal address", Default: "`everyone`",
			network: func(o *networkOptions, v string) (err error) {
				o.filter.Allow, err = parseAllow(v)
				return err
			},
			endpoint: func(o *endpointOptions, v string) (err error) {
				o.filter.allow = true
				o.filter.Allow, err = parseAllow(v)
				return err
			},
		},
		{
			Key: "extip.refuse", Value: "`drop` what may not pass, or `reject` it: answered by ICMP, port unreachable", Default: "`drop`",
			network: func(o *networkOptions, v string) error {
				return oneOf(v, &o.filter.Refuse, store.RefuseDrop, store.RefuseReject)
			},
			endpoint: func(o *endpointOptions, v string) error {
				return oneOf(v, &o.filter.Refuse, store.RefuseDrop, store.RefuseReject)
			},
		},
		{
			Key: "extip.limit", Value: "`none`, or one or both of `connections=20000` and `rate=500/s`, with a comma between: how many connections to each of the container's external addresses may be open, and how many may be opened in a second; the same for those that the container opens, counted by themselves", Default: "`none`",
			network: func(o *networkOptions, v string) (err error) {
				o.filter.Limit, err = parseLimit(v)
				return err
			},
			endpoint: func(o *endpointOptions, v string) (err error) {
				o.filter.limit = true
				o.filter.Limit, err = parseLimit(v)
				return err
			},
		},
		{
			Key: "extip.address", Value: "comma-separated addresses, of which the first of each family is the one that the container goes out from; `auto`: the next one of the pool, of each family; `none`", Default: "`auto` where the network has a pool",
			endpoint: func(o *endpointOptions, v string) error { return o.setAddress(v) },
		},
		{
			Key: "extip.reservation", Value: "a name: whoever gives it gets the same addresses again, and nobody else does", Default: "none",
			endpoint: func(o *endpointOptions, v string) error { return reservationName(v, &o.reservation) },
		},
		{
			Key: "extip.dad", Value: "how an address is probed before it is taken. `fast`: 3 probes, 0.45 s; `rfc5227`: 4 to 7 s; `off`", Default: "`fast`",
			network: func(o *networkOptions, v string) error {
				return oneOf(v, &o.dad, store.DADFast, store.DADRFC5227, store.DADOff)
			},
		},
		{
			Key: "extip.conflict", Value: "when another host uses an address and goes on after it was told once: `keep` the address, or `yield` until it is free again", Default: "`keep`",
			network: func(o *networkOptions, v string) error {
				return oneOf(v, &o.conflict, store.ConflictKeep, store.ConflictYield)
			},
		},
		{
			Key: "extip.alias", Value: "where addresses are put: on the `parent`; on `lo`; `none`, as for a block that is routed to this host", Default: "`parent`",
			network: func(o *networkOptions, v string) error {
				return oneOf(v, &o.alias, store.AliasParent, store.AliasLo, store.AliasNone)
			},
		},
		{
			Key: "extip.spoof", Value: "`deny`: what a container sends with another MAC or address than its own is dropped, and so is what only a router or a DHCP server says; `allow`", Default: "`deny`",
			network: func(o *networkOptions, v string) error {
				return oneOf(v, &o.spoof, store.SpoofDeny, store.SpoofAllow)
			},
		},
		{
			Key: "com.docker.network.bridge.name", Value: "name of the bridge to make, at most 15 characters", Default: "`xip-` and the network id's first 11",
			network: func(o *networkOptions, v string) error { return interfaceName(v, &o.bridge) },
		},
		{
			Key: "com.docker.network.driver.mtu", Value: "bytes, 68 to 65535", Default: "the parent's",
			network: func(o *networkOptions, v string) error {
				n, err := strconv.Atoi(v)
				if err != nil || n < 68 || n > 65535 {
					return fmt.Errorf("allowed are 68 to 65535")
				}
				o.mtu = n
				return nil
			},
		},
		{
			Key: "com.docker.network.bridge.enable_icc", Value: "`true` or `false`: whether the network's containers may talk to each other directly", Default: "`true`",
			network: func(o *networkOptions, v string) error { return boolean(v, &o.icc) },
		},
	}
}

// setAddress reads extip.address.
func (o *endpointOptions) setAddress(v string) error {
	for part := range strings.SplitSeq(v, ",") {
		switch part = strings.TrimSpace(part); part {
		case "auto":
			o.auto = true
			continue
		case "none":
			o.none = true
			continue
		}
		a, err := netip.ParseAddr(part)
		if err != nil || a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("%q is no address; allowed are addresses, auto and none", part)
		}
		if slices.Contains(o.addresses, a) {
			return fmt.Errorf("%s stands there twice", a)
		}
		o.addresses = append(o.addresses, a)
	}
	if o.none && (o.auto || len(o.addresses) > 0) || o.auto && len(o.addresses) > 0 {
		return fmt.Errorf("auto and none stand alone")
	}
	return nil
}

// decodeNetwork reads the options of docker network create. It also returns
// the keys that mean nothing to this driver.
func decodeNetwork(given map[string]any) (networkOptions, []string, error) {
	o := networkOptions{
		auto: true, icc: true, source: store.SourceClient, egress: store.EgressExternal,
		filter: store.Filter{Refuse: store.RefuseDrop},
		dad:    store.DADFast, alias: store.AliasParent, conflict: store.ConflictKeep,
		spoof: store.SpoofDeny,
	}
	ignored, err := decode(given, "network", func(opt Option) func(string) error {
		if opt.network == nil {
			return nil
		}
		return func(v string) error { return opt.network(&o, v) }
	})
	return o, ignored, err
}

// decodeEndpoint reads an endpoint's driver-opts. Keys of the engine's own are
// among them, so those that mean nothing here are no news.
func decodeEndpoint(given map[string]any) (endpointOptions, error) {
	var o endpointOptions
	_, err := decode(given, "endpoint", func(opt Option) func(string) error {
		if opt.endpoint == nil {
			return nil
		}
		return func(v string) error { return opt.endpoint(&o, v) }
	})
	return o, err
}

// decode gives each value to the setter that setterOf knows for its option.
// Keys are compared without case: docker's CLI lower-cases some.
func decode(given map[string]any, where string, setterOf func(Option) func(string) error) (ignored []string, err error) {
	setters := map[string]func(string) error{}
	elsewhere := map[string]string{}
	for _, opt := range Options() {
		if set := setterOf(opt); set != nil {
			setters[opt.Key] = set
		} else {
			elsewhere[opt.Key] = opt.Where()
		}
	}
	// In order, so that of several errors the same one is reported.
	for _, key := range slices.Sorted(maps.Keys(given)) {
		name := strings.ToLower(key)
		set, ok := setters[name]
		switch {
		case ok:
			value, isText := given[key].(string)
			if !isText {
				return nil, fmt.Errorf("%s=%v: the value must be text", name, given[key])
			}
			if err := set(strings.TrimSpace(value)); err != nil {
				return nil, fmt.Errorf("%s=%s: %w", name, value, err)
			}
		case strings.HasPrefix(name, prefix) && elsewhere[name] != "":
			return nil, fmt.Errorf("%s can be set on: %s; on a %s there are: %s", name, elsewhere[name], where, ours(setters))
		case strings.HasPrefix(name, prefix):
			return nil, fmt.Errorf("unknown option %s; on a %s there are: %s", name, where, ours(setters))
		default:
			ignored = append(ignored, key)
		}
	}
	return ignored, nil
}

// ours lists the extip keys for a message.
func ours(setters map[string]func(string) error) string {
	var keys []string
	for key := range setters {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return strings.Join(keys, ", ")
}

func boolean(v string, to *bool) error {
	b, err := strconv.ParseBool(v)
	if err != nil {
		return fmt.Errorf("allowed are true and false")
	}
	*to = b
	return nil
}

func oneOf[T ~string](v string, to *T, allowed ...T) error {
	if !slices.Contains(allowed, T(v)) {
		words := make([]string, len(allowed)-1)
		for i := range words {
			words[i] = string(allowed[i])
		}
		return fmt.Errorf("allowed are %s and %s", strings.Join(words, ", "), allowed[len(words)])
	}
	*to = T(v)
	return nil
}

// maxReservation is the longest name of a reservation, in bytes.
const maxReservation = 63

// reservationName accepts what is safe in a file, a key and a command line.
func reservationName(v string, to *string) error {
	for i, c := range []byte(v) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("_.-", rune(c))) {
			v = ""
			break
		}
	}
	if v == "" || len(v) > maxReservation {
		return fmt.Errorf("a reservation's name is 1 to %d letters, digits, dots, dashes and underscores, and begins with a letter or digit", maxReservation)
	}
	*to = v
	return nil
}

// interfaceName accepts what the kernel does (dev_valid_name, net/core/dev.c),
// without what would be read as an option or a quote in a rule.
func interfaceName(v string, to *string) error {
	bad := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/:"'\`, r) }
	if v == "" || len(v) > link.MaxName || v == "." || v == ".." || v[0] == '-' || strings.ContainsFunc(v, bad) {
		return fmt.Errorf("no interface can have that name: 1 to %d letters, digits, dots, dashes", link.MaxName)
	}
	*to = v
	return nil
}
