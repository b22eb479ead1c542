// Package cause is for authors of controllers: it reads the trace context that an
// object carries, which is the context of the request that caused it, and starts
// spans that point there.
//
//	ctx, span := cause.Start(ctx, tracer, "reconcile widget", widget, cause.Options{})
//	defer span.End()
//
// tracehook stores the context in an annotation (W3C traceparent, with the
// tracestate in a second annotation beside it). An object that carries none, or
// that its author has given a wrong one, costs nothing but the link.
//
// The package needs the API of OpenTelemetry and metav1 only. Package traced, below
// it, does all of this for a controller-runtime reconciler.
//
// This file: an object in; a span context, or a span, out. Error: ErrInvalid.
package cause

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations that hold a traceparent.
const (
	// DefaultKey is where tracehook writes unless it is told another key.
	DefaultKey = "tracehook.dev/traceparent"
	// KEP5915Key is the key of the Kubernetes enhancement proposal
	// (https://github.com/kubernetes/enhancements/issues/5915).
	KEP5915Key = "tracing.k8s.io/traceparent"
)

// An annotation comes from whoever may write the object, and may be of any size.
const (
	// A traceparent of today has 55 bytes; later versions of W3C's may append (3.2.4).
	maxTraceparentBytes = 256
	// One of version 00 has just this many (3.2.2).
	traceparentBytes = 55
	// MaxTracestateBytes is what W3C asks everybody to carry on (Trace Context, 3.3.1.5).
	MaxTracestateBytes = 512
)

// Attribute keys of the spans that Start makes.
const (
	// AttributeCause says what the span made of the object's context: "link",
	// "parent", "none" (there is none) or "invalid" (there is one, and it is ignored).
	AttributeCause = attribute.Key("tracehook.cause")
	// AttributeName and AttributeUID are the object's, with k8s.namespace.name beside them.
	AttributeName = attribute.Key("tracehook.object.name")
	AttributeUID  = attribute.Key("tracehook.object.uid")
)

// ErrInvalid means that an object has an annotation for a trace context, and that
// what stands in it is none.
var ErrInvalid = errors.New("invalid trace context")

// Of returns the trace context that obj carries under the first of keys that holds a
// valid one; without keys, these are DefaultKey and KEP5915Key. Where there is none,
// or obj is gone, the span context is not valid, and the error says whether that is
// because of what stands there: it is nil or wraps ErrInvalid, and never quotes the
// annotation.
//
// Gone is a nil obj, and a nil pointer in it, which is what a lister returns for an
// object that was deleted. So is an obj whose methods panic in another way.
//
// A traceparent is taken with the annotation `tracestate` of the same prefix
// (tracehook.dev/tracestate); one that is invalid or longer than 512 bytes is left out.
// With `--lineage parent` tracehook puts a nearer cause of the same trace beside it, the
// span `create <Kind>` of this very object (tracehook.dev/create-traceparent): that one
// is taken then.
func Of(obj metav1.Object, keys ...string) (trace.SpanContext, error) {
	m, _ := read(obj)
	return of(m.annotations, keys)
}

func of(annotations map[string]string, keys []string) (trace.SpanContext, error) {
	if len(keys) == 0 {
		keys = []string{DefaultKey, KEP5915Key}
	}
	var err error
	for _, key := range keys {
		traceparent, there := annotations[key]
		if !there {
			continue
		}
		tracestate := annotations[TracestateKey(key)]
		if span := Parse(traceparent, tracestate); span.IsValid() {
			// Of another trace it is out of date: a controller has copied a newer cause
			// over the other annotation, and knows nothing of this one.
			if create := Parse(annotations[CreateKey(key)], tracestate); create.TraceID() == span.TraceID() {
				return create, nil
			}
			return span, nil
		}
		err = errors.Join(err, fmt.Errorf("%w: annotation %s", ErrInvalid, key))
	}
	return trace.SpanContext{}, err
}

// metadata is what is read of an object.
type metadata struct {
	name, namespace, uid string
	annotations          map[string]string
}

// read asks obj for its metadata, if it is there. Methods of a nil pointer panic, and
// to find a cause must not cost the work.
func read(obj metav1.Object) (m metadata, there bool) {
	if obj == nil {
		return metadata{}, false
	}
	defer func() {
		if recover() != nil {
			m, there = metadata{}, false
		}
	}()
	return metadata{obj.GetName(), obj.GetNamespace(), string(obj.GetUID()), obj.GetAnnotations()}, true
}

// Parse reads a traceparent with its tracestate, as they are stored; the result is not
// valid unless the traceparent is. Both may come from anybody and be of any size.
func Parse(traceparent, tracestate string) trace.SpanContext {
	if traceparent == "" || len(traceparent) > maxTraceparentBytes {
		return trace.SpanContext{}
	}
	if strings.HasPrefix(traceparent, "00-") && len(traceparent) != traceparentBytes {
		return trace.SpanContext{} // the propagator takes "00-…-01-", which has one byte too many
	}
	if len(tracestate) > MaxTracestateBytes {
		tracestate = ""
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), carrier{traceparent, tracestate})
	return trace.SpanContextFromContext(ctx)
}

// carrier lets the propagator read annotations as it reads headers.
type carrier struct{ traceparent, tracestate string }

func (c carrier) Get(key string) string {
	switch key {
	case "traceparent":
		return c.traceparent
	case "tracestate":
		return c.tracestate
	}
	return ""
}

func (c carrier) Set(string, string) {}
func (c carrier) Keys() []string     { return []string{"traceparent", "tracestate"} }

// TracestateKey is the annotation that holds the tracestate of the traceparent in key.
func TracestateKey(key string) string { return sibling(key, "tracestate") }

// CreateKey is the annotation that holds the span `create <Kind>` of an object whose
// cause is in key. The deployment controller writes the Deployment's annotations over
// those of its ReplicaSets again and again; this one a Deployment does not have.
func CreateKey(key string) string { return sibling(key, "create-traceparent") }

// CausedAtKey is the annotation that says when the cause in key was stored. tracehook writes it
// with every cause; see webhook/doc.go for what it is good for.
func CausedAtKey(key string) string { return sibling(key, "caused-at") }

// PreviousKey is the annotation that holds the traceparent which the one in key replaced: the way
// back to who wanted the object before it was changed.
func PreviousKey(key string) string { return sibling(key, "previous-traceparent") }

// sibling is the key beside another: the same prefix, and this name.
func sibling(key, name string) string {
	return key[:strings.LastIndexByte(key, '/')+1] + name
}

// Options of Start. The zero value links to what tracehook or KEP-5915 stored.
type Options struct {
	// Keys are the annotations to look at, in order; nil means DefaultKey and KEP5915Key.
	Keys []string
	// Parent makes the span a child of the cause, in the cause's trace, instead of
	// linking to it. That is for work that ends: an object that is reconciled for
	// ever makes its trace grow for ever, and an unsampled cause leaves the span
	// unsampled.
	Parent bool
}

// Start starts a span for work on obj: with a link to the cause that obj carries, or
// as its child. The caller ends it. An obj that is gone (see Of) has no cause. A nil
// tracer makes a span that is recorded nowhere.
//
// A span in ctx stays the parent where the cause is linked to; where the cause is the
// parent, that span is linked to instead.
func Start(ctx context.Context, tracer trace.Tracer, name string, obj metav1.Object, o Options, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	if tracer == nil {
		tracer = tracenoop.Tracer{}
	}
	options = slices.Clip(options) // the caller's, which must not be written behind
	var attributes []attribute.KeyValue
	m, there := read(obj)
	found, err := of(m.annotations, o.Keys)
	switch {
	case err != nil:
		attributes = append(attributes, AttributeCause.String("invalid"))
	case !found.IsValid():
		attributes = append(attributes, AttributeCause.String("none"))
	case o.Parent:
		attributes = append(attributes, AttributeCause.String("parent"))
		if replaced := trace.SpanContextFromContext(ctx); replaced.IsValid() {
			options = append(options, trace.WithLinks(trace.Link{SpanContext: replaced}))
		}
		ctx = trace.ContextWithRemoteSpanContext(ctx, found)
	default:
		attributes = append(attributes, AttributeCause.String("link"))
		options = append(options, trace.WithLinks(trace.Link{SpanContext: found}))
	}
	if there {
		attributes = append(attributes, AttributeName.String(m.name), AttributeUID.String(m.uid))
		if m.namespace != "" {
			attributes = append(attributes, semconv.K8SNamespaceName(m.namespace))
		}
	}
	return tracer.Start(ctx, name, append(options, trace.WithAttributes(attributes...))...)
}
