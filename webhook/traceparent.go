package webhook

// A span context as text, as it is stored, and back. Pure. Package cause has the rest of
// how it is stored, for those who read it.

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/tracehook/tracehook/webhook/cause"
)

// Cause is a stored trace context: what a consumer of the object should continue
// from or link to. The zero Cause is none.
type Cause struct {
	Traceparent, Tracestate string
	// At is when it was stored; zero means that this is not known.
	At time.Time

	vouched bool   // At and place were stored with this traceparent
	place   uint32 // placeOf the request that stored it
	wanted  int    // how many objects the owner wants that has it; 0: not known
}

// causeOf writes a span context.
func causeOf(span trace.SpanContext) Cause {
	return Cause{Traceparent: formatTraceparent(span), Tracestate: boundTracestate(span.TraceState().String())}
}

// SpanContext reads the cause. It is invalid where the cause is none, or is not
// what the W3C defines.
func (c Cause) SpanContext() trace.SpanContext { return cause.Parse(c.Traceparent, c.Tracestate) }

// aged says whether the cause was stored so long ago that what is made now does not continue it.
func (c Cause) aged(now time.Time) bool {
	return !c.At.IsZero() && now.Sub(c.At).Abs() > continuesFor
}

// causedAtLayout is RFC 3339 with milliseconds, in UTC.
const causedAtLayout = "2006-01-02T15:04:05.000Z"

// formatCausedAt writes the annotation beside a traceparent: when that was stored, and two checksums. The
// first is of the traceparent. A client that chooses another one leaves the annotation as it is or
// away; whoever copies an object copies both. The second is of the place, too, to know what this very
// request has stored. It proves nothing: who forges it gets an object
// stamped with the request that it really comes from.
func formatCausedAt(at time.Time, traceparent string, place uint32) string {
	var space [len(causedAtLayout) + 1 + 16]byte
	text := append(at.UTC().AppendFormat(space[:0], causedAtLayout), ' ')
	text = hex.AppendEncode(text, binary.BigEndian.AppendUint32(nil, checksum(traceparent)))
	return string(hex.AppendEncode(text, binary.BigEndian.AppendUint32(nil, place)))
}

// readCausedAt reads that annotation, if it is of this traceparent.
func (c *Cause) readCausedAt(text string) {
	const length = len(causedAtLayout) + 1 + 16
	if len(text) != length {
		return
	}
	at, err := time.Parse(causedAtLayout, text[:len(causedAtLayout)])
	var sums [8]byte
	if _, err2 := hex.Decode(sums[:], []byte(text[len(causedAtLayout)+1:])); err != nil || err2 != nil || binary.BigEndian.Uint32(sums[:]) != checksum(c.Traceparent) {
		return
	}
	c.At, c.place, c.vouched = at, binary.BigEndian.Uint32(sums[4:]), true
}

// placeOf is the checksum of a traceparent and the object on which this request stores it.
func placeOf(req *Request, traceparent string) uint32 {
	return checksum(traceparent, req.Resource.Group, req.Resource.Resource, req.Namespace, req.Name)
}

// checksum is FNV-1a (32 bits, http://www.isthe.com/chongo/tech/comp/fnv/).
func checksum(parts ...string) uint32 {
	const offset, prime = 2166136261, 16777619
	hash := uint32(offset)
	for _, part := range parts {
		for i := range len(part) {
			hash = (hash ^ uint32(part[i])) * prime
		}
		hash = (hash ^ 0xff) * prime // no part has this byte
	}
	return hash
}

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
