package main

// `serve`: certificate → handler → server, started in this order and stopped in
// the reverse one.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	clientconfig "sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

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

	certificate, err := certwatcher.New(config.certFile(), config.keyFile())
	if err != nil {
		return usageError(fmt.Errorf("read the serving certificate: %w (`tracehook certs issue` makes one)", err))
	}

	telemetry, err := startTelemetry(ctx, telemetryOptions{
		ServiceName:    "tracehook",
		Registry:       ctrlmetrics.Registry,
		IDs:            webhook.SpanIDs{},
		MaxSampledRate: config.MaxSampledRate,
		OnError:        newTelemetryErrorLog(log),
	})
	if err != nil {
		return usageError(err)
	}
	defer func() {
		// A deadline of its own: the context that ended must not cost the last spans.
		flush, cancel := context.WithTimeout(context.Background(), config.FlushTimeout)
		defer cancel()
		if err := telemetry.shutdown(flush); err != nil {
			log.Warn("spans or metrics lost at the end", "error", err)
		}
		log.Info("stopped")
	}()

	if err := measureCertificate(telemetry.meterProvider, certificate.GetCertificate); err != nil {
		return err
	}

	routes, err := newRoutes(config, telemetry, log)
	if err != nil {
		return usageError(err)
	}
	server, err := webhook.NewServer(webhook.ServerOptions{
		Address:        config.WebhookAddress,
		Handler:        routes,
		GetCertificate: certificate.GetCertificate,
		HTTP2:          config.HTTP2,
		ShutdownDelay:  config.ShutdownDelay,
	})
	if err != nil {
		return usageError(err)
	}

	metrics, err := metricsserver.NewServer(metricsserver.Options{
		BindAddress: config.MetricsAddress,
		// Exemplars, which lead from a slow bucket to its trace, exist in this format only.
		HandlerOpts: []func(*promhttp.HandlerOpts){func(o *promhttp.HandlerOpts) { o.EnableOpenMetrics = true }},
	}, &rest.Config{}, http.DefaultClient)
	if err != nil {
		return usageError(fmt.Errorf("set /metrics up: %w", err))
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
		return server.Serve(admission)
	})
	group.Go(func() error {
		return wrap("watch the certificate", certificate.Start(beside))
	})
	group.Go(func() error {
		return wrap("serve probes", serveProbes(beside, config.HealthAddress, server.Ready))
	})
	if metrics != nil { // nil where the address is "0"
		group.Go(func() error { return wrap("serve metrics", metrics.Start(beside)) })
	}
	log.Info("serving", "version", version(), "webhook", config.WebhookAddress,
		"health", config.HealthAddress, "metrics", config.MetricsAddress)
	context.AfterFunc(admission, func() { log.Info("draining", "delay", config.ShutdownDelay) })
	return group.Wait()
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
		api, err := clientconfig.GetConfig()
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

// serveProbes answers /healthz (the process is alive) and /readyz (admission calls are welcome).
func serveProbes(ctx context.Context, address string, ready healthz.Checker) error {
	mux := http.NewServeMux()
	mux.Handle("/healthz", http.StripPrefix("/healthz", &healthz.Handler{}))
	mux.Handle("/readyz", http.StripPrefix("/readyz", &healthz.Handler{Checks: map[string]healthz.Checker{"admission": ready}}))
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	probes := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	go func() {
		<-ctx.Done()
		_ = probes.Close() // nothing of value is under way here
	}()
	if err := probes.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
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
