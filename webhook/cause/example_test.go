package cause_test

import (
	"context"
	"fmt"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/webhook/cause"
)

// An object as tracehook has stamped it: any kind will do, and metadata is enough.
var stamped = &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
	Namespace: "shop", Name: "web",
	Annotations: map[string]string{"tracehook.dev/traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
}}

// Work on an object links to the request that caused it.
func ExampleStart() {
	recorder := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer("shop-operator")

	_, span := cause.Start(context.Background(), tracer, "reconcile shop", stamped, cause.Options{})
	span.End()

	ended := recorder.Ended()[0]
	fmt.Println(ended.Name(), "links to", ended.Links()[0].SpanContext.TraceID())
	// Output:
	// reconcile shop links to 4bf92f3577b34da6a3ce929d0e0e4736
}

// By option the work is part of the trace of the request that caused it.
func ExampleStart_parent() {
	recorder := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer("shop-operator")

	_, span := cause.Start(context.Background(), tracer, "reconcile shop", stamped, cause.Options{Parent: true})
	span.End()

	ended := recorder.Ended()[0]
	fmt.Println(ended.Name(), "is in trace", ended.SpanContext().TraceID(), "below", ended.Parent().SpanID())
	// Output:
	// reconcile shop is in trace 4bf92f3577b34da6a3ce929d0e0e4736 below 00f067aa0ba902b7
}

// A unit test of a controller's work needs neither a cluster nor a tracer: an object that
// is gone has no cause, and without a tracer nothing is recorded.
func ExampleStart_gone() {
	var gone *metav1.PartialObjectMetadata // as a lister returns it
	_, span := cause.Start(context.Background(), nil, "reconcile shop", gone, cause.Options{})
	span.End()
	fmt.Println(span.IsRecording())
	// Output:
	// false
}

// What is stored may be read without starting anything, and under any key.
func ExampleOf() {
	found, err := cause.Of(stamped, "tracehook.dev/traceparent", "shop.example/traceparent")
	fmt.Println(found.TraceID(), found.IsSampled(), err)

	stamped := stamped.DeepCopy()
	stamped.Annotations["tracehook.dev/traceparent"] = "what a user may write"
	found, err = cause.Of(stamped)
	fmt.Println(found.IsValid(), err)
	// Output:
	// 4bf92f3577b34da6a3ce929d0e0e4736 true <nil>
	// false invalid trace context: annotation tracehook.dev/traceparent
}
