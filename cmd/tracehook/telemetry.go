package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

// telemetry is what the rest of the program gets of the OpenTelemetry SDK.
type telemetry struct {
	tracerProvider trace.TracerProvider
	meterProvider  metric.MeterProvider
	// propagator speaks W3C Trace Context and no baggage: baggage comes from any
	// user of the API server and would be carried on to every exporter.
	propagator propagation.TextMapPropagator
	// shutdown flushes what is queued and closes the exporters; it gives up when
	// its context ends and then says what was lost.
	shutdown func(context.Context) error
}

type telemetryOptions struct {
	// ServiceName is the resource's service.name unless OTEL_SERVICE_NAME or
	// OTEL_RESOURCE_ATTRIBUTES say otherwise.
	ServiceName string
	// Registry receives the metrics for /metrics. Nil: no metrics are kept.
	Registry prometheus.Registerer
	// OnError receives what the SDK has to complain of (an export that failed).
	OnError func(error)
}

// startTelemetry sets the SDK up from the OTEL_* environment variables
// (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
// An error means that a variable holds something unusable; an unreachable
// Collector is no error here and never holds a request up: spans wait in a
// bounded queue and are dropped when it is full.
func startTelemetry(ctx context.Context, o telemetryOptions) (*telemetry, error) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(o.OnError))

	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName(o.ServiceName), semconv.ServiceVersion(version())),
		resource.WithFromEnv(), // last: what the operator says wins
	)
	if err != nil {
		return nil, fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}

	exporter, err := autoexport.NewSpanExporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("set the span exporter up from OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_*: %w", err)
	}
	tracerOptions := []sdktrace.TracerProviderOption{sdktrace.WithResource(res)}
	if !autoexport.IsNoneSpanExporter(exporter) {
		tracerOptions = append(tracerOptions, sdktrace.WithBatcher(exporter))
	}
	tracerProvider := sdktrace.NewTracerProvider(tracerOptions...)
	t := &telemetry{
		tracerProvider: tracerProvider,
		propagator:     propagation.TraceContext{},
		shutdown:       tracerProvider.Shutdown,
	}
	if o.Registry == nil {
		return t, nil
	}

	metricOptions := []sdkmetric.Option{sdkmetric.WithResource(res)}
	pull, err := otelprometheus.New(otelprometheus.WithRegisterer(o.Registry))
	if err != nil {
		return nil, fmt.Errorf("set the metrics for /metrics up: %w", err)
	}
	metricOptions = append(metricOptions, sdkmetric.WithReader(pull))
	// /metrics is there in any case, so pushing is for those who ask for it.
	if os.Getenv("OTEL_METRICS_EXPORTER") != "" {
		push, err := autoexport.NewMetricReader(ctx)
		if err != nil {
			return nil, fmt.Errorf("set the metric exporter up from OTEL_METRICS_EXPORTER: %w", err)
		}
		metricOptions = append(metricOptions, sdkmetric.WithReader(push))
	}
	meterProvider := sdkmetric.NewMeterProvider(metricOptions...)
	t.meterProvider = meterProvider
	t.shutdown = func(ctx context.Context) error {
		return errors.Join(tracerProvider.Shutdown(ctx), meterProvider.Shutdown(ctx))
	}
	return t, nil
}

// newTelemetryErrorLog logs what the SDK complains of, at most once in a while: with
// a dead Collector every batch fails, and a log line for each helps nobody.
func newTelemetryErrorLog(log *slog.Logger) func(error) {
	const every = 30 * time.Second
	limit := rate.Sometimes{First: 1, Interval: every}
	return func(err error) {
		limit.Do(func() {
			log.Warn("telemetry is not getting through; admission calls go on (repeated at most every 30s)",
				"error", err, "hint", "check OTEL_EXPORTER_OTLP_ENDPOINT and the Collector")
		})
	}
}
