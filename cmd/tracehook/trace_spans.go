package main

// The spans that `trace` makes itself. In: spans as they end. Out: a trace that can be drawn
// where no store is asked, and that completes what a store has. Errors: none.

import (
	"context"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// mostOwnSpans bounds what is kept of a command that makes calls for days.
const mostOwnSpans = 10_000

// ownSpans is an sdktrace.SpanProcessor that keeps what it sees. The zero value is ready.
type ownSpans struct {
	mu    sync.Mutex
	spans []sdktrace.ReadOnlySpan
}

func (o *ownSpans) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

func (o *ownSpans) OnEnd(s sdktrace.ReadOnlySpan) {
	o.mu.Lock()
	defer o.mu.Unlock()
	// The command's own span, which ends last, is the root of all others.
	if len(o.spans) < mostOwnSpans || s.SpanKind() == trace.SpanKindInternal {
		o.spans = append(o.spans, s)
	}
}

func (o *ownSpans) Shutdown(context.Context) error   { return nil }
func (o *ownSpans) ForceFlush(context.Context) error { return nil }

// trace is what was kept of one trace, and calls the ids of the API calls in it.
func (o *ownSpans) trace(id trace.TraceID) (own tracestore.Trace, calls []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	own.ID = id.String()
	for _, s := range o.spans {
		if s.SpanContext().TraceID() != id {
			continue
		}
		span := storedSpan(s)
		if span.Kind == tracestore.KindClient {
			calls = append(calls, span.ID)
		}
		own.Spans = append(own.Spans, span)
	}
	return tracestore.Merge(tracestore.Trace{}, own), calls
}

// storedSpan is a span as a store would return it.
func storedSpan(s sdktrace.ReadOnlySpan) tracestore.Span {
	out := tracestore.Span{
		ID:            s.SpanContext().SpanID().String(),
		Scope:         s.InstrumentationScope().Name,
		ScopeVersion:  s.InstrumentationScope().Version,
		Name:          s.Name(),
		Kind:          s.SpanKind().String(),
		Start:         s.StartTime(),
		Duration:      s.EndTime().Sub(s.StartTime()),
		Attributes:    plainAttributes(s.Attributes()),
		StatusMessage: s.Status().Description,
		Resource:      plainAttributes(s.Resource().Attributes()),
	}
	if s.Parent().SpanID().IsValid() {
		out.ParentID = s.Parent().SpanID().String()
	}
	switch s.Status().Code {
	case codes.Ok:
		out.Status = tracestore.StatusOK
	case codes.Error:
		out.Status = tracestore.StatusError
	}
	for _, e := range s.Events() {
		out.Events = append(out.Events, tracestore.Event{Time: e.Time, Name: e.Name, Attributes: plainAttributes(e.Attributes)})
	}
	for _, l := range s.Links() {
		out.Links = append(out.Links, tracestore.Link{TraceID: l.SpanContext.TraceID().String(), SpanID: l.SpanContext.SpanID().String()})
	}
	out.Service, _ = out.Resource["service.name"].(string)
	delete(out.Resource, "service.name")
	return out
}

func plainAttributes(attributes []attribute.KeyValue) map[string]any {
	values := make(map[string]any, len(attributes))
	for _, a := range attributes {
		switch a.Value.Type() {
		case attribute.BOOL, attribute.INT64, attribute.FLOAT64, attribute.STRING:
			values[string(a.Key)] = a.Value.AsInterface()
		default:
			values[string(a.Key)] = a.Value.String()
		}
	}
	return values
}
