// Package traced puts every call of a controller-runtime reconciler in a span that
// points to the request which caused the object that is reconciled.
//
//	err := ctrl.NewControllerManagedBy(manager).For(&appsv1.Deployment{}).Complete(
//		traced.Reconciler(reconciler, traced.Read(manager.GetClient(), &appsv1.Deployment{}), traced.Options{Name: "deployment"}))
//
// So that what the reconciler writes is part of its trace, give the manager a
// rest.Config that went through
//
//	config.Wrap(traced.Transport(nil))
//
// This file: a reconciler in, a reconciler out. The results and errors of the
// reconciler pass unchanged; this package adds none of its own.
package traced

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/tracehook/tracehook/webhook/cause"
)

const scopeName = "github.com/tracehook/tracehook/webhook/cause/traced"

// keyRequeueAfter is what a reconciler asked for, in seconds.
const keyRequeueAfter = attribute.Key("tracehook.reconcile.requeue_after")

// Options of a traced reconciler. The zero value makes spans `reconcile` that link to
// the cause.
type Options struct {
	// Name of the controller, for the span's name `reconcile <Name>`.
	Name string
	// Cause says which annotations to read, and whether to link or to go on.
	Cause cause.Options
	// TracerProvider makes the spans; nil means OpenTelemetry's global one.
	TracerProvider trace.TracerProvider
}

// An Object returns the object that a request is about. When it is gone, that is nil,
// a nil pointer, or an error by apierrors.IsNotFound, so the Get of a lister will do.
// Another error, or a panic, leaves the span without a cause and is nothing to the
// reconciler. A panic is logged.
type Object[request comparable] func(context.Context, request) (metav1.Object, error)

// Read returns the function that reads the object a reconcile.Request names.
// Prototype says of which type: one that the controller watches anyway, because a
// manager's client answers from its cache, and starts one for a type that is new to
// it. A *metav1.PartialObjectMetadata with its GroupVersionKind will do.
func Read(reader client.Reader, prototype client.Object) Object[reconcile.Request] {
	return func(ctx context.Context, r reconcile.Request) (metav1.Object, error) {
		obj := prototype.DeepCopyObject().(client.Object)
		if err := reader.Get(ctx, r.NamespacedName, obj); err != nil {
			return nil, client.IgnoreNotFound(err)
		}
		return obj, nil
	}
}

// find calls the author's function. What it is for is the trace alone, so a mistake in
// it must not keep the reconciler from its work.
func (object Object[request]) find(ctx context.Context, req request) (obj metav1.Object, err error) {
	defer func() {
		if value := recover(); value != nil {
			obj, err = nil, fmt.Errorf("read the object: panic: %v", value)
			log.FromContext(ctx).Error(err, "reconcile without a cause")
		}
	}()
	obj, err = object(ctx, req)
	return obj, client.IgnoreNotFound(err)
}

// answers says whether obj can be asked: methods of a nil pointer panic.
func answers(obj metav1.Object) (yes bool) {
	defer func() { _ = recover() }()
	_ = obj.GetName()
	return true
}

// Reconciler returns a reconciler that calls r in a span which points to the cause of
// the object. The span ends with the reconciler's error as its status, and the logger
// in the context, log.FromContext, knows trace_id and span_id.
func Reconciler[request comparable](r reconcile.TypedReconciler[request], object Object[request], o Options) reconcile.TypedReconciler[request] {
	in := newSpans(o)
	return reconcile.TypedFunc[request](func(ctx context.Context, req request) (reconcile.Result, error) {
		obj, err := object.find(ctx, req)
		var about []attribute.KeyValue
		if err != nil {
			about = append(about, cause.AttributeCause.String("unknown")) // wins over the "none" of an object that is gone
		}
		if named, ok := any(req).(reconcile.Request); ok && !answers(obj) {
			about = append(about, cause.AttributeName.String(named.Name))
			if named.Namespace != "" {
				about = append(about, semconv.K8SNamespaceName(named.Namespace))
			}
		}
		return in.span(ctx, obj, about, func(ctx context.Context) (reconcile.Result, error) {
			return r.Reconcile(ctx, req)
		})
	})
}

// ObjectReconciler is Reconciler for the reconcilers that reconcile.AsReconciler
// takes: they get the object, so nothing is read for the span.
func ObjectReconciler[object client.Object](r reconcile.ObjectReconciler[object], o Options) reconcile.ObjectReconciler[object] {
	return &objectReconciler[object]{next: r, in: newSpans(o)}
}

type objectReconciler[object client.Object] struct {
	next reconcile.ObjectReconciler[object]
	in   spans
}

func (r *objectReconciler[object]) Reconcile(ctx context.Context, obj object) (reconcile.Result, error) {
	return r.in.span(ctx, obj, nil, func(ctx context.Context) (reconcile.Result, error) {
		return r.next.Reconcile(ctx, obj)
	})
}

// spans makes the span of one call.
type spans struct {
	name   string
	tracer trace.Tracer
	cause  cause.Options
}

func newSpans(o Options) spans {
	s := spans{name: "reconcile", cause: o.Cause}
	s.cause.Keys = slices.Clone(o.Cause.Keys) // the caller's slice, which may change
	if o.Name != "" {
		s.name += " " + o.Name
	}
	tp := o.TracerProvider
	if tp == nil {
		tp = otel.GetTracerProvider()
	}
	s.tracer = tp.Tracer(scopeName, trace.WithSchemaURL(semconv.SchemaURL))
	return s
}

func (s spans) span(ctx context.Context, obj metav1.Object, about []attribute.KeyValue, next func(context.Context) (reconcile.Result, error)) (result reconcile.Result, err error) {
	ctx, span := cause.Start(ctx, s.tracer, s.name, obj, s.cause)
	span.SetAttributes(about...)
	returned := false
	defer func() {
		switch {
		case !returned: // controller-runtime recovers, or the program ends
			span.SetAttributes(semconv.ErrorTypeKey.String("panic"))
			span.SetStatus(codes.Error, "the reconciler panicked")
		case err != nil:
			span.SetAttributes(semconv.ErrorTypeKey.String(errorType(err)))
			span.SetStatus(codes.Error, clip(err.Error()))
		case result.RequeueAfter > 0:
			span.SetAttributes(keyRequeueAfter.Float64(result.RequeueAfter.Seconds()))
		}
		span.End()
	}()
	if at := span.SpanContext(); at.IsValid() {
		ctx = log.IntoContext(ctx, log.FromContext(ctx).WithValues("trace_id", at.TraceID().String(), "span_id", at.SpanID().String()))
	}
	result, err = next(ctx)
	returned = true
	return result, err
}

// clip bounds what an error says: the API server's may quote half an object.
func clip(s string) string {
	const most = 512
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// errorType is one of a bounded set: the API server's reason ("Conflict"), where the
// error is its answer.
func errorType(err error) string {
	if reason := apierrors.ReasonForError(err); reason != metav1.StatusReasonUnknown {
		return string(reason)
	}
	return semconv.ErrorTypeOther.Value.AsString()
}

// Transport is for rest.Config.Wrap: requests that are made in a span (the
// reconciler's, not the watches of a cache) become CLIENT spans below it, and carry
// its context to the API server. A nil provider means OpenTelemetry's global one.
//
// What is wrapped can be reached as client-go and net/http do: idle connections are
// closed, and k8s.io/apimachinery/pkg/util/net finds the transport below.
func Transport(tp trace.TracerProvider) func(http.RoundTripper) http.RoundTripper {
	if tp == nil {
		tp = otel.GetTracerProvider()
	}
	return func(next http.RoundTripper) http.RoundTripper {
		if next == nil {
			next = http.DefaultTransport
		}
		return &transport{next: next, Transport: otelhttp.NewTransport(next,
			otelhttp.WithTracerProvider(tp),
			// They would count the requests of reconcilers only, under a name that
			// promises all.
			otelhttp.WithMeterProvider(metricnoop.NewMeterProvider()),
			otelhttp.WithPropagators(propagation.TraceContext{}), // and no baggage
			otelhttp.WithFilter(func(r *http.Request) bool {
				return trace.SpanContextFromContext(r.Context()).IsValid()
			}),
		)}
	}
}

// transport adds to otelhttp's what it hides of the one below.
type transport struct {
	*otelhttp.Transport
	next http.RoundTripper
}

var _ utilnet.RoundTripperWrapper = (*transport)(nil)

func (t *transport) WrappedRoundTripper() http.RoundTripper { return t.next }

// CloseIdleConnections is what http.Client asks for.
func (t *transport) CloseIdleConnections() {
	switch t.next.(type) {
	case interface{ CloseIdleConnections() }, utilnet.RoundTripperWrapper:
		utilnet.CloseIdleConnectionsFor(t.next) // of others it would log that it does not know them
	}
}
