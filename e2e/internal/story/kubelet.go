package story

// What a kubelet that traces sends. In: a Pod. Out: a trace of its own in the cluster's Collector. Errors end the test.

import (
	"context"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	sdkresource "go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
)

// SendAsKubelet sends the trace that a kubelet with containerd makes of a Pod: a root of its own.
func SendAsKubelet(t *testing.T, c *cluster.Cluster, uid, name, namespace string) {
	t.Helper()
	exporter, err := otlptracegrpc.New(Within(t, time.Minute), otlptracegrpc.WithEndpoint(c.CollectorGRPC), otlptracegrpc.WithInsecure())
	if err != nil {
		t.Fatal(err)
	}
	as := func(service string) *sdktrace.TracerProvider {
		return sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter), sdktrace.WithResource(sdkresource.NewSchemaless(semconv.ServiceName(service))))
	}
	// Times of its own: to export a span takes a while, too.
	began := time.Now().Add(-100 * time.Millisecond)
	after := func(ms int) trace.SpanEventOption {
		return trace.WithTimestamp(began.Add(time.Duration(ms) * time.Millisecond))
	}
	ctx, root := as("kubelet").Tracer("kubelet").Start(t.Context(), "syncPod", after(0))
	root.SetAttributes(attribute.String("k8s.pod.uid", uid), attribute.String("k8s.pod.name", name), attribute.String("k8s.namespace.name", namespace))
	_, pull := as("containerd").Tracer("containerd").Start(ctx, "PullImage", after(1))
	pull.End(after(21))
	root.End(after(22))
	flush, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	if err := exporter.Shutdown(flush); err != nil {
		t.Fatal(err)
	}
}
