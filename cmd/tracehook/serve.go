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
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
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
	log := newLogger(stderr, config.LogLevel)

	certificate, err := certwatcher.New(config.certFile(), config.keyFile())
	if err != nil {
		return usageError(fmt.Errorf("read the serving certificate: %w (`tracehook certs issue` makes one)", err))
	}

	telemetry, err := startTelemetry(ctx, telemetryOptions{
		ServiceName: "tracehook",
		Registry:    ctrlmetrics.Registry,
		OnError:     newTelemetryErrorLog(log),
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

	handler, err := webhook.New(webhook.Options{
		Mutators: webhook.Chain{
			{Name: "trace-context", Mutator: webhook.TraceContext{Key: config.AnnotationKey}},
		},
		MaxBodyBytes:   config.MaxBodyBytes,
		TracerProvider: telemetry.tracerProvider,
		MeterProvider:  telemetry.meterProvider,
		Logger:         log,
	})
	if err != nil {
		return fmt.Errorf("make the admission handler: %w", err)
	}
	server, err := webhook.NewServer(webhook.ServerOptions{
		Address:        config.WebhookAddress,
		Path:           "/mutate",
		Handler:        handler,
		GetCertificate: certificate.GetCertificate,
		HTTP2:          config.HTTP2,
		ShutdownDelay:  config.ShutdownDelay,
	})
	if err != nil {
		return usageError(err)
	}

	metrics, err := metricsserver.NewServer(metricsserver.Options{BindAddress: config.MetricsAddress}, &rest.Config{}, http.DefaultClient)
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
func newLogger(w io.Writer, level string) *slog.Logger {
	parsed, _ := parseLogLevel(level) // validated with the configuration
	log := slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: parsed}))
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	klog.SetSlogLogger(log)
	return log
}

func parseLogLevel(name string) (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(strings.ToUpper(name))); err != nil {
		return 0, fmt.Errorf("--log-level %q: want debug, info, warn or error", name)
	}
	return level, nil
}
