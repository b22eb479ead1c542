package main

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// remote is a context as a request brings it.
func remote(flags trace.TraceFlags) context.Context {
	return trace.ContextWithRemoteSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: flags, Remote: true}))
}

func TestACapHoldsWhateverContextsAsk(t *testing.T) {
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSampler(newCappedSampler(5))).Tracer("")
	count := func(parent context.Context) (sampled int) {
		for range 1000 {
			ctx, span := tracer.Start(parent, "POST /mutate")
			if span.SpanContext().IsSampled() {
				sampled++
				// What is below a sampled call is part of it, and not counted again.
				if _, child := tracer.Start(ctx, "mutate"); !child.SpanContext().IsSampled() {
					t.Error("the span below a sampled one is not sampled")
				}
			}
		}
		return sampled
	}
	if got := count(remote(trace.FlagsSampled)); got < 5 || got > 50 {
		t.Errorf("%d of 1000 calls with a sampled context were sampled, want about 5", got)
	}
	if got := count(remote(0)); got != 0 {
		t.Errorf("%d of 1000 calls whose context is not sampled were sampled, want none", got)
	}
	if got := count(context.Background()); got > 50 {
		t.Errorf("%d of 1000 calls without a context were sampled, want about 5", got)
	}
}

// A Collector that takes connections and never answers must not hold the end up for
// longer than it is allowed to.
func TestABlackHoleForACollectorHoldsNothingUp(t *testing.T) {
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	for _, protocol := range []string{"grpc", "http/protobuf"} {
		t.Run(protocol, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+hole.Addr().String())
			t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "120000") // what a wait would take
			telemetry, err := startTelemetry(t.Context(), telemetryOptions{ServiceName: "test", OnError: func(error) {}})
			if err != nil {
				t.Fatal(err)
			}
			started := time.Now()
			for range 5000 { // more than the queue holds
				_, span := telemetry.tracerProvider.Tracer("").Start(t.Context(), "span")
				span.End()
			}
			if took := time.Since(started); took > 20*time.Second {
				t.Errorf("5000 spans took %s: a full queue must drop, not wait", took)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			err = telemetry.shutdown(ctx)
			if took := time.Since(started); took > 40*time.Second {
				t.Errorf("the end took %s with a deadline of 200ms", took)
			}
			if err == nil || !strings.Contains(err.Error(), "deadline") {
				t.Errorf("got %v, want that spans were lost because of the deadline", err)
			}
		})
	}
}

func TestTheClusterNameIsOfEverySpanAndMetricUnlessTheEnvironmentSaysAnother(t *testing.T) {
	for _, c := range []struct{ flag, variable, want string }{
		{"east", "", "east"},
		{"east", "k8s.cluster.name=west", "west"},
		{"", "k8s.cluster.name=west", "west"},
		{"", "", ""},
	} {
		t.Setenv("OTEL_RESOURCE_ATTRIBUTES", c.variable)
		t.Setenv("OTEL_TRACES_EXPORTER", "none")
		spans, registry := tracetest.NewSpanRecorder(), prometheus.NewRegistry()
		// The handler is the process's: what the test above has left still tells it that it cannot send.
		telemetry, err := startTelemetry(t.Context(), telemetryOptions{ServiceName: "s", ClusterName: c.flag, Registry: registry, Processor: spans, OnError: func(error) {}})
		if err != nil {
			t.Fatal(err)
		}
		_, span := telemetry.tracerProvider.Tracer("").Start(t.Context(), "x")
		span.End()
		got, _ := spans.Ended()[0].Resource().Set().Value("k8s.cluster.name")
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		label := ""
		for _, f := range families {
			for _, l := range f.GetMetric()[0].GetLabel() {
				if f.GetName() == "target_info" && l.GetName() == "k8s_cluster_name" {
					label = l.GetValue()
				}
			}
		}
		if got.AsString() != c.want || label != c.want {
			t.Errorf("--cluster-name %q and OTEL_RESOURCE_ATTRIBUTES=%q: spans have %q, metrics %q, want %q", c.flag, c.variable, got.AsString(), label, c.want)
		}
		if err := telemetry.shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
