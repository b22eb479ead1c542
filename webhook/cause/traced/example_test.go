package traced_test

import (
	"context"
	"fmt"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/tracehook/tracehook/webhook/cause/traced"
)

// A reconciler that somebody has written, wrapped where it is registered. In a
// program the reader is manager.GetClient(), and the provider is left to be the
// global one.
func ExampleReconciler() {
	recorder := tracetest.NewSpanRecorder()
	options := traced.Options{Name: "shop", TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))}

	shop := reconcile.Func(func(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
		log.FromContext(ctx).Info("at work") // with trace_id and span_id
		return reconcile.Result{}, nil
	})
	wrapped := traced.Reconciler(shop, traced.Read(reader{obj: source()}, &corev1.ConfigMap{}), options)
	_, err := wrapped.Reconcile(context.Background(), request)

	span := recorder.Ended()[0]
	fmt.Println(span.Name(), "links to", span.Links()[0].SpanContext.TraceID(), err)
	// Output:
	// reconcile shop links to 0af7651916cd43dd8448eb211c80319c <nil>
}

// A unit test needs no cluster: the objects are in controller-runtime's fake client. One
// that is gone is reconciled too.
func ExampleRead() {
	recorder := tracetest.NewSpanRecorder()
	options := traced.Options{Name: "shop", TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))}
	client := fake.NewClientBuilder().WithObjects(source()).Build()

	wrapped := traced.Reconciler(reconcile.Func(nothing), traced.Read(client, &corev1.ConfigMap{}), options)
	_, err1 := wrapped.Reconcile(context.Background(), request)
	_ = client.Delete(context.Background(), source())
	_, err2 := wrapped.Reconcile(context.Background(), request)

	for i, err := range []error{err1, err2} {
		fmt.Println(recorder.Ended()[i].Name(), "has", len(recorder.Ended()[i].Links()), "links", err)
	}
	// Output:
	// reconcile shop has 1 links <nil>
	// reconcile shop has 0 links <nil>
}
