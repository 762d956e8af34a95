package main

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/extip/extip/admin"
	"github.com/extip/extip/driver"
)

// openControl binds what an operator looks through: the control API, and the
// metrics if they are asked for. What it returns is to be run.
func openControl(c config, d *driver.Driver, guard *driver.Guard, k kernel, log logrus.FieldLogger) ([]func(context.Context) error, error) {
	access, err := admin.NewAccess(c.adminGroup)
	if err != nil {
		return nil, err
	}
	socket, err := access.Listen(c.adminSocket)
	if err != nil {
		return nil, err
	}
	about := admin.About{Version: version, Backend: k.backend, Started: time.Now()}
	server := admin.NewServer(newOperated(c, d, k), about, access, log)
	runs := []func(context.Context) error{func(ctx context.Context) error { return server.Serve(ctx, socket) }}
	if c.metrics == "" {
		return runs, nil
	}
	scrapes, err := admin.ListenMetrics(c.metrics)
	if err != nil {
		return nil, err
	}
	metrics := admin.NewMetrics(d, about)
	d.Observe(metrics)
	guard.Observe(metrics)
	return append(runs, func(ctx context.Context) error { return metrics.Serve(ctx, scrapes) }), nil
}
