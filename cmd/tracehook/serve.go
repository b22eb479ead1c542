package main

// `serve`: certificate → handler → server, started in this order and stopped in
// the reverse one.

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/tracehook/tracehook/webhook"
)

func newServeCommand() *cobra.Command {
	var config serveConfig
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve admission calls",
		Long: `Serve admission calls on POST /mutate over TLS: take the API server's trace
context up, emit spans, and store the context on the objects that are created.

Spans go where the OTEL_* environment variables say; by default to an
OpenTelemetry Collector at http://localhost:4318. Telemetry never holds an
admission call up.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := config.validate(); err != nil {
				return usageError(err)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return serve(ctx, config, cmd.ErrOrStderr())
		},
	}
	config.bind(cmd.Flags())
	return cmd
}

// serve runs until ctx ends and everything is drained and flushed.
func serve(ctx context.Context, config serveConfig, stderr io.Writer) error {
	log := newLogger(stderr, config.LogLevel, config.LogFormat)
	telemetry, flush, err := startProcessTelemetry(ctx, "tracehook", config.processConfig, telemetryOptions{MaxSampledRate: config.MaxSampledRate}, log)
	if err != nil {
		return usageError(err)
	}
	// Until the end, or kubelet's readiness probe meets a closed port while the last spans are exported.
	answering, stopAnswering := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAnswering()
	serving := false
	defer func() {
		flush()
		if serving {
			log.Info("stopped")
		}
	}()
	takeStandardLog(log)
	handshakes, err := newHandshakes(log, telemetry.meterProvider)
	if err != nil {
		return err
	}

	certificate, err := newServingCertificate(config, telemetry, log)
	if err != nil {
		return usageError(err)
	}
	if err := measureCertificate(telemetry.meterProvider, certificate.get); err != nil {
		return err
	}
	routes, err := newRoutes(config, telemetry, log)
	if err != nil {
		return usageError(err)
	}
	clientAuth, err := newClientAuth(config, telemetry, log)
	if err != nil {
		return usageError(err)
	}
	options := webhook.ServerOptions{
		Address:        config.WebhookAddress,
		Handler:        routes,
		GetCertificate: withReason(certificate.get),
		HTTP2:          config.HTTP2,

		MaxConnections: config.MaxConnections, MaxBytesInFlight: config.MaxBytesInFlight,
		ShutdownDelay: config.ShutdownDelay, ShutdownTimeout: config.ShutdownTimeout,
		HandshakeFailed: handshakes.failed, Logger: log, MeterProvider: telemetry.meterProvider,
	}
	if clientAuth != nil {
		certificate.watchers = append(certificate.watchers, task{"watch the CAs of client certificates", clientAuth.Start})
		options.Handler, options.TLS = clientAuth.Check(routes), clientAuth.Ask
	}
	if certificate.prove != nil {
		// Outside the check: an API server that has a client certificate for the Service of the
		// webhook need not have one for that of the proof.
		mux := http.NewServeMux()
		mux.Handle("/", options.Handler)
		mux.Handle("/prove/", certificate.prove)
		options.Handler = mux
	}
	server, err := webhook.NewServer(options)
	if err != nil {
		return usageError(err)
	}
	ready := readiness{
		checks: []check{
			{"certificate", certificate.present}, // first: without one the handshake of the next check fails
			{"admission", server.Ready},          // also says that the server drains
			{"trust", certificate.trusted},
		},
		warnings: certificate.warnings,
		draining: func() bool { return ctx.Err() != nil },
	}
	metrics, err := newMetricsServer(config.processConfig, withReason(certificate.get), telemetry.meterProvider, log)
	if err != nil {
		return usageError(err)
	}

	probes, err := newProbes(config.HealthAddress, ready, telemetry.meterProvider)
	if err != nil {
		return err
	}

	// What stands beside the admission calls outlives them: probes must see
	// "not ready" and the last metrics be scraped while they drain. And when one of
	// them breaks, the admission calls are drained too: a process without probes or
	// a watched certificate must not go on looking healthy.
	beside, stopBeside := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBeside()
	group, admission := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer stopBeside()
		if !certificate.arrives(admission) {
			return nil
		}
		return server.Serve(admission)
	})
	for _, watcher := range certificate.watchers {
		group.Go(func() error { return wrap(watcher.doing, watcher.run(beside)) })
	}
	if keeper := certificate.keeper; keeper != nil {
		group.Go(func() error { return wrap(keeper.doing, keeper.run(admission)) })
	}
	if probes != nil { // nil where the address is "0"
		group.Go(func() error { return wrap("serve probes", probes.until(beside, answering)) })
	}
	if metrics != nil {
		group.Go(func() error { return wrap("serve metrics", metrics.Start(beside)) })
	}
	serving = true
	log.Info("serving", "version", version(), "webhook", config.WebhookAddress, "certs", config.Certs,
		"health", config.HealthAddress, "metrics", config.MetricsAddress)
	context.AfterFunc(admission, func() { log.Info("draining", "delay", config.ShutdownDelay) })
	return group.Wait()
}

// newClientAuth returns nil where nobody is asked for a certificate.
func newClientAuth(config serveConfig, telemetry *telemetry, log *slog.Logger) (*webhook.ClientAuth, error) {
	if config.ClientCAFile == "" {
		return nil, nil
	}
	auth, err := webhook.NewClientAuth(webhook.ClientAuthOptions{
		CAFile: config.ClientCAFile, Names: config.ClientNames, Enforce: config.ClientAuth == "enforce",
		Logger: log, MeterProvider: telemetry.meterProvider,
	})
	if err != nil {
		return nil, fmt.Errorf("--client-ca-file: %w", err)
	}
	return auth, nil
}

// newRoutes is what is served where, and what happens to an object there, in this order.
func newRoutes(config serveConfig, telemetry *telemetry, log *slog.Logger) (http.Handler, error) {
	traceContext, err := newTraceContext(config, telemetry)
	if err != nil {
		return nil, err
	}
	routes := http.NewServeMux()
	for path, environment := range map[string]webhook.Environment{
		"/mutate": {Key: config.AnnotationKey},
		// For the webhook of deploy/components/env-injection. The whole chain here too: if the
		// call to the first path failed, this one stores the context itself.
		"/mutate/environment": {Key: config.AnnotationKey, Always: true},
	} {
		handler, err := webhook.New(webhook.Options{
			Mutators: webhook.Chain{
				{Name: "trace-context", Mutator: traceContext},
				{Name: "environment", Mutator: environment},
			},
			MaxBodyBytes:   config.MaxBodyBytes,
			Trust:          webhook.Trust(config.Trust),
			TracerProvider: telemetry.tracerProvider,
			MeterProvider:  telemetry.meterProvider,
			Logger:         log,
		})
		if err != nil {
			return nil, fmt.Errorf("make the handler of %s: %w", path, err)
		}
		routes.Handle(path, handler)
	}
	return routes, nil
}

func newTraceContext(config serveConfig, telemetry *telemetry) (*webhook.TraceContext, error) {
	options := webhook.TraceContextOptions{
		Key:           config.AnnotationKey,
		Always:        config.Stamp == "always",
		CreateSpans:   config.Lineage == "parent",
		MeterProvider: telemetry.meterProvider,
	}
	if config.Lineage != "off" {
		api, err := config.API.process()
		if err != nil {
			return nil, fmt.Errorf("find the API server for --lineage %s: %w (--lineage off needs none)", config.Lineage, err)
		}
		options.Causes, err = webhook.NewOwners(webhook.OwnersOptions{
			Config: api, Key: config.AnnotationKey,
			TracerProvider: telemetry.tracerProvider, MeterProvider: telemetry.meterProvider,
		})
		if err != nil {
			return nil, err
		}
	}
	return webhook.NewTraceContext(options)
}

func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// newLogger makes the program's logger, and hands it to the libraries that log by
// themselves.
func newLogger(w io.Writer, level, format string) *slog.Logger {
	var options slog.HandlerOptions
	var parsed slog.Level
	_ = parsed.UnmarshalText([]byte(level)) // validated with the configuration
	options.Level = parsed
	handler := slog.Handler(slog.NewJSONHandler(w, &options))
	if format == "text" {
		handler = slog.NewTextHandler(w, &options)
	}
	log := slog.New(handler)
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	klog.SetSlogLogger(log)
	return log
}
