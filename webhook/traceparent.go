package webhook

// A span context as text, as it is stored, and back. Pure. Package cause has the rest of
// how it is stored, for those who read it.

import (
	"encoding/hex"
	"strings"

	"go.opentelemetry.io/otel/trace"

	"github.com/tracehook/tracehook/webhook/cause"
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
func (c Cause) SpanContext() trace.SpanContext { return cause.Parse(c.Traceparent, c.Tracestate) }

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
	for len(s) > cause.MaxTracestateBytes {
		s = s[:max(0, strings.LastIndexByte(s, ','))]
	}
	return s
}
