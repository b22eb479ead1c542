package webhook

// What the handler tells about itself: span attributes, one histogram, log records.
// All of it is in this file; the code that it measures calls four methods.

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	admissionv1 "k8s.io/api/admission/v1"
)

// scopeName is the instrumentation scope of all spans and metrics of this package.
const scopeName = "github.com/tracehook/tracehook/webhook"

// Attribute keys. No semantic convention for admission exists; these are the names
// that other projects of the field use already. There is none for the user who
// asked and none for the object's content.
const (
	keyUID         = attribute.Key("admission.request.uid")
	keyOperation   = attribute.Key("admission.request.operation")
	keyKind        = attribute.Key("admission.request.kind")
	keyResource    = attribute.Key("admission.request.resource")
	keySubResource = attribute.Key("admission.request.subresource")
	keyName        = attribute.Key("admission.request.name")
	keyDryRun      = attribute.Key("admission.request.dry_run")
	keyAllowed     = attribute.Key("admission.response.allowed")
	keyOperations  = attribute.Key("admission.response.patch.operations")
	keyOutcome     = attribute.Key("tracehook.outcome")
)

type telemetry struct {
	tracer   trace.Tracer
	duration metric.Float64Histogram
	// attributes of the histogram for every operation and ending, made once.
	attributes [operations][endings]metric.MeasurementOption
	log        *slog.Logger
}

func newTelemetry(tp trace.TracerProvider, mp metric.MeterProvider, log *slog.Logger) (*telemetry, error) {
	if tp == nil {
		tp = tracenoop.NewTracerProvider()
	}
	if mp == nil {
		mp = metricnoop.NewMeterProvider()
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := &telemetry{tracer: tp.Tracer(scopeName, trace.WithSchemaURL(semconv.SchemaURL)), log: log}
	var err error
	t.duration, err = mp.Meter(scopeName, metric.WithSchemaURL(semconv.SchemaURL)).Float64Histogram(
		"tracehook.admission.duration",
		metric.WithUnit("s"),
		metric.WithDescription("Time from the request's headers to its answer, by how it ended."),
		metric.WithExplicitBucketBoundaries(.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10),
	)
	if err != nil {
		return nil, fmt.Errorf("create the histogram of admission calls: %w", err)
	}
	for op := range operations {
		for e := range endings {
			attrs := []attribute.KeyValue{keyOperation.String(operationNames[op]), keyOutcome.String(e.outcome())}
			if e.errorType() != "" {
				attrs = append(attrs, semconv.ErrorTypeKey.String(e.errorType()))
			}
			t.attributes[op][e] = metric.WithAttributeSet(attribute.NewSet(attrs...))
		}
	}
	return t, nil
}

// operation is an admission operation as a metric may name it: one of a closed set.
type operation int

const (
	opUnknown operation = iota // no request was decoded, or its operation is none of the four
	opCreate
	opUpdate
	opDelete
	opConnect
	operations // how many there are
)

var operationNames = [operations]string{"unknown", "CREATE", "UPDATE", "DELETE", "CONNECT"}

func operationOf(r *Request) operation {
	switch r.Operation {
	case admissionv1.Create:
		return opCreate
	case admissionv1.Update:
		return opUpdate
	case admissionv1.Delete:
		return opDelete
	case admissionv1.Connect:
		return opConnect
	}
	return opUnknown
}

// describe puts the request on the SERVER span.
func (t *telemetry) describe(span trace.Span, r *Request) {
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(
		keyUID.String(string(r.UID)),
		keyOperation.String(string(r.Operation)),
		keyKind.String(groupVersionName(r.Kind.Group, r.Kind.Version, r.Kind.Kind)),
		keyResource.String(groupVersionName(r.Resource.Group, r.Resource.Version, r.Resource.Resource)),
		keySubResource.String(r.SubResource),
		keyName.String(r.Name),
		keyDryRun.Bool(r.DryRun),
		semconv.K8SNamespaceName(r.Namespace),
	)
}

// groupVersionName joins what identifies a kind or a resource: "apps/v1/deployments", "v1/pods".
func groupVersionName(group, version, name string) string {
	if group == "" {
		return version + "/" + name
	}
	return group + "/" + version + "/" + name
}

// mutate starts the span of one mutator.
func (t *telemetry) mutate(ctx context.Context, name string) (context.Context, trace.Span) {
	return t.tracer.Start(ctx, name) // INTERNAL is the default kind
}

// panicked logs where a mutator panicked; finish says the rest.
func (t *telemetry) panicked(ctx context.Context, r *Request, stack []byte) {
	t.log.LogAttrs(ctx, slog.LevelError, "mutator panicked", slog.String("uid", string(r.UID)),
		slog.String("trace_id", r.SpanContext.TraceID().String()), slog.String("stack", string(stack)))
}

// finish records how the call ended on span, histogram and log. A refusal or an
// object left alone is no error of the span's; that something of ours failed is.
func (t *telemetry) finish(ctx context.Context, span trace.Span, r *Request, res result, took time.Duration) {
	t.duration.Record(ctx, took.Seconds(), t.attributes[operationOf(r)][res.ending])

	if span.IsRecording() {
		span.SetAttributes(keyOutcome.String(res.outcome()))
		if res.answered() {
			span.SetAttributes(keyAllowed.Bool(true), keyOperations.Int(res.operations))
		}
		if res.err != nil {
			span.SetAttributes(semconv.ErrorTypeKey.String(res.errorType()))
			if res.answered() {
				span.SetStatus(codes.Error, res.err.Error())
			}
		}
	}

	level := slog.LevelDebug
	switch {
	case res.err != nil && res.answered():
		level = slog.LevelError
	case res.err != nil:
		level = slog.LevelWarn
	}
	if !t.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("uid", string(r.UID)),
		slog.String("trace_id", span.SpanContext().TraceID().String()),
		slog.String("outcome", res.outcome()),
		slog.Duration("took", took),
	}
	if res.err != nil {
		attrs = append(attrs, slog.String("error_type", res.errorType()), slog.String("error", res.err.Error()))
	}
	t.log.LogAttrs(ctx, level, "admission call", attrs...)
}
