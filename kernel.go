package main

import (
	"context"

	"github.com/extip/extip/announce"
	"github.com/extip/extip/driver"
	"github.com/extip/extip/link"
	"github.com/extip/extip/nat/firewalld"
	"github.com/extip/extip/nat/iptables"
)

// kernel is the driver's Kernel with what has to be run and closed of it.
type kernel struct {
	driver.Kernel
	host      *link.Host
	announcer *announce.Announcer
	rules     *iptables.Backend
}

func open(c config) (kernel, error) {
	host, err := link.New(c.sysctls)
	if err != nil {
		return kernel{}, err
	}
	announcer, err := announce.New()
	if err != nil {
		return kernel{}, err
	}
	rules, err := iptables.New("")
	if err != nil {
		return kernel{}, err
	}
	return kernel{
		Kernel: driver.Kernel{Links: host, Addresses: host, Settings: host, Announcer: announcer, NAT: rules},
		host:   host, announcer: announcer, rules: rules,
	}, nil
}

func (k kernel) close() error {
	k.host.Close()
	return k.announcer.Close()
}

// watch begins to watch whatever may be changed behind the driver's back. What
// it returns is to be run.
func (k kernel) watch(d *driver.Driver) ([]func(context.Context) error, error) {
	network, err := k.host.Watch()
	if err != nil {
		return nil, err
	}
	rules, err := k.rules.Watch()
	if err != nil {
		return nil, err
	}
	return []func(context.Context) error{
		func(ctx context.Context) error { return network.Run(ctx, d.NetworkChanged) },
		func(ctx context.Context) error { return rules.Run(ctx, func() { d.Hint("rules changed") }) },
		func(ctx context.Context) error {
			return (&firewalld.Watcher{}).Run(ctx, func() { d.Hint("firewalld") })
		},
	}, nil
}
