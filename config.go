package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/writer"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/extip/extip/admin/cli"
	"github.com/extip/extip/cluster"
)

// config is what extip serve is told by flags and environment.
type config struct {
	pluginSocket, state string
	adminSocket         string
	adminGroup          string
	metrics             string
	engineSocket        string
	sysctls             string
	parent, pool        string
	backend             string
	accounting          bool
	reconcileInterval   time.Duration
	announceInterval    time.Duration
	logLevel, logFormat string

	cluster, clusterHost               string
	clusterTTL                         time.Duration
	clusterCA, clusterCert, clusterKey string
	clusterUser, clusterPasswordFile   string
}

func serveCommand() *cobra.Command {
	var c config
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the plugin",
		Long: `Run the plugin: answer the Docker engine on a socket, as root, beside it.

Every flag has an environment twin, EXTIP_ and the flag's name in capitals with
underscores: EXTIP_LOG_LEVEL=debug. A flag wins over its twin.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := environment(cmd.Flags()); err != nil {
				return err
			}
			if c.reconcileInterval <= 0 {
				return fmt.Errorf("--reconcile-interval=%s: it must be more than 0", c.reconcileInterval)
			}
			if c.announceInterval < 0 {
				return fmt.Errorf("--announce-interval=%s: it can't be less than 0, which is never", c.announceInterval)
			}
			if c.clusterTTL < cluster.MinTTL || c.clusterTTL > cluster.MaxTTL || c.clusterTTL%time.Second != 0 {
				return fmt.Errorf("--cluster-ttl=%s: whole seconds from %s to %s", c.clusterTTL, cluster.MinTTL, cluster.MaxTTL)
			}
			return serve(cmd.Context(), c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.pluginSocket, "plugin-socket", "/run/docker/plugins/extip.sock", "socket for the engine, made with mode 0600; several, separated by commas, are one plugin by several names")
	f.StringVar(&c.adminSocket, "admin-socket", cli.AdminSocket, "socket for the control API, made with mode 0600")
	f.StringVar(&c.adminGroup, "admin-group", "", "group that may use the control API, too; its socket then has mode 0660")
	f.StringVar(&c.metrics, "metrics", "", "where Prometheus may scrape /metrics, such as 127.0.0.1:9323; empty: nowhere")
	f.StringVar(&c.state, "state", "/var/lib/extip/extip.db", "file that remembers networks, endpoints and addresses")
	f.StringVar(&c.engineSocket, "engine-socket", "/run/docker.sock", "the engine's API, asked now and then for containers' names and what it has forgotten; empty: never")
	f.StringVar(&c.sysctls, "sysctls", "/proc/sys/net", "folder of the network's settings, where it can be written")
	f.StringVar(&c.parent, "parent", "", "host interface for networks that name none (default: that of the default route)")
	f.StringVar(&c.pool, "pool", "", "external addresses for networks that name none: addresses, first-last ranges, CIDRs")
	f.StringVar(&c.backend, "backend", "auto", "what translates: nftables, iptables, or auto: nftables where the kernel can")
	f.BoolVar(&c.accounting, "accounting", false, "count packets and bytes of each address, which costs each packet; nftables only")
	f.DurationVar(&c.reconcileInterval, "reconcile-interval", 30*time.Second, "how often the kernel is compared with the records when nothing hints at a difference")
	f.DurationVar(&c.announceInterval, "announce-interval", 0, "how often all external addresses are announced again, for switches that forget; 0: never")
	f.StringVar(&c.cluster, "cluster", "", "etcd that hosts share their addresses by, as etcd://HOST[:PORT],…[/PREFIX]; empty: none")
	f.StringVar(&c.clusterHost, "cluster-host", "", "this host's name among them (default: its hostname)")
	f.DurationVar(&c.clusterTTL, "cluster-ttl", cluster.DefaultTTL, "how long a host's addresses stay its own after it is dead; from 3s to 5m")
	f.StringVar(&c.clusterCA, "cluster-ca", "", "file with the certificates by which etcd's is trusted (default: the system's)")
	f.StringVar(&c.clusterCert, "cluster-cert", "", "file with this host's certificate for etcd")
	f.StringVar(&c.clusterKey, "cluster-key", "", "file with its key")
	f.StringVar(&c.clusterUser, "cluster-user", "", "name of a user of etcd")
	f.StringVar(&c.clusterPasswordFile, "cluster-password-file", "", "file with that user's password")
	f.StringVar(&c.logLevel, "log-level", "info", "debug, info, warning or error")
	f.StringVar(&c.logFormat, "log-format", "text", "text or json")
	return cmd
}

// environment sets the flags that were not given from their twins.
func environment(flags *pflag.FlagSet) error {
	var err error
	flags.VisitAll(func(f *pflag.Flag) {
		if value, ok := os.LookupEnv(twin(f.Name)); ok && !f.Changed && err == nil {
			if err = flags.Set(f.Name, value); err != nil {
				err = fmt.Errorf("%s=%s: %w", twin(f.Name), value, err)
			}
		}
	})
	return err
}

// twin is the environment variable of a flag.
func twin(flag string) string { return "EXTIP_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_")) }

// logger writes what is wrong to standard error and the rest to standard
// output: so the engine files the lines of its managed plugins.
func (c config) logger() (*logrus.Logger, error) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	log.AddHook(&writer.Hook{Writer: os.Stderr, LogLevels: []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}})
	log.AddHook(&writer.Hook{Writer: os.Stdout, LogLevels: []logrus.Level{logrus.InfoLevel, logrus.DebugLevel, logrus.TraceLevel}})
	level, err := logrus.ParseLevel(c.logLevel)
	if err != nil {
		return nil, fmt.Errorf("--log-level=%s: allowed are debug, info, warning and error", c.logLevel)
	}
	log.SetLevel(level)
	switch c.logFormat {
	case "text":
		log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true})
	case "json":
		log.SetFormatter(&logrus.JSONFormatter{})
	default:
		return nil, fmt.Errorf("--log-format=%s: allowed are text and json", c.logFormat)
	}
	return log, nil
}
