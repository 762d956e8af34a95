package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/extip/extip/adopt"
	"github.com/extip/extip/announce"
	"github.com/extip/extip/doctor"
	"github.com/extip/extip/driver"
	"github.com/extip/extip/export"
	"github.com/extip/extip/link"
	"github.com/extip/extip/nat/iptables"
	"github.com/extip/extip/nat/nftables"
)

// operated is what the control API stands for: the driver, and what looks at the
// host beside it.
type operated struct {
	*driver.Driver
	doctor *doctor.Doctor
	host   *link.Host
}

func newOperated(c config, d *driver.Driver, k kernel) operated {
	plugin, _, _ := strings.Cut(c.pluginSocket, ",")
	return operated{Driver: d, host: k.host, doctor: &doctor.Doctor{
		Host: k.host, Backend: k.backend, Engine: c.engineSocket, Plugin: plugin,
		Probe: func(ctx context.Context, parent string, addrs []netip.Addr) (map[netip.Addr]net.HardwareAddr, error) {
			return k.announcer.Probe(ctx, parent, addrs, announce.Fast)
		},
		Nftables: func() error {
			rules, err := nftables.New(nftables.Config{})
			if err == nil {
				err = rules.Close()
			}
			return err
		},
	}}
}

// subject is what there should be, as the doctor knows it.
func (o operated) subject() doctor.Subject {
	var s doctor.Subject
	desired := o.Desired()
	infos := o.NetworkInfos()
	for _, n := range desired.Networks {
		for _, info := range infos {
			if strings.HasPrefix(info.ID, n.ID) {
				s.Networks = append(s.Networks, doctor.Network{Network: n, Parent: info.Parent, On: info.On, Gateways: info.Gateways})
			}
		}
	}
	views := map[netip.Addr]driver.Address{}
	for _, v := range o.Addresses() {
		if v.State == driver.StatePublished || v.State == driver.StateWithheld {
			views[v.External] = v
		}
	}
	for _, m := range desired.Mappings {
		v, ok := views[m.External]
		if !ok {
			continue
		}
		network := v.Network[:min(len(v.Network), 12)]
		s.Addresses = append(s.Addresses, doctor.Address{
			Mapping: m, Network: network, Port: v.Port, Container: v.Container, Withheld: strings.TrimPrefix(v.Reason, "it "), HeldBy: v.HeldBy,
		})
	}
	if standing := o.Standing(); standing != nil {
		s.Cluster = &doctor.Cluster{ApartSince: standing.ApartSince}
	}
	return s
}

// Doctor implements admin.Examiner.
func (o operated) Doctor(ctx context.Context) ([]doctor.Finding, error) {
	return o.doctor.Examine(ctx, o.subject())
}

// Trace implements admin.Examiner.
func (o operated) Trace(ctx context.Context, q doctor.Question) ([]doctor.Step, error) {
	return o.doctor.Trace(ctx, o.subject(), q)
}

// Live implements admin.Examiner.
func (o operated) Live(ctx context.Context, q doctor.Question, fn func(doctor.Sighting) error) error {
	return o.doctor.Live(ctx, o.subject(), q, fn)
}

// Export implements admin.Examiner.
func (o operated) Export(format string) (string, error) {
	setup := export.Setup{State: o.Desired()}
	for _, v := range o.Addresses() {
		if v.On != "" && v.State == driver.StatePublished {
			setup.Aliases = append(setup.Aliases, export.Alias{Address: v.External, On: v.On})
		}
	}
	var text strings.Builder
	err := export.Write(&text, format, setup)
	return text.String(), err
}

// Adopt implements admin.Examiner.
func (o operated) Adopt(ctx context.Context, dryRun bool) (driver.Report, error) {
	r := driver.Report{}
	plans, err := o.adoptable()
	for _, p := range plans {
		for _, what := range p.Found {
			r.Done = append(r.Done, "- "+what)
		}
		r.Done = append(r.Done, fmt.Sprintf("+ mapping %s to %s", p.External, p.Internal))
		r.Left = append(r.Left, p.Left...)
		if len(p.Ports) > 0 {
			r.Left = append(r.Left, fmt.Sprintf("only %s of %s was passed on, all is now: extip ports %s says otherwise", strings.Join(p.Ports, ","), p.External, p.Container))
		}
		if dryRun {
			continue
		}
		_, err := p.Do(o.host, func(p adopt.Plan) error {
			_, err := o.Driver.Adopt(ctx, p.Endpoint, p.External)
			return err
		}, func(command string) error {
			out, err := exec.CommandContext(ctx, "sh", "-c", command).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%s: %w: %s", command, err, strings.TrimSpace(string(out)))
			}
			return err
		})
		if err != nil {
			return r, fmt.Errorf("adopt %s: %w", p.External, err)
		}
	}
	return r, err
}

// adoptable is what was set up by hand for containers that run.
func (o operated) adoptable() ([]adopt.Plan, error) {
	rules, err := iptables.Read("")
	if err != nil {
		return nil, err
	}
	links, err := o.host.Links()
	if err != nil {
		return nil, err
	}
	var endpoints []adopt.Endpoint
	for _, e := range o.Endpoints() {
		endpoints = append(endpoints, adopt.Endpoint{ID: e.ID, Container: e.Container, On: e.On, Internal: e.Internal, External: e.External})
	}
	return adopt.Find(rules, links, endpoints), nil
}
