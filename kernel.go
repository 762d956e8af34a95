package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/sirupsen/logrus"

	"github.com/extip/extip/announce"
	"github.com/extip/extip/driver"
	"github.com/extip/extip/link"
	"github.com/extip/extip/nat"
	"github.com/extip/extip/nat/firewalld"
	"github.com/extip/extip/nat/iptables"
	"github.com/extip/extip/nat/nftables"
)

// kernel is the driver's Kernel with what has to be run and closed of it.
type kernel struct {
	driver.Kernel
	host      *link.Host
	announcer *announce.Announcer
	backend   string
	// watchRules and closeRules are the backend's.
	watchRules func() ([]ruleWatcher, error)
	closeRules func() error
	guard      *nftables.Guard // nil if the kernel can't
}

// ruleWatcher tells of changes of rules by others.
type ruleWatcher interface {
	Run(ctx context.Context, changed func()) error
}

func open(c config, log logrus.FieldLogger) (kernel, error) {
	host, err := link.New(c.sysctls)
	if err != nil {
		return kernel{}, err
	}
	announcer, err := announce.New()
	if err != nil {
		return kernel{}, err
	}
	announcer.SetRefresh(c.announceInterval)
	if err := nftables.EndLive(); err != nil {
		log.WithError(err).Debug("whether packets are still traced is not known")
	}
	k := kernel{
		Kernel: driver.Kernel{Links: host, Addresses: host, Settings: host, Neighbours: announcer},
		host:   host, announcer: announcer,
	}
	if k.guard, err = nftables.NewGuard(); err != nil {
		log.WithError(err).Warn("this kernel can't look at what containers send: they can pass for each other on their bridge")
	} else {
		k.Guard = k.guard
	}
	switch c.backend {
	case "auto":
		if err = k.useNftables(c.accounting, log); err != nil && !c.accounting {
			log.WithError(err).Warn("this kernel can't translate with nftables; iptables it is")
			err = k.useIptables()
		}
	case "nftables":
		err = k.useNftables(c.accounting, log)
	case "iptables":
		if c.accounting {
			return kernel{}, errors.New("--accounting needs --backend=nftables: rules of iptables see the first packet of a connection only")
		}
		err = k.useIptables()
	default:
		err = fmt.Errorf("--backend=%s: allowed are auto, nftables and iptables", c.backend)
	}
	return k, err
}

// useNftables translates with nftables. Where there is iptables, too, its
// FORWARD chain has to be passed, and what the other backend left goes.
func (k *kernel) useNftables(accounting bool, log logrus.FieldLogger) error {
	rules, err := nftables.New(nftables.Config{Account: accounting})
	if err != nil {
		return err
	}
	admitted := &nat.Admitted{Backend: rules}
	admission, err := iptables.NewAdmission("")
	if err != nil {
		log.WithError(err).Warn("without iptables its FORWARD chain is left as it is")
	} else {
		if admission.LegacyBeside() {
			log.Warn("iptables-legacy has rules here, which the iptables in use can't change: what they drop of extip's networks stays dropped")
		}
		admitted.Admission = admission
		admitted.Former = func() ([]string, error) { return iptables.Clear("") }
	}
	k.backend, k.NAT, k.closeRules = "nftables", admitted, rules.Close
	k.watchRules = func() ([]ruleWatcher, error) {
		own, err := rules.Watch()
		if err != nil || admission == nil {
			return []ruleWatcher{own}, err
		}
		foreign, err := admission.Watch()
		return []ruleWatcher{own, foreign}, err
	}
	return nil
}

// useIptables translates with iptables. What the other backend left goes, if
// the kernel knows what it is.
func (k *kernel) useIptables() error {
	rules, err := iptables.New("")
	if err != nil {
		return err
	}
	admitted := &nat.Admitted{Backend: rules}
	if former, err := nftables.New(nftables.Config{}); err == nil {
		admitted.Former = func() ([]string, error) {
			removed, err := former.Sync(nat.State{})
			return removed, errors.Join(err, former.Close())
		}
	}
	k.backend, k.NAT, k.closeRules = "iptables", admitted, func() error { return nil }
	k.watchRules = func() ([]ruleWatcher, error) {
		own, err := rules.Watch()
		return []ruleWatcher{own}, err
	}
	return nil
}

func (k kernel) close() error {
	k.host.Close()
	err := errors.Join(k.closeRules(), k.announcer.Close())
	if k.guard != nil {
		err = errors.Join(err, k.guard.Close())
	}
	return err
}

// watch begins to watch whatever may be changed behind the driver's back. What
// it returns is to be run.
func (k kernel) watch(d *driver.Driver) ([]func(context.Context) error, error) {
	network, err := k.host.Watch()
	if err != nil {
		return nil, err
	}
	watchers, err := k.watchRules()
	if err != nil {
		return nil, err
	}
	if k.guard != nil {
		own, err := k.guard.Watch()
		if err != nil {
			return nil, err
		}
		watchers = append(watchers, own)
	}
	runs := []func(context.Context) error{
		func(ctx context.Context) error { return network.Run(ctx, d.NetworkChanged) },
		func(ctx context.Context) error { return k.announcer.Run(ctx, d.Conflict) },
		func(ctx context.Context) error {
			return (&firewalld.Watcher{}).Run(ctx, func() { d.HintRules("firewalld") })
		},
	}
	for _, w := range watchers {
		runs = append(runs, func(ctx context.Context) error { return w.Run(ctx, func() { d.HintRules("rules changed") }) })
	}
	return runs, nil
}
