package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/exporters/stdout/stdoutmetric"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/time/rate"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
)

// telemetry is what the rest of the program gets of the OpenTelemetry SDK.
type telemetry struct {
	tracerProvider trace.TracerProvider
	meterProvider  metric.MeterProvider
	// propagator speaks W3C Trace Context and no baggage: baggage comes from any
	// user of the API server and would be carried on to every exporter.
	propagator propagation.TextMapPropagator
	// environment is what the OTEL_* variables say.
	environment telemetryEnvironment
	// flush returns when all spans that have ended are exported.
	flush func(context.Context) error
	// shutdown flushes what is queued and closes the exporters; it gives up when
	// its context ends and then says what was lost.
	shutdown func(context.Context) error
}

type telemetryOptions struct {
	// ServiceName is the resource's service.name unless OTEL_SERVICE_NAME or
	// OTEL_RESOURCE_ATTRIBUTES say otherwise.
	ServiceName string
	// ClusterName is the resource's k8s.cluster.name unless OTEL_RESOURCE_ATTRIBUTES has one. "": none.
	ClusterName string
	// Registry receives the metrics for /metrics. Nil: no metrics are kept.
	Registry prometheus.Registerer
	// MaxSampledRate caps the spans that start here sampled, in requests a second;
	// 0 means no cap.
	MaxSampledRate float64
	// IDs makes the ids of spans; nil means random ones.
	IDs sdktrace.IDGenerator
	// Patient makes spans wait until they can be exported, and whoever makes them wait with them, until it is closed. Nil: spans are
	// dropped instead, and nobody waits.
	Patient <-chan struct{}
	// Console receives what OTEL_TRACES_EXPORTER=console and OTEL_METRICS_EXPORTER=console print;
	// nil means os.Stderr. It is never standard output, which is the command's.
	Console io.Writer
	// Processor sees every span that is recorded, beside the exporters. Nil: nobody.
	Processor sdktrace.SpanProcessor
	// OnError receives what the SDK has to complain of (an export that failed).
	OnError func(error)
}

// maxExportBatchSize is the default. The SDK's of 512 takes a processor for milliseconds in which no
// call is answered: `make bench` shows it in the 99th percentile.
const maxExportBatchSize = 128

// patientDelay is how long a span waits for others of its batch where nobody is slowed down by more batches.
const patientDelay = 500 * time.Millisecond

// mostAttributeBytes bounds an attribute's text where no variable does: 2048 spans wait in a queue, with what callers
// made them hold.
const mostAttributeBytes = 4 << 10

// startTelemetry sets the SDK up from the OTEL_* environment variables
// (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
// What they say and what is unusable of it is in the result's environment; no variable is an
// error. Nor is an unreachable Collector, which never holds a request up: spans wait in a
// bounded queue and are dropped when it is full.
func startTelemetry(ctx context.Context, o telemetryOptions) (*telemetry, error) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(o.OnError))
	environment := readTelemetryEnvironment(environmentNeeds{Metrics: o.Registry != nil, OwnSampler: o.MaxSampledRate > 0}, os.Getenv, os.ReadFile)
	if err := applyTelemetryEnvironment(environment.Set); err != nil {
		return nil, err
	}
	if o.Console == nil {
		o.Console = os.Stderr
	}
	t := &telemetry{
		environment: environment,
		propagator:  propagation.TraceContext{},
		flush:       func(context.Context) error { return nil },
		shutdown:    func(context.Context) error { return nil },
	}
	if environment.Disabled {
		t.tracerProvider, t.meterProvider = tracenoop.NewTracerProvider(), metricnoop.NewMeterProvider()
		return t, nil
	}

	self := []attribute.KeyValue{semconv.ServiceName(o.ServiceName), semconv.ServiceVersion(version())}
	if o.ClusterName != "" {
		self = append(self, semconv.K8SClusterName(o.ClusterName))
	}
	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(self...),
		resource.WithFromEnv(), // last: what the operator says wins
	)
	if err != nil {
		o.OnError(fmt.Errorf("describe this process: %w", err)) // res holds what could be read
	}
	res = validResource(res)
	if o.Registry != nil {
		// Before the spans: the SDK's own metrics about them go there too.
		if err := t.startMetrics(ctx, res, o); err != nil {
			return nil, err
		}
	}

	limits := sdktrace.NewSpanLimits() // from OTEL_SPAN_*
	if limits.AttributeValueLengthLimit < 0 {
		limits.AttributeValueLengthLimit = mostAttributeBytes
	}
	options := []sdktrace.TracerProviderOption{sdktrace.WithResource(res), sdktrace.WithRawSpanLimits(limits)}
	for _, name := range environment.Spans {
		exporter, err := newSpanExporter(ctx, name, o.Console)
		if err != nil {
			o.OnError(fmt.Errorf("set the span exporter %s up: %w", name, err))
			continue
		}
		var batch []sdktrace.BatchSpanProcessorOption
		if os.Getenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE") == "" {
			batch = append(batch, sdktrace.WithMaxExportBatchSize(maxExportBatchSize))
		}
		if o.Patient != nil {
			exporter = &patientExporter{exporter, o.OnError, o.Patient}
			batch = append(batch, sdktrace.WithBlocking(), sdktrace.WithExportTimeout(0))
			if os.Getenv("OTEL_BSP_SCHEDULE_DELAY") == "" {
				batch = append(batch, sdktrace.WithBatchTimeout(patientDelay))
			}
		}
		options = append(options, sdktrace.WithBatcher(exporter, batch...))
	}
	if o.Processor != nil {
		options = append(options, sdktrace.WithSpanProcessor(o.Processor))
	}
	if o.IDs != nil {
		options = append(options, sdktrace.WithIDGenerator(o.IDs))
	}
	if o.MaxSampledRate > 0 {
		options = append(options, sdktrace.WithSampler(newCappedSampler(o.MaxSampledRate)))
	}
	tracerProvider := sdktrace.NewTracerProvider(options...)
	t.tracerProvider, t.flush = tracerProvider, tracerProvider.ForceFlush
	stopMetrics := t.shutdown
	t.shutdown = func(ctx context.Context) error {
		return errors.Join(tracerProvider.Shutdown(ctx), stopMetrics(ctx))
	}
	return t, nil
}

// validResource is res in valid UTF-8: OTEL_RESOURCE_ATTRIBUTES are percent-encoded, and of one
// other byte no batch of spans would be taken, and no page of metrics be made.
func validResource(res *resource.Resource) *resource.Resource {
	attributes := res.Attributes()
	for i, a := range attributes {
		if a.Value.Type() == attribute.STRING {
			attributes[i] = attribute.String(strings.ToValidUTF8(string(a.Key), "\ufffd"), strings.ToValidUTF8(a.Value.AsString(), "\ufffd"))
		}
	}
	return resource.NewWithAttributes(res.SchemaURL(), attributes...)
}

// newSpanExporter makes one of the exporters that telemetryEnvironment.Spans can hold.
func newSpanExporter(ctx context.Context, name string, console io.Writer) (sdktrace.SpanExporter, error) {
	if name == "console" {
		return stdouttrace.New(stdouttrace.WithWriter(console))
	}
	return autoexport.NewSpanExporter(ctx) // which was told to make OTLP's
}

// newMetricReader makes one of the readers that telemetryEnvironment.Metrics can hold.
func newMetricReader(ctx context.Context, name string, console io.Writer) (sdkmetric.Reader, error) {
	if name == "console" {
		exporter, err := stdoutmetric.New(stdoutmetric.WithWriter(console))
		if err != nil {
			return nil, err
		}
		return sdkmetric.NewPeriodicReader(exporter), nil
	}
	if err := os.Setenv("OTEL_METRICS_EXPORTER", name); err != nil { // autoexport takes one
		return nil, err
	}
	return autoexport.NewMetricReader(ctx)
}

func (t *telemetry) startMetrics(ctx context.Context, res *resource.Resource, o telemetryOptions) error {
	pull, err := otelprometheus.New(otelprometheus.WithRegisterer(o.Registry), otelprometheus.WithoutScopeInfo())
	if err != nil {
		return fmt.Errorf("set the metrics for /metrics up: %w", err)
	}
	options := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithReader(pull)}
	// /metrics is there in any case, so pushing is for those who ask for it.
	for _, name := range t.environment.Metrics {
		push, err := newMetricReader(ctx, name, o.Console)
		if err != nil {
			o.OnError(fmt.Errorf("set the metric exporter %s up: %w", name, err))
			continue
		}
		options = append(options, sdkmetric.WithReader(push))
	}
	provider := sdkmetric.NewMeterProvider(options...)
	t.meterProvider = provider
	t.shutdown = provider.Shutdown

	// Spans that were dropped or could not be exported are counted by the SDK itself,
	// which looks for this variable and for the global provider.
	const observability = "OTEL_GO_X_OBSERVABILITY"
	if _, set := os.LookupEnv(observability); !set {
		if err := os.Setenv(observability, "true"); err != nil {
			return fmt.Errorf("switch the SDK's own metrics on: %w", err)
		}
	}
	otel.SetMeterProvider(provider)
	return nil
}

// meterName is the instrumentation scope of this program's own metrics.
const meterName = "github.com/tracehook/tracehook/cmd/tracehook"

// measureCertificate tells until when the certificate is valid that is served now.
func measureCertificate(provider metric.MeterProvider, get getCertificate) error {
	_, err := provider.Meter(meterName).Float64ObservableGauge("tracehook.certificate.not_after.timestamp",
		metric.WithUnit("s"),
		metric.WithDescription("When the serving certificate ends, as a Unix time."),
		metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
			// Without a certificate there is no such metric: that is for /readyz and the failed handshakes to tell.
			if certificate, err := get(&tls.ClientHelloInfo{}); err == nil && certificate != nil && certificate.Leaf != nil {
				o.Observe(float64(certificate.Leaf.NotAfter.Unix()))
			}
			return nil
		}))
	if err != nil {
		return fmt.Errorf("create the gauge of the certificate: %w", err)
	}
	return nil
}

// newTelemetryErrorLog logs what the SDK complains of, at most once in a while: with
// a dead Collector every batch fails, and a log line for each helps nobody.
func newTelemetryErrorLog(log *slog.Logger) func(error) {
	const every = 30 * time.Second
	limit := rate.Sometimes{First: 1, Interval: every}
	return func(err error) {
		limit.Do(func() {
			log.Warn("telemetry is not getting through; nobody but lifecycle waits for it (repeated at most every 30s)",
				"error", err, "hint", "check OTEL_EXPORTER_OTLP_ENDPOINT and the Collector")
		})
	}
}

// startProcessTelemetry is startTelemetry for a command that goes on running; flush is for its end.
func startProcessTelemetry(ctx context.Context, service string, config processConfig, o telemetryOptions, log *slog.Logger) (_ *telemetry, flush func(), err error) {
	o.ClusterName = config.ClusterName
	o.ServiceName, o.Registry, o.OnError = service, ctrlmetrics.Registry, newTelemetryErrorLog(log)
	t, err := startTelemetry(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	if t.environment.Disabled {
		log.Warn("no spans and no metrics of its own: OTEL_SDK_DISABLED is true")
	}
	for _, c := range t.environment.Complaints {
		log.Warn("a variable is not used as it is", "variable", c.Variable, "problem", c.Problem, "instead", c.Instead)
	}
	return t, func() {
		// A deadline of its own: the context that ended must not cost the last spans.
		ctx, cancel := context.WithTimeout(context.Background(), config.FlushTimeout)
		defer cancel()
		if err := t.shutdown(ctx); err != nil {
			log.Warn("spans or metrics lost at the end", "error", err)
		}
	}, nil
}
