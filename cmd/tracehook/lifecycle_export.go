package main

// How the spans of `lifecycle` leave. In: spans, with the ids that they are to have. Out: the same, exported, or counted as lost. No
// request waits for them, so unlike those of `serve` they wait for the Collector.

import (
	"context"
	"crypto/rand"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/tracehook/tracehook/webhook/cause/lifecycle"
)

// wantedIDs is an IDGenerator that gives a span the ids that its context asks for.
type wantedIDs struct{}

func (wantedIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if traceID, spanID, ok := lifecycle.WantedIDs(ctx); ok {
		return traceID, spanID
	}
	var traceID trace.TraceID
	var spanID trace.SpanID
	_, _ = rand.Read(traceID[:]) // it never fails
	_, _ = rand.Read(spanID[:])
	return traceID, spanID
}

func (w wantedIDs) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	_, spanID := w.NewIDs(ctx)
	return spanID
}

const (
	// exportPatience is how long one batch is tried. A batch that a Collector refuses for its contents is given up then, and the
	// next one has its turn.
	exportPatience = 15 * time.Minute
	exportPause    = time.Second
	// exportTry is how long one try may take; the exporter's own retries are in it.
	exportTry = 30 * time.Second
)

// patientExporter tries again until a batch is exported.
type patientExporter struct {
	sdktrace.SpanExporter
	onError func(error)
	// end is closed when the process ends: then nothing is waited for.
	end <-chan struct{}
}

func (e *patientExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithTimeout(ctx, exportPatience)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, exportTry)
		err := e.SpanExporter.ExportSpans(try, spans)
		stop()
		if err == nil {
			return nil
		}
		e.onError(err)
		select {
		case <-ctx.Done():
			return err
		case <-e.end:
			return err
		case <-time.After(exportPause):
		}
	}
}
