package doctor

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
)

// repair is the command that has the plugin make the kernel match its records.
const repair = "extip reconcile"

// kernel: can it do what is needed at all?
func (x *exam) kernel() []Finding {
	if x.Nftables == nil {
		return nil
	}
	err := x.Nftables()
	if err == nil {
		return nil
	}
	f := Finding{Level: Fail, Seen: err.Error(), Why: "nothing can be translated by nftables", Remedy: "modprobe nft_chain_nat"}
	if x.Backend == "iptables" {
		f.Level, f.Why = Warn, "iptables translates instead: each change takes a process, and tens of milliseconds"
	}
	return []Finding{f}
}

func (x *exam) parents() (found []Finding) {
	for _, name := range slices.Sorted(maps.Keys(x.parentsOf())) {
		l, ok := x.links[name]
		switch {
		case !ok:
			found = append(found, x.goneParent(name))
		case !l.On:
			found = append(found, Finding{Level: Fail, Seen: name + " is switched off", Why: "nothing reaches its external addresses",
				Remedy: nat.Shell("ip", "link", "set", "dev", name, "up")})
		case !l.Carrier:
			found = append(found, x.noCarrier(name))
		}
	}
	return found
}

// goneParent: was it renamed?
func (x *exam) goneParent(name string) Finding {
	f := Finding{Level: Fail, Seen: "there is no interface " + name, Why: "nothing reaches its external addresses", Remedy: "ip -brief link"}
	for _, other := range slices.Sorted(maps.Keys(x.links)) {
		for _, a := range x.links[other].Addresses {
			// Not all keep their mark: the kernel gives the first a new label.
			if slices.ContainsFunc(x.subject.Addresses, func(s Address) bool {
				return s.External == a.Addr() && x.networks[s.Network].On == name
			}) {
				f.Seen += fmt.Sprintf("; its address %s is on %s: was it renamed?", a.Addr(), other)
				f.Remedy = nat.Shell("ip", "link", "set", "dev", other, "name", name)
				return f
			}
		}
	}
	return f
}

// noCarrier: a bridge has one while a port has.
func (x *exam) noCarrier(name string) Finding {
	f := Finding{Level: Fail, Seen: name + " has no carrier", Why: "nothing reaches its external addresses: is the cable, or the other end, all right?",
		Remedy: nat.Shell("ethtool", name)}
	var off []string
	for _, port := range slices.Sorted(maps.Keys(x.links)) {
		if l := x.links[port]; l.Master == name && !l.On {
			off = append(off, nat.Shell("ip", "link", "set", "dev", port, "up"))
			f.Seen += "; its port " + port + " is switched off"
		}
	}
	if len(off) > 0 {
		f.Remedy = strings.Join(off, " && ")
	}
	return f
}

func (x *exam) forwarding() []Finding {
	var off []string
	for _, n := range x.subject.Networks {
		if n.Internal {
			continue
		}
		interfaces := append([]string{n.Bridge, n.in}, n.Uplinks...)
		for _, path := range x.notForwarding(link.FamiliesOf(n.Subnets), interfaces) {
			if !slices.Contains(off, path) {
				off = append(off, path)
			}
		}
	}
	if len(off) == 0 {
		return nil
	}
	slices.Sort(off)
	command := []string{"sysctl", "-w"}
	var list []string
	for _, path := range off {
		list = append(list, link.SettingName(path))
		command = append(command, link.SettingName(path)+"=1")
	}
	return []Finding{{Level: Fail, Seen: names(list) + " 0", Why: "the host passes on nothing that comes in there", Remedy: nat.Shell(command...)}}
}

// notForwarding are the settings that keep what comes in by interfaces from
// being forwarded. For IPv6 the host has one for itself, and since Linux 6.17 for
// each interface.
func (x *exam) notForwarding(of link.Families, interfaces []string) (paths []string) {
	off := func(path string) bool {
		value, ok := x.setting(path)
		return ok && value == 0
	}
	const whole = "ipv6/conf/all/forwarding"
	for _, name := range interfaces {
		if _, there := x.links[name]; !there {
			continue
		}
		if path := "ipv4/conf/" + name + "/forwarding"; of.V4 && off(path) {
			paths = append(paths, path)
		}
		if !of.V6 || !off(whole) {
			continue
		}
		path := "ipv6/conf/" + name + "/force_forwarding"
		if value, ok := x.setting(path); !ok {
			paths = append(paths, whole)
		} else if value == 0 {
			paths = append(paths, path)
		}
	}
	return paths
}

// routers: a host that forwards no longer hears routers, unless it is told to.
func (x *exam) routers() (found []Finding) {
	for name, of := range x.parentsOf() {
		path := "ipv6/conf/" + name + "/accept_ra"
		routes, _ := x.setting("ipv6/conf/" + name + "/forwarding")
		if value, ok := x.setting(path); of.V6 && ok && value == 1 && routes != 0 {
			found = append(found, Finding{Level: Warn, Seen: link.SettingName(path) + " is 1, and the host forwards",
				Why:    "it doesn't listen to router advertisements then, and loses routes and addresses that it had from them",
				Remedy: nat.Shell("sysctl", "-w", link.SettingName(path)+"=2")})
		}
	}
	return found
}

func (x *exam) bridges() (found []Finding) {
	broken := map[string]bool{}
	for _, n := range x.subject.Networks {
		if seen := x.bridgeTrouble(n); seen != "" {
			broken[n.ID] = true
			found = append(found, Finding{Level: Fail, Seen: seen, Why: "no packet reaches the network's containers", Remedy: repair})
		}
	}
	var ports group[[2]string]
	for _, a := range x.subject.Addresses {
		if broken[a.Network] {
			continue
		}
		if seen, remedy := x.portTrouble(a); seen != "" {
			ports.add([2]string{seen, remedy}, a.Port)
		}
	}
	for _, key := range ports.keys {
		found = append(found, Finding{Level: Fail, Seen: names(ports.of[key]) + " " + key[0], Why: "no packet reaches the container behind it", Remedy: key[1]})
	}
	return found
}

// bridgeTrouble says what is wrong with a network's bridge, "" if nothing.
func (x *exam) bridgeTrouble(n Network) string {
	l, ok := x.links[n.Bridge]
	switch {
	case !ok:
		return "there is no bridge " + n.Bridge
	case !l.On:
		return "the bridge " + n.Bridge + " is switched off"
	}
	for _, g := range n.Gateways {
		if !slices.ContainsFunc(l.Addresses, func(a link.AddressInfo) bool { return a.Prefix == g }) {
			return fmt.Sprintf("the bridge %s has lost its address %s", n.Bridge, g)
		}
	}
	return ""
}

// portTrouble says what is wrong with a container's port, as the end of a
// sentence about it, "" if nothing, and what helps.
func (x *exam) portTrouble(a Address) (seen, remedy string) {
	bridge := x.networks[a.Network].Bridge
	l, ok := x.links[a.Port]
	switch {
	case a.Port == "":
	case !ok:
		return "gone", repair
	case l.Master != bridge:
		return "not a port of " + bridge, repair
	case !l.On:
		return "switched off", repair
	case !l.Carrier:
		if a.Container != "" {
			return "without a carrier: the container's end is down", nat.Shell("docker", "restart", a.Container)
		}
		return "without a carrier: the container's end is down", "docker ps"
	}
	return "", ""
}

// hairpins: with br_netfilter, a container's packet to its own external address
// goes back through the port that it came from.
func (x *exam) hairpins() (found []Finding) {
	var ports []string
	for _, a := range x.subject.Addresses {
		if l, ok := x.links[a.Port]; ok && l.Master != "" && !l.Hairpin && x.bridgeFilters(a.External) && !slices.Contains(ports, a.Port) {
			ports = append(ports, a.Port)
		}
	}
	if len(ports) == 0 {
		return nil
	}
	var remedies []string
	for _, p := range ports {
		remedies = append(remedies, nat.Shell("bridge", "link", "set", "dev", p, "hairpin", "on"))
	}
	return []Finding{{Level: Fail, Seen: names(ports) + " without hairpin mode, and net.bridge.bridge-nf-call-iptables is 1",
		Why: "the container can't reach itself by its external address", Remedy: strings.Join(remedies, " && ")}}
}

// bridgeFilters tells whether what passes between two ports of a bridge passes
// the rules, too.
func (x *exam) bridgeFilters(like netip.Addr) bool {
	path := "bridge/bridge-nf-call-iptables"
	if like.Is6() {
		path = "bridge/bridge-nf-call-ip6tables"
	}
	value, ok := x.setting(path)
	return ok && value == 1
}

func (x *exam) aliases() (found []Finding) {
	holders := map[netip.Addr][]string{}
	ours := map[netip.Addr][]string{}
	for _, name := range slices.Sorted(maps.Keys(x.links)) {
		for _, a := range x.links[name].Addresses {
			holders[a.Addr()] = append(holders[a.Addr()], name)
			if a.Ours {
				ours[a.Addr()] = append(ours[a.Addr()], name)
			}
		}
	}
	var missing, unmarked, elsewhere group[string]
	for _, a := range x.subject.Addresses {
		on := x.networks[a.Network].On
		parent, there := x.links[on]
		if on == "" || !there || a.External.Is6() && !parent.On {
			continue // the parent is what is wrong
		}
		name := a.External.String()
		switch {
		case a.Withheld != "" || slices.Contains(ours[a.External], on):
		case slices.Contains(holders[a.External], on):
			unmarked.add(on, name)
		default:
			missing.add(on, name)
		}
		for _, other := range holders[a.External] {
			if other != on {
				elsewhere.add(other, name)
			}
		}
	}
	for _, on := range missing.keys {
		found = append(found, Finding{Level: Fail, Seen: names(missing.of[on]) + " not on " + on, Why: "nobody answers there for it", Remedy: repair})
	}
	for _, on := range unmarked.keys {
		found = append(found, Finding{Level: Warn, Seen: names(unmarked.of[on]) + " on " + on + " by somebody else's hand",
			Why: "it stays there when the container is gone, and the host answers on it", Remedy: removeAddrs(on, unmarked.of[on]) + " && " + repair})
	}
	for _, on := range elsewhere.keys {
		found = append(found, Finding{Level: Fail, Seen: names(elsewhere.of[on]) + " on " + on + ", too, or instead",
			Why: "neighbours may be told of two places", Remedy: removeAddrs(on, elsewhere.of[on])})
	}
	return found
}

func removeAddrs(from string, addrs []string) string {
	var commands []string
	for _, a := range addrs {
		// Whatever its length: ip flushes what is equal to a single address.
		commands = append(commands, nat.Shell("ip", "addr", "flush", "dev", from, "to", a))
	}
	return strings.Join(commands, " && ")
}

// answers: arp_ignore may forbid it.
func (x *exam) answers() (found []Finding) {
	seen := map[[2]string]bool{}
	for _, n := range x.subject.Networks {
		key := [2]string{n.Parent, n.On}
		if n.Internal || n.On == "" || seen[key] || !link.FamiliesOf(n.Subnets).V4 || x.links[n.Parent].Index == 0 {
			continue
		}
		seen[key] = true
		why, err := x.Host.ARPTrouble(n.Parent, n.On)
		if !x.noted(err) || why == "" {
			continue
		}
		words := []string{"sysctl", "-w"}
		for _, of := range []string{"all", n.Parent} {
			path := "ipv4/conf/" + of + "/arp_ignore"
			if value, ok := x.setting(path); ok && value > 0 {
				words = append(words, link.SettingName(path)+"=0")
			}
		}
		found = append(found, Finding{Level: Fail, Seen: "an external address " + why, Why: "neighbours can't find the external addresses", Remedy: nat.Shell(words...)})
	}
	return found
}

func (x *exam) conflicts() (found []Finding) {
	ask := map[string][]netip.Addr{}
	for _, a := range x.subject.Addresses {
		n := x.networks[a.Network]
		switch {
		case a.Withheld != "":
			if x.working(n.Parent) {
				found = append(found, conflict(a.External, a.Withheld))
			}
		case n.On != "" && x.working(n.Parent) && len(ask[n.Parent]) < mostProbed:
			ask[n.Parent] = append(ask[n.Parent], a.External)
		}
	}
	if x.Probe == nil {
		return found
	}
	for _, parent := range slices.Sorted(maps.Keys(ask)) {
		var macs map[netip.Addr]net.HardwareAddr
		macs, err := x.Probe(x.ctx, parent, ask[parent])
		x.noted(err)
		for _, a := range ask[parent] {
			if mac, taken := macs[a]; taken {
				found = append(found, conflict(a, fmt.Sprintf("is used by %s on %s, too", mac, parent)))
			}
		}
	}
	return found
}

// mostProbed is how many addresses of a parent the neighbours are asked for: each
// takes three packets to everybody.
const mostProbed = 64

func conflict(a netip.Addr, what string) Finding {
	return Finding{Level: Fail, Seen: fmt.Sprintf("%s %s", a, what),
		Why: "only one can have it: switch the other off, or give it up here", Remedy: "extip detach " + a.String()}
}

// sources: with several uplinks, answers may leave elsewhere than their
// questions came in; strict rp_filter drops such questions.
func (x *exam) sources() (found []Finding) {
	uplinks, err := x.Host.DefaultLinks()
	x.noted(err)
	for name, of := range x.parentsOf() {
		if !of.V4 || !x.working(name) || len(uplinks) < 2 && slices.Contains(uplinks, name) || len(uplinks) == 0 {
			continue
		}
		value, err := x.Host.Effective(name, "rp_filter")
		if !x.noted(err) || value != 1 || !slices.ContainsFunc(x.subject.Addresses, func(a Address) bool { return x.strict(a, name) }) {
			continue
		}
		path := "ipv4/conf/" + name + "/rp_filter"
		found = append(found, Finding{Level: Fail, Seen: fmt.Sprintf("rp_filter is 1 on %s, and the host has other uplinks", name),
			Why: "packets from far away are dropped there: the host would send elsewhere to where they come from", Remedy: nat.Shell("sysctl", "-w", link.SettingName(path)+"=2")})
	}
	return found
}

// strict tells whether the kernel would drop a packet from far away to an
// address on a parent.
func (x *exam) strict(a Address, parent string) bool {
	if x.networks[a.Network].in != parent || !a.External.Is4() {
		return false
	}
	way, err := x.Host.Way(link.Journey{From: far(a.External), To: a.External, In: parent})
	return x.noted(err) && way.Source
}

func (x *exam) conntrack() []Finding {
	count, most, ok, err := x.Host.TableFull()
	if !x.noted(err) || !ok || most == 0 || count*100 < most*nearlyFull {
		return nil
	}
	f := Finding{Level: Warn, Seen: fmt.Sprintf("%d of %d connections are tracked", count, most), Why: "when the table is full, new connections are dropped",
		Remedy: fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", 2*most)}
	if count >= most {
		f.Level, f.Why = Fail, "the table is full: new connections are dropped"
	}
	if busy := x.busiest(count); len(busy) > 0 {
		f.Seen += ", of those by " + strings.Join(busy, ", ")
		f.Why += "; extip limit ADDRESS connections=N bounds what one takes"
	}
	return []Finding{f}
}

// nearlyFull is from how many percent on the table of connections is too full.
const nearlyFull = 80
