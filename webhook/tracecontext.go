package webhook

// Mutator: the request's span context in, the object's cause as an annotation out.
// What is stored, and when, is the table in doc.go; decide is that table as code.

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/tracehook/tracehook/webhook/cause"
)

// DefaultAnnotationKey is where the trace context is stored. KEP-5915's
// tracing.k8s.io/traceparent belongs to upstream, so it is a choice, not the default.
const DefaultAnnotationKey = cause.DefaultKey

// mirrorAnnotation marks the API server's image of a static Pod, which only its kubelet may change.
const mirrorAnnotation = "kubernetes.io/config.mirror"

// Causes finds the stored trace context of an object's controller owner; see Owners.
// No cause and no error means that the owner has none stored.
type Causes interface {
	Cause(ctx context.Context, namespace string, owner metav1.OwnerReference) (Cause, error)
}

// TraceContextOptions of a TraceContext. The zero value stamps with sampled contexts
// and knows no lineage.
type TraceContextOptions struct {
	// Key of the annotation, PREFIX/NAME; "" means DefaultAnnotationKey. The W3C
	// tracestate goes to PREFIX/tracestate.
	Key string
	// Always stores contexts that are not sampled, too.
	Always bool
	// Causes finds what the controller owner of a created object has stored; nil
	// means that a controller's object gets the context of the controller's request.
	Causes Causes
	// CreateSpans makes a span `create <Kind>` in the cause's trace for each object
	// that a controller creates, and stores that span as the object's cause: the
	// trace of a Deployment then is one tree down to its Pods. Needs Causes.
	CreateSpans bool
	// MeterProvider makes the metrics; nil means none are made.
	MeterProvider metric.MeterProvider
}

// TraceContext is the Mutator that stores an object's cause on it: the trace context
// of the request that wanted the object as it is, in the form of a W3C traceparent
// header, for workloads and tools to go on from.
type TraceContext struct {
	key, tracestateKey, createKey string

	always      bool
	causes      Causes
	createSpans bool
	stamps      metric.Int64Counter
	reasons     [reasons][]metric.AddOption
	attributes  [reasons][]attribute.KeyValue // of the span
}

// NewTraceContext checks the options.
func NewTraceContext(o TraceContextOptions) (*TraceContext, error) {
	if o.Key == "" {
		o.Key = DefaultAnnotationKey
	}
	t := &TraceContext{
		key: o.Key, tracestateKey: cause.TracestateKey(o.Key), createKey: cause.CreateKey(o.Key),
		always: o.Always, causes: o.Causes, createSpans: o.CreateSpans,
	}
	if len(validation.IsQualifiedName(o.Key)) > 0 || t.tracestateKey == o.Key || t.createKey == o.Key {
		return nil, fmt.Errorf("annotation key %q: want PREFIX/NAME such as %s", o.Key, DefaultAnnotationKey)
	}
	if o.CreateSpans && o.Causes == nil {
		return nil, errors.New("CreateSpans needs Causes")
	}
	if o.MeterProvider == nil {
		o.MeterProvider = metricnoop.NewMeterProvider()
	}
	var err error
	t.stamps, err = o.MeterProvider.Meter(scopeName, metric.WithSchemaURL(semconv.SchemaURL)).Int64Counter("tracehook.stamps",
		metric.WithUnit("{object}"), metric.WithDescription("Objects looked at, by what was done about their stored trace context."))
	if err != nil {
		return nil, fmt.Errorf("create the counter of stamps: %w", err)
	}
	for r := range reasons {
		t.attributes[r] = []attribute.KeyValue{keyStamp.String(reasonNames[r])}
		t.reasons[r] = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(t.attributes[r]...))}
	}
	return t, nil
}

// reason is what is done about an object's stored context, and why: one row of the table in doc.go.
type reason int

const (
	reasonExcluded reason = iota
	reasonSameTrace
	reasonUntouched
	reasonKept
	reasonCreated
	reasonOwned
	reasonInvalid
	reasonReturned
	reasonUpdated
	reasons // how many there are
)

var reasonNames = [reasons]string{
	reasonExcluded:  "excluded",
	reasonSameTrace: "same_trace",
	reasonUntouched: "untouched",
	reasonKept:      "kept",
	reasonCreated:   "created",
	reasonOwned:     "owned",
	reasonInvalid:   "invalid",
	reasonReturned:  "returned",
	reasonUpdated:   "updated",
}

// facts are what decide goes by.
type facts struct {
	operation admissionv1.Operation
	excluded  bool // a subresource, a mirror Pod, no object
	owned     bool // the object has a controller owner
	present   bool // the annotation is on the object …
	valid     bool // … and is a traceparent …
	same      bool // … of the trace of this very request
	ours      bool // … that a tracehook made
	changed   bool // UPDATE: the annotation is not as it was
	desired   bool // UPDATE: something outside metadata and status is not as it was
}

// decide is the table in doc.go. Pure.
func decide(f facts) reason {
	switch {
	case f.excluded:
		return reasonExcluded
	case f.same:
		return reasonSameTrace
	}
	switch f.operation {
	case admissionv1.Create:
		switch {
		case f.present && !f.valid:
			return reasonInvalid
		case f.present && f.ours && !f.owned:
			return reasonReturned
		case f.present:
			return reasonKept
		case f.owned:
			return reasonOwned
		}
		return reasonCreated
	case admissionv1.Update:
		switch {
		case f.owned:
			// Its controller writes it; to write against a controller is to fight it.
			return reasonUntouched
		case f.present && f.changed && !f.valid:
			return reasonInvalid
		case f.present && f.changed && f.ours && f.desired:
			return reasonReturned
		case f.present && f.changed:
			return reasonKept
		case f.desired:
			return reasonUpdated
		}
		return reasonUntouched
	}
	return reasonExcluded
}

// Mutate stores the cause where the table in doc.go says so.
func (t *TraceContext) Mutate(ctx context.Context, req *Request, resp *Response) error {
	stored, present := t.read(resp.Annotation)
	storedSpan := stored.SpanContext()
	owner, owned := req.Object.ControllerOwner()
	f := facts{
		operation: req.Operation,
		excluded:  req.SubResource != "" || req.Object.Raw == nil || !persisted(req),
		owned:     owned,
		present:   present,
		valid:     storedSpan.IsValid(),
		same:      storedSpan.IsValid() && storedSpan.TraceID() == req.SpanContext.TraceID(),
		ours:      storedSpan.IsValid() && isMarked(storedSpan),
	}
	if _, mirror := req.Object.Annotation(mirrorAnnotation); mirror {
		f.excluded = true
	}
	if req.Operation == admissionv1.Update {
		old, wasPresent := t.read(req.OldObject.Annotation)
		f.changed = wasPresent != present || old.Traceparent != stored.Traceparent
		f.desired = !desiredStateEqual(&req.Object, &req.OldObject)
	}

	r := decide(f)
	t.stamps.Add(ctx, 1, t.reasons[r]...)
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(t.attributes[r]...)
	}
	switch r {
	case reasonKept:
		resp.Link(storedSpan)
		if owned && t.createSpans && !t.hasCreateSpan(resp, storedSpan) {
			t.writeCreateSpan(ctx, req, resp, storedSpan)
		}
	case reasonCreated, reasonUpdated:
		t.write(req, resp)
	case reasonReturned:
		resp.Link(storedSpan)
		t.write(req, resp)
	case reasonInvalid:
		resp.Warn(fmt.Sprintf("annotation %s: %q is no W3C traceparent and was replaced", t.key, clip(stored.Traceparent)))
		if owned {
			t.inherit(ctx, req, resp, owner)
		} else {
			t.write(req, resp)
		}
	case reasonOwned:
		t.inherit(ctx, req, resp, owner)
	}
	return nil
}

// read returns what is stored; annotation is where from.
func (t *TraceContext) read(annotation func(string) (string, bool)) (c Cause, present bool) {
	if c.Traceparent, present = annotation(t.key); present {
		c.Tracestate, _ = annotation(t.tracestateKey)
	}
	return c, present
}

// write stores this request's context. One that is not to be stored still makes what
// was stored before wrong, so that goes.
func (t *TraceContext) write(req *Request, resp *Response) {
	var c Cause
	span := req.SpanContext
	if span.IsValid() && (t.always || span.IsSampled()) {
		c = causeOf(span)
	}
	t.writeCause(resp, c)
	resp.RemoveAnnotation(t.createKey)
}

func (t *TraceContext) writeCause(resp *Response, c Cause) {
	for _, a := range [2]struct{ key, value string }{{t.key, c.Traceparent}, {t.tracestateKey, c.Tracestate}} {
		if a.value == "" {
			resp.RemoveAnnotation(a.key)
		} else {
			resp.SetAnnotation(a.key, a.value)
		}
	}
}

// inherit stores what caused the owner, or this request where that is not known.
// Not to find the owner's cause is counted by Causes and harms nobody.
func (t *TraceContext) inherit(ctx context.Context, req *Request, resp *Response, owner metav1.OwnerReference) {
	var cause Cause
	if t.causes != nil {
		cause, _ = t.causes.Cause(ctx, req.Namespace, owner)
	}
	span := cause.SpanContext()
	if !span.IsValid() {
		t.write(req, resp)
		return
	}
	resp.Link(span)
	if t.createSpans {
		if create := t.writeCreateSpan(ctx, req, resp, span); create.IsValid() {
			cause = causeOf(create)
		}
	}
	t.writeCause(resp, cause)
}

// hasCreateSpan says whether the object has its span already: from an earlier call in
// the same request (reinvocation), which must not make a second one.
func (t *TraceContext) hasCreateSpan(resp *Response, cause trace.SpanContext) bool {
	text, _ := resp.Annotation(t.createKey)
	return Cause{Traceparent: text}.SpanContext().TraceID() == cause.TraceID()
}

// writeCreateSpan makes the span `create <Kind>` below the cause and remembers it under
// a key that no controller copies over. A cause that is not sampled has no spans.
func (t *TraceContext) writeCreateSpan(ctx context.Context, req *Request, resp *Response, cause trace.SpanContext) trace.SpanContext {
	if !cause.IsSampled() {
		return trace.SpanContext{}
	}
	span := t.createSpan(ctx, req, cause)
	resp.SetAnnotation(t.createKey, formatTraceparent(span))
	return span
}

// createSpan makes a span in the cause's trace that links to the SERVER span of this request.
func (t *TraceContext) createSpan(ctx context.Context, req *Request, cause trace.SpanContext) trace.SpanContext {
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer(scopeName, trace.WithSchemaURL(semconv.SchemaURL))
	_, span := tracer.Start(trace.ContextWithRemoteSpanContext(ctx, cause), "create "+clip(req.Kind.Kind),
		trace.WithLinks(trace.Link{SpanContext: req.SpanContext}),
		trace.WithAttributes(requestAttributes(req)...))
	span.End()
	return span.SpanContext()
}
