package webhook

// The spans `create <Kind>` of TraceContextOptions.CreateSpans: an object that a controller
// creates and the cause of its owner in, a span below that cause out. No span is made in a dry run,
// where the cause is not to be believed, or not sampled, and no more of them for an
// owner than tell something: a controller tries again and again what a quota refuses.

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tracehook/tracehook/webhook/cause"
)

const (
	// usuallyWanted is how many objects an owner is taken to want where it does not say.
	usuallyWanted = 10
	// A wanted object may be made anew: one more span in this time.
	createSpanEvery = time.Minute
	// rememberedOwners bounds the memory: about 100 bytes each.
	rememberedOwners = 4096
)

// writeCreateSpan makes the span `create <Kind>` below the cause and remembers it under
// a key that no controller copies over. It is invalid where none is to be made.
func (t *TraceContext) writeCreateSpan(ctx context.Context, req *Request, resp *Response, owner metav1.OwnerReference, below Cause) trace.SpanContext {
	parent := below.SpanContext()
	if t.createSpans == nil || !req.trusts() || req.DryRun || !parent.IsSampled() {
		return trace.SpanContext{}
	}
	// From an earlier call in the same request (reinvocation).
	text, _ := resp.Annotation(t.createKey)
	if made := cause.Parse(text, below.Tracestate); made.TraceID() == parent.TraceID() {
		return made
	}
	if !t.createSpans.allow(owner.UID, below.wanted, t.now()) {
		return trace.SpanContext{}
	}
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer(scopeName, trace.WithSchemaURL(semconv.SchemaURL))
	_, span := tracer.Start(trace.ContextWithRemoteSpanContext(ctx, parent), "create "+clip(req.Kind.Kind),
		trace.WithLinks(trace.Link{SpanContext: req.SpanContext}),
		trace.WithAttributes(requestAttributes(req)...))
	recorded := span.IsRecording() && span.SpanContext().IsSampled()
	span.End()
	if !recorded { // a sampler's decision: nobody will ever see that span
		return trace.SpanContext{}
	}
	resp.SetAnnotation(t.createKey, formatTraceparent(span.SpanContext()))
	return span.SpanContext()
}

// createSpans bounds the spans made for the objects of one owner.
type createSpans struct {
	mu     sync.Mutex
	owners *simplelru.LRU[types.UID, createSpansMade]
}

type createSpansMade struct {
	count int
	last  time.Time
}

func newCreateSpans() *createSpans {
	owners, _ := simplelru.NewLRU[types.UID, createSpansMade](rememberedOwners, nil) // an error only of size 0
	return &createSpans{owners: owners}
}

// allow says whether an owner that wants so many objects (0: not known) gets one more span.
func (c *createSpans) allow(owner types.UID, wanted int, now time.Time) bool {
	if len(owner) > mostText {
		return false // no UID, and not to be remembered
	}
	if wanted <= 0 {
		wanted = usuallyWanted
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	made, _ := c.owners.Get(owner)
	if made.count >= wanted && now.Sub(made.last) < createSpanEvery {
		return false
	}
	c.owners.Add(owner, createSpansMade{made.count + 1, now})
	return true
}
