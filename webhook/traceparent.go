package webhook

// A span context as text, as it is stored, and back. Pure.

import (
	"context"
	"encoding/hex"
	"strings"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

const (
	// A stored traceparent longer than this is not looked at: version 00 has 55
	// characters, and later ones may only append (W3C Trace Context, 3.2.4).
	maxTraceparent = 256
	// maxTracestate is what every vendor must be able to carry (W3C Trace Context, 3.3.1.5).
	maxTracestate = 512
)

// Cause is a stored trace context: what a consumer of the object should continue
// from or link to. The zero Cause is none.
type Cause struct {
	Traceparent, Tracestate string
}

// causeOf writes a span context.
func causeOf(span trace.SpanContext) Cause {
	return Cause{Traceparent: formatTraceparent(span), Tracestate: boundTracestate(span.TraceState().String())}
}

// SpanContext reads the cause. It is invalid where the cause is none, or is not
// what the W3C defines.
func (c Cause) SpanContext() trace.SpanContext {
	if c.Traceparent == "" || len(c.Traceparent) > maxTraceparent {
		return trace.SpanContext{}
	}
	if len(c.Tracestate) > maxTracestate {
		c.Tracestate = ""
	}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), causeCarrier{c}))
}

// causeCarrier lets the propagator read a cause as it reads headers.
type causeCarrier struct{ Cause }

func (c causeCarrier) Get(key string) string {
	switch key {
	case "traceparent":
		return c.Traceparent
	case "tracestate":
		return c.Tracestate
	}
	return ""
}

func (c causeCarrier) Set(string, string) {}
func (c causeCarrier) Keys() []string     { return []string{"traceparent", "tracestate"} }

// formatTraceparent writes a span context as the header of that name
// (https://www.w3.org/TR/trace-context/#traceparent-header, version 00).
func formatTraceparent(span trace.SpanContext) string {
	var b [55]byte
	traceID, spanID := span.TraceID(), span.SpanID()
	copy(b[:], "00-")
	hex.Encode(b[3:35], traceID[:])
	b[35] = '-'
	hex.Encode(b[36:52], spanID[:])
	copy(b[52:], "-00")
	if span.IsSampled() {
		b[54] = '1'
	}
	return string(b[:])
}

// boundTracestate drops members from the end, the oldest ones, until the rest is short enough.
func boundTracestate(s string) string {
	for len(s) > maxTracestate {
		s = s[:max(0, strings.LastIndexByte(s, ','))]
	}
	return s
}

// siblingKey is the key beside another one: the same prefix, another name.
func siblingKey(key, name string) string {
	return key[:strings.LastIndexByte(key, '/')+1] + name
}
