package show

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// What the OpenTelemetry SDK exports comes back unchanged, through the Collector and Jaeger as they are shipped.
func TestSpansComeBackFromARealJaeger(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	client := &tracestore.Client{BaseURL: shared.JaegerURL}

	front := newService(ctx, t, "front")
	back := newService(ctx, t, "back")

	start := time.Unix(0, 1795000000123456789).UTC()
	other := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{15: 7}, SpanID: trace.SpanID{7: 9}, TraceFlags: trace.FlagsSampled})

	rootCtx, root := front.Start(ctx, "order", trace.WithTimestamp(start))
	callCtx, call := front.Start(rootCtx, "POST /pay", trace.WithTimestamp(start.Add(10*time.Microsecond)),
		trace.WithSpanKind(trace.SpanKindClient), trace.WithLinks(trace.Link{SpanContext: other}),
		trace.WithAttributes(
			attribute.String("text", "a\nb"), attribute.Bool("flag", true), attribute.Int64("large", 1<<62),
			attribute.Float64("ratio", 0.25), attribute.StringSlice("list", []string{"x", "y"})))
	call.AddEvent("sent", trace.WithTimestamp(start.Add(30*time.Microsecond)), trace.WithAttributes(attribute.Int("bytes", 12)))
	_, serve := back.Start(callCtx, "POST /pay", trace.WithTimestamp(start.Add(50*time.Microsecond)), trace.WithSpanKind(trace.SpanKindServer))
	serve.SetStatus(codes.Error, "no money")
	serve.End(trace.WithTimestamp(start.Add(70 * time.Microsecond)))
	call.End(trace.WithTimestamp(start.Add(90 * time.Microsecond)))
	root.SetStatus(codes.Ok, "")
	root.End(trace.WithTimestamp(start.Add(1500 * time.Microsecond)))

	// An orphan: its parent is never exported.
	lostParent := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: root.SpanContext().TraceID(), SpanID: trace.SpanID{1, 2, 3, 4, 5, 6, 7, 8}, TraceFlags: trace.FlagsSampled, Remote: true})
	_, orphan := back.Start(trace.ContextWithRemoteSpanContext(ctx, lostParent), "ship",
		trace.WithTimestamp(start.Add(80*time.Microsecond)), trace.WithSpanKind(trace.SpanKindConsumer))
	orphan.End(trace.WithTimestamp(start.Add(85 * time.Microsecond)))

	id := root.SpanContext().TraceID().String()
	got, err := client.Wait(ctx, id, func(trace tracestore.Trace) error {
		if n := len(trace.Spans); n != 4 {
			return fmt.Errorf("%d of 4 spans", n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	none := map[string]any{}
	spanID := func(s trace.Span) string { return s.SpanContext().SpanID().String() }
	want := tracestore.Trace{ID: id, Spans: []tracestore.Span{
		{
			ID: spanID(root), Service: "front", Scope: "store_test", ScopeVersion: "1", Name: "order", Kind: tracestore.KindInternal,
			Start: start, Duration: 1500 * time.Microsecond, Attributes: none, Status: tracestore.StatusOK,
			Resource: map[string]any{"host.name": "front.example"},
		},
		{
			ID: spanID(call), ParentID: spanID(root), Service: "front", Scope: "store_test", ScopeVersion: "1", Name: "POST /pay", Kind: tracestore.KindClient,
			Start: start.Add(10 * time.Microsecond), Duration: 80 * time.Microsecond,
			Attributes: map[string]any{"text": "a\nb", "flag": true, "large": int64(1 << 62), "ratio": 0.25, "list": `["x","y"]`},
			Events:     []tracestore.Event{{Time: start.Add(30 * time.Microsecond), Name: "sent", Attributes: map[string]any{"bytes": int64(12)}}},
			Links:      []tracestore.Link{{TraceID: "00000000000000000000000000000007", SpanID: "0000000000000009"}},
			Resource:   map[string]any{"host.name": "front.example"},
		},
		{
			ID: spanID(serve), ParentID: spanID(call), Service: "back", Scope: "store_test", ScopeVersion: "1", Name: "POST /pay", Kind: tracestore.KindServer,
			Start: start.Add(50 * time.Microsecond), Duration: 20 * time.Microsecond, Attributes: none,
			Status: tracestore.StatusError, StatusMessage: "no money", Resource: map[string]any{"host.name": "back.example"},
		},
		{
			ID: spanID(orphan), ParentID: "0102030405060708", Service: "back", Scope: "store_test", ScopeVersion: "1", Name: "ship", Kind: tracestore.KindConsumer,
			Start: start.Add(80 * time.Microsecond), Duration: 5 * time.Microsecond, Attributes: none,
			Resource: map[string]any{"host.name": "back.example"},
		},
	}}
	for i := range want.Spans {
		if i < len(got.Spans) && !reflect.DeepEqual(got.Spans[i], want.Spans[i]) {
			t.Errorf("span %d came back as\n%+v\nwant\n%+v", i, got.Spans[i], want.Spans[i])
		}
	}
	if got.ID != want.ID || len(got.Spans) != len(want.Spans) {
		t.Errorf("trace %s with %d spans came back, want %s with %d", got.ID, len(got.Spans), want.ID, len(want.Spans))
	}
	if forest := got.Forest(); len(forest) != 2 || forest[1].Lost != tracestore.ParentMissing {
		t.Errorf("the orphan is not a tree of its own: %d trees", len(forest))
	}

	if _, err := client.Trace(ctx, "00000000000000000000000000000bad"); !errors.Is(err, tracestore.ErrNotFound) {
		t.Errorf("a trace that was never sent gives %v, want ErrNotFound", err)
	}
}

// newService is a tracer whose spans go to the Collector under the given service name.
func newService(ctx context.Context, t *testing.T, name string) trace.Tracer {
	t.Helper()
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(shared.CollectorGRPC), otlptracegrpc.WithInsecure())
	if err != nil {
		t.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter, sdktrace.WithBatchTimeout(50*time.Millisecond)),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", name), attribute.String("host.name", name+".example"))))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			t.Errorf("shut %s down: %v", name, err)
		}
	})
	return provider.Tracer("store_test", trace.WithInstrumentationVersion("1"))
}
