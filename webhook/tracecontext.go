package webhook

// Mutator: the request's span context in, one annotation out.

import (
	"context"
	"encoding/hex"

	"go.opentelemetry.io/otel/trace"
	admissionv1 "k8s.io/api/admission/v1"
)

// DefaultAnnotationKey is where the trace context is stored. KEP-5915's
// tracing.k8s.io/traceparent belongs to upstream, so it is a choice, not the default.
const DefaultAnnotationKey = "tracehook.dev/traceparent"

// TraceContext stamps the object that a request creates with the request's
// trace context, in the form of a W3C traceparent header, so that workloads and
// tools can go on from there.
type TraceContext struct {
	// Key of the annotation; "" means DefaultAnnotationKey.
	Key string
}

// Mutate stamps objects on CREATE that carry no trace context yet. Subresources
// (a binding, an eviction) are other objects than the one to be stamped.
func (t TraceContext) Mutate(_ context.Context, req *Request, resp *Response) error {
	if req.Operation != admissionv1.Create || req.SubResource != "" || req.Object.Raw == nil {
		return nil
	}
	key := t.Key
	if key == "" {
		key = DefaultAnnotationKey
	}
	if _, stamped := resp.Annotation(key); stamped || !req.SpanContext.IsValid() {
		return nil
	}
	resp.SetAnnotation(key, traceparent(req.SpanContext))
	return nil
}

// traceparent writes a span context as the header of that name
// (https://www.w3.org/TR/trace-context/#traceparent-header, version 00).
func traceparent(span trace.SpanContext) string {
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
