package webhook

// What the handler tells about itself: span attributes, one histogram, log records.
// All of it is in this file; the code that it measures calls four methods.

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/webhook/limit"
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
	// What was done about the stored trace context: a reason of the table in doc.go.
	keyStamp = attribute.Key("tracehook.stamp")
	// Why what a mutator wanted is not done: see withheld.
	keyWithheld = attribute.Key("tracehook.withheld")
	// Seconds that the caller waits for an answer, and those left when it was given.
	keyBudget    = attribute.Key("tracehook.budget.total")
	keyRemaining = attribute.Key("tracehook.budget.remaining")
)

type telemetry struct {
	tracer    trace.Tracer
	duration  metric.Float64Histogram
	patchSize metric.Int64Histogram
	// attributes of the histograms for every resource, operation and ending, made once.
	attributes [len(resources)][operations][endings][]metric.RecordOption
	log        *slog.Logger
	// Any caller can cause the records of calls that went wrong.
	said      [endings]limit.Records
	saidPanic limit.Records
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
	meter := mp.Meter(scopeName, metric.WithSchemaURL(semconv.SchemaURL))
	t.duration, err = meter.Float64Histogram(
		"tracehook.admission.duration",
		metric.WithUnit("s"),
		metric.WithDescription("Time from the request's headers to its answer, by how it ended."),
		metric.WithExplicitBucketBoundaries(.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10),
	)
	if err != nil {
		return nil, fmt.Errorf("create the histogram of admission calls: %w", err)
	}
	t.patchSize, err = meter.Int64Histogram("tracehook.admission.patch.size",
		metric.WithUnit("By"),
		metric.WithDescription("Size of the JSON Patches that were answered."),
		metric.WithExplicitBucketBoundaries(64, 128, 256, 512, 1024, 4096, 16384, 65536),
	)
	if err != nil {
		return nil, fmt.Errorf("create the histogram of patch sizes: %w", err)
	}
	for i, resource := range resources {
		for op := range operations {
			for e := range endings {
				attrs := []attribute.KeyValue{keyResource.String(resourceText(resource)), keyOperation.String(operationNames[op]), keyOutcome.String(e.outcome())}
				if e.errorType() != "" {
					attrs = append(attrs, semconv.ErrorTypeKey.String(e.errorType()))
				}
				t.attributes[i][op][e] = []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(attrs...))}
			}
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

// resources are what a metric tells apart; custom resources, which anybody may
// define, are all the first one.
var resources = [...]metav1.GroupVersionResource{
	{Resource: "other"},
	{Version: "v1", Resource: "configmaps"},
	{Version: "v1", Resource: "namespaces"},
	{Version: "v1", Resource: "persistentvolumeclaims"},
	{Version: "v1", Resource: "pods"},
	{Version: "v1", Resource: "secrets"},
	{Version: "v1", Resource: "services"},
	{Group: "apps", Version: "v1", Resource: "daemonsets"},
	{Group: "apps", Version: "v1", Resource: "deployments"},
	{Group: "apps", Version: "v1", Resource: "replicasets"},
	{Group: "apps", Version: "v1", Resource: "statefulsets"},
	{Group: "batch", Version: "v1", Resource: "cronjobs"},
	{Group: "batch", Version: "v1", Resource: "jobs"},
}

func resourceOf(r *Request) int { return max(0, slices.Index(resources[:], r.Resource)) }

// requestAttributes are what a SERVER span says of the request, with room for what finish adds.
func requestAttributes(r *Request) []attribute.KeyValue {
	return append(make([]attribute.KeyValue, 0, 16),
		keyUID.String(clean(string(r.UID), mostText)),
		keyOperation.String(clean(string(r.Operation), mostText)),
		keyKind.String(clean(joined(r.Kind.Group, r.Kind.Version, r.Kind.Kind), mostText)),
		keyResource.String(clean(resourceText(r.Resource), mostText)),
		keySubResource.String(clean(r.SubResource, mostText)),
		keyName.String(clean(r.Name, mostText)),
		keyDryRun.Bool(r.DryRun),
		semconv.K8SNamespaceName(clean(r.Namespace, mostText)),
	)
}

func resourceText(r metav1.GroupVersionResource) string {
	return joined(r.Group, r.Version, r.Resource)
}

// joined writes a kind or resource: "apps/v1/deployments", "v1/pods", "other".
func joined(group, version, name string) string {
	if version != "" {
		name = version + "/" + name
	}
	if group != "" {
		name = group + "/" + name
	}
	return name
}

// mutate starts the span of one mutator.
func (t *telemetry) mutate(ctx context.Context, name string) (context.Context, trace.Span) {
	return t.tracer.Start(ctx, name) // INTERNAL is the default kind
}

// withheld says on a mutator's span that what it wanted is not done.
func (t *telemetry) withheld(span trace.Span, reason withheld) {
	span.SetAttributes(keyWithheld.String(withheldNames[reason]))
}

// panicked logs where a mutator panicked; finish says the rest.
func (t *telemetry) panicked(ctx context.Context, r *Request, stack []byte) {
	t.saidPanic.Log(ctx, t.log, slog.LevelError, "mutator panicked", func() []slog.Attr {
		return append(identity(r, r.SpanContext), slog.String("stack", string(stack)))
	})
}

// finish records how the call ended on span, metrics and log. A refusal or an
// object left alone is no error of the span's; that something of ours failed is.
func (t *telemetry) finish(ctx context.Context, span trace.Span, c *call, res result, budget, took time.Duration) {
	r := &c.request
	attributes := t.attributes[resourceOf(r)][operationOf(r)][res.ending]
	t.duration.Record(ctx, took.Seconds(), attributes...)
	if res.patch != nil {
		t.patchSize.Record(ctx, int64(len(res.patch)), attributes...)
	}

	if span.IsRecording() {
		var attrs []attribute.KeyValue // set all at once: each time costs an allocation or two
		if r.UID != "" {
			attrs = requestAttributes(r)
			object := &r.Object
			if object.Raw == nil {
				object = &r.OldObject // of a DELETE
			}
			attrs = appendGitOps(attrs, object)
		}
		attrs = append(attrs, keyOutcome.String(res.outcome()),
			keyBudget.Float64(budget.Seconds()), keyRemaining.Float64((budget - took).Seconds()))
		if res.understood() {
			attrs = append(attrs, keyAllowed.Bool(true), keyOperations.Int(res.operations), semconv.HTTPRequestBodySize(c.body.Len()))
		}
		if res.err != nil {
			attrs = append(attrs, semconv.ErrorTypeKey.String(res.errorType()))
			if res.failed() {
				span.SetStatus(codes.Error, clean(res.err.Error(), mostErrorText))
			}
		}
		span.SetAttributes(attrs...)
		for _, link := range c.response.links {
			span.AddLink(trace.Link{SpanContext: link})
		}
	}

	if res.err != nil {
		t.complain(ctx, span, c, res, took)
	} else if t.log.Enabled(ctx, slog.LevelDebug) {
		t.log.LogAttrs(ctx, slog.LevelDebug, "admission call", callAttrs(r, span, res, took)...)
	}
}

// complain logs a call that went wrong.
func (t *telemetry) complain(ctx context.Context, span trace.Span, c *call, res result, took time.Duration) {
	level := slog.LevelWarn
	if res.failed() {
		level = slog.LevelError
	}
	t.said[res.ending].Log(ctx, t.log, level, "admission call", func() []slog.Attr {
		return append(callAttrs(&c.request, span, res, took), slog.String("error", clean(res.err.Error(), mostErrorText)))
	}, slog.String("error_type", res.errorType()))
}

func callAttrs(r *Request, span trace.Span, res result, took time.Duration) []slog.Attr {
	return append(identity(r, span.SpanContext()), slog.String("outcome", res.outcome()), slog.Duration("took", took))
}

// identity is what every log record about a call has.
func identity(r *Request, span trace.SpanContext) []slog.Attr {
	return []slog.Attr{
		slog.String("uid", clean(string(r.UID), mostText)),
		slog.String("trace_id", span.TraceID().String()),
		slog.String("span_id", span.SpanID().String()),
	}
}
