package webhook

import (
	"context"
	"encoding/binary"
	"math/rand/v2"

	"go.opentelemetry.io/otel/trace"
)

// SpanIDs is an id generator for the OpenTelemetry SDK (sdk/trace.WithIDGenerator)
// whose span ids can be told from everybody else's: 40 bits are random, the other
// 24 follow from those and the trace id.
//
// TraceContext needs it to know its own stamps again: `kubectl rollout undo` writes
// an old ReplicaSet's annotations back to the Deployment, and such a stamp that
// comes back is no value that a client has chosen. Without SpanIDs it is taken for
// one, and the rollback is not stamped.
//
// The mark needs no other annotation, no key, and no state that replicas would have
// to share. It is no proof of origin: who forges it gets an object stamped with the
// request that it really comes from.
type SpanIDs struct{}

// NewIDs makes the ids of a trace's first span.
func (s SpanIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	var id trace.TraceID
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
		binary.NativeEndian.PutUint64(id[8:], rand.Uint64())
	}
	return id, s.NewSpanID(ctx, id)
}

// NewSpanID makes the id of a further span.
func (SpanIDs) NewSpanID(_ context.Context, traceID trace.TraceID) trace.SpanID {
	id := trace.SpanID{}
	for !id.IsValid() {
		id = markSpanID(traceID, rand.Uint64())
	}
	return id
}

// markSpanID makes a span id of 40 random bits.
func markSpanID(traceID trace.TraceID, random uint64) (id trace.SpanID) {
	random &= 1<<40 - 1
	binary.BigEndian.PutUint64(id[:], random<<24|spanIDMark(traceID, random))
	return id
}

// isMarked says whether SpanIDs made this span's id. Of other ids one in 16 million looks so.
func isMarked(span trace.SpanContext) bool {
	id := span.SpanID()
	bits := binary.BigEndian.Uint64(id[:])
	return bits&(1<<24-1) == spanIDMark(span.TraceID(), bits>>24)
}

// spanIDMark is 24 bits of FNV-1a (64 bits, http://www.isthe.com/chongo/tech/comp/fnv/)
// over the trace id and the random bits.
func spanIDMark(traceID trace.TraceID, random uint64) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	hash := uint64(offset)
	for _, b := range traceID {
		hash = (hash ^ uint64(b)) * prime
	}
	for ; random > 0; random >>= 8 {
		hash = (hash ^ random&0xff) * prime
	}
	return (hash ^ hash>>24 ^ hash>>48) & (1<<24 - 1)
}
