package main

// `certs authority`: who keeps CA and certificate up to date, without serving. In: flags, a cluster. Out: Secrets and
// caBundles, by package certs. Errors: usage (exit 2), or what ended it.

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/tracehook/tracehook/certs"
)

// authorityConfig are the flags of `certs authority`.
type authorityConfig struct {
	processConfig
	Cluster certsConfig
}

func newCertsAuthorityCommand() *cobra.Command {
	var config authorityConfig
	cmd := &cobra.Command{
		Use:   "authority",
		Short: "Keep the CA and the serving certificate of a cluster up to date",
		Long: `Make a CA and a serving certificate, publish the CA to the API servers, and renew both
before they end, one proven step after the other. This is the authority of
"tracehook serve --certs managed" alone, for servers that run with --certs secret:
they need no right to read the CA's key then.

Of several that run, the one that holds the Lease tracehook-certs works.

A ValidatingWebhookConfiguration among those to be kept is proven by a temporary one beside
it: the ServiceAccount then has to list, create, patch and delete those.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := config.validate(); err != nil {
				return usageError(err)
			}
			log := newLogger(cmd.ErrOrStderr(), config.LogLevel, config.LogFormat)
			var authority atomic.Pointer[certs.Authority]
			ctx, stop := interruptible(cmd, func(text string) { log.Info("ended by a signal", "what", text) }, func() []certs.Ref {
				if a := authority.Load(); a != nil {
					return a.Left()
				}
				return nil
			})
			defer stop()
			return signalled(ctx, runAuthority(ctx, config, log, authority.Store))
		},
	}
	config.bind(cmd.Flags())
	config.Cluster.bindServing(cmd.Flags())
	config.Cluster.bindAuthority(cmd.Flags())
	return cmd
}

func (c *authorityConfig) validate() error {
	return errors.Join(c.processConfig.validate(), c.Cluster.validate())
}

// runAuthority runs until ctx ends and the Lease is given back. made is told of the authority before it starts.
func runAuthority(ctx context.Context, config authorityConfig, log *slog.Logger, made func(*certs.Authority)) error {
	cluster, err := connect(config.API, "the authority")
	if err != nil {
		return usageError(err)
	}
	telemetry, flush, err := startProcessTelemetry(ctx, "tracehook-certs", config.processConfig, telemetryOptions{}, log)
	if err != nil {
		return usageError(err)
	}
	// Until the end, or kubelet's readiness probe meets a closed port while the last spans are exported.
	answering, stopAnswering := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAnswering()
	defer flush()
	authority, err := newAuthority(config.Cluster, cluster, telemetry, log)
	if err != nil {
		return usageError(err)
	}
	made(authority)
	// /metrics have the certificate that is kept here: whoever shows a token verifies to whom.
	served, err := certs.NewSecretSource(certs.SourceOptions{
		Clients: cluster.clients, Namespace: config.Cluster.Namespace, Secret: config.Cluster.ServingSecret,
	})
	if err != nil {
		return usageError(err)
	}
	metrics, err := newMetricsServer(config.processConfig, served.GetCertificate, telemetry.meterProvider, log)
	if err != nil {
		return usageError(err)
	}

	probes, err := newProbes(config.HealthAddress, readiness{}, telemetry.meterProvider)
	if err != nil {
		return err
	}

	// Probes and metrics outlive the work, as in serve.
	beside, stopBeside := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBeside()
	group, working := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer stopBeside()
		return wrap("keep the certificates", authority.Start(working))
	})
	if probes != nil {
		group.Go(func() error { return wrap("serve probes", probes.until(beside, answering)) })
	}
	if metrics != nil {
		group.Go(func() error { return wrap("serve metrics", metrics.Start(beside)) })
	}
	if metrics != nil && config.MetricsSecure {
		group.Go(func() error { return wrap("watch the certificate's Secret", served.Start(beside)) })
	}
	log.Info("keeping certificates", "version", version(), "namespace", config.Cluster.Namespace,
		"health", config.HealthAddress, "metrics", config.MetricsAddress)
	err = group.Wait()
	log.Info("stopped")
	return err
}
