package webhook

// Mutator: the request's span context in, the object's cause as an annotation out.
// What is stored, and when, is the table in doc.go; decide is that table as code.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/tracehook/tracehook/webhook/cause"
)

// DefaultAnnotationKey is where the trace context is stored. KEP-5915's
// tracing.k8s.io/traceparent belongs to upstream, so it is a choice, not the default.
const DefaultAnnotationKey = cause.DefaultKey

const (
	// mirrorAnnotation marks the API server's image of a static Pod, which only its kubelet may change.
	mirrorAnnotation = "kubernetes.io/config.mirror"
	// instantiateAnnotation is "manual" on a Job that somebody made of a CronJob by hand
	// (`kubectl create job --from=cronjob/x`, Argo CD).
	instantiateAnnotation = "cronjob.kubernetes.io/instantiate"
)

const (
	// continuesFor is how long after a cause was stored an owner's new objects continue it. A
	// rollout is over by then; later, a Pod is made because a node was drained or a load grew.
	continuesFor = time.Hour
	// requestLasts is how long after its first call a webhook may be called again in the same
	// request (reinvocationPolicy). Other webhooks are called in between.
	requestLasts = 10 * time.Second
)

// Causes finds the stored trace context of an object's controller owner; see Owners.
// No cause and no error means that the owner has none stored.
type Causes interface {
	Cause(ctx context.Context, namespace string, owner metav1.OwnerReference) (Cause, error)
}

// TraceContextOptions of a TraceContext. The zero value stamps with sampled contexts
// and knows no lineage.
type TraceContextOptions struct {
	// Key of the annotation, PREFIX/NAME; "" means DefaultAnnotationKey. What belongs to it is
	// stored under the same prefix: PREFIX/tracestate, and those of package cause.
	Key string
	// Always stores contexts that are not sampled, too.
	Always bool
	// Causes finds what the controller owner of a created object has stored; nil
	// means that a controller's object gets the context of the controller's request.
	Causes Causes
	// CreateSpans makes a span `create <Kind>` in the cause's trace for each object
	// that a controller creates, and stores that span as the object's cause: the
	// trace of a Deployment then is one tree down to its Pods. Needs Causes. No such span is made
	// unless the handler's Trust is TrustParent: anybody may write the cause of an object.
	CreateSpans bool
	// MeterProvider makes the metrics; nil means none are made.
	MeterProvider metric.MeterProvider
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// TraceContext is the Mutator that stores an object's cause on it: the trace context
// of the request that wanted the object as it is, in the form of a W3C traceparent
// header, for workloads and tools to go on from.
type TraceContext struct {
	key, tracestateKey, causedAtKey, previousKey, createKey string

	always      bool
	causes      Causes
	createSpans *createSpans // nil: none are made
	now         func() time.Time
	stamps      metric.Int64Counter
	reasons     [reasons][]metric.AddOption
	attributes  [reasons][]attribute.KeyValue // of the span
}

// NewTraceContext checks the options.
func NewTraceContext(o TraceContextOptions) (*TraceContext, error) {
	if o.Key == "" {
		o.Key = DefaultAnnotationKey
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	t := &TraceContext{
		key: o.Key, tracestateKey: cause.TracestateKey(o.Key), causedAtKey: cause.CausedAtKey(o.Key),
		previousKey: cause.PreviousKey(o.Key), createKey: cause.CreateKey(o.Key),
		always: o.Always, causes: o.Causes, now: o.Now,
	}
	if len(validation.IsQualifiedName(o.Key)) > 0 || o.Key == t.tracestateKey || o.Key == t.causedAtKey || o.Key == t.previousKey || o.Key == t.createKey {
		return nil, fmt.Errorf("annotation key %q: want PREFIX/NAME such as %s", o.Key, DefaultAnnotationKey)
	}
	if o.CreateSpans {
		if o.Causes == nil {
			return nil, errors.New("CreateSpans needs Causes")
		}
		t.createSpans = newCreateSpans()
	}
	if o.MeterProvider == nil {
		o.MeterProvider = metricnoop.NewMeterProvider()
	}
	var err error
	t.stamps, err = o.MeterProvider.Meter(scopeName, metric.WithSchemaURL(semconv.SchemaURL)).Int64Counter("tracehook.stamps",
		metric.WithUnit("{object}"), metric.WithDescription("Objects looked at, by what was done about their stored trace context."))
	if err != nil {
		return nil, fmt.Errorf("create the counter of stamps: %w", err)
	}
	for r := range reasons {
		t.attributes[r] = []attribute.KeyValue{keyStamp.String(reasonNames[r])}
		t.reasons[r] = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(t.attributes[r]...))}
	}
	return t, nil
}

// reason is what is done about an object's stored context, and why: one row of the table in doc.go.
type reason int

const (
	reasonExcluded reason = iota
	reasonSameCall
	reasonUntouched
	reasonKept
	reasonCreated
	reasonOwned
	reasonLinked
	reasonInvalid
	reasonReturned
	reasonRestored
	reasonUpdated
	reasons // how many there are
)

var reasonNames = [reasons]string{
	reasonExcluded:  "excluded",
	reasonSameCall:  "same_trace",
	reasonUntouched: "untouched",
	reasonKept:      "kept",
	reasonCreated:   "created",
	reasonOwned:     "owned",
	reasonLinked:    "linked",
	reasonInvalid:   "invalid",
	reasonReturned:  "returned",
	reasonRestored:  "restored",
	reasonUpdated:   "updated",
}

// facts are what decide goes by.
type facts struct {
	operation admissionv1.Operation
	excluded  bool // a subresource, a mirror Pod, no object
	owned     bool // the object has a controller owner; on CREATE: which has made it …
	repeats   bool // … and makes such objects again and again
	once      bool // a Job or a Pod: what it is there for does not change
	present   bool // the annotation is on the object …
	valid     bool // … and is a traceparent …
	thisCall  bool // … that belongs to this very request …
	copied    bool // … or came with the rest of what tracehook writes: nobody has chosen it …
	aged      bool // … and was stored longer than continuesFor ago
	changed   bool // UPDATE: the annotation is not as it was
	wasValid  bool // UPDATE: it was a traceparent before
	desired   bool // UPDATE: something else is wanted than before
}

// decide is the table in doc.go. Pure.
func decide(f facts) reason {
	switch {
	case f.excluded:
		return reasonExcluded
	case f.thisCall && (f.operation == admissionv1.Create || f.changed):
		return reasonSameCall
	}
	switch f.operation {
	case admissionv1.Create:
		return decideCreate(f)
	case admissionv1.Update:
		return decideUpdate(f)
	}
	return reasonExcluded
}

func decideCreate(f facts) reason {
	switch {
	case f.present && !f.valid:
		return reasonInvalid
	case f.owned && f.copied && (f.repeats || f.aged): // from a template, say, made of an exported object
		return reasonOwned
	case !f.owned && f.copied:
		return reasonReturned
	case f.present:
		return reasonKept
	case f.owned:
		return reasonOwned
	}
	return reasonCreated
}

func decideUpdate(f facts) reason {
	desired := f.desired && !f.once
	switch {
	case f.owned:
		// Its controller writes it; to write against a controller is to fight it.
		return reasonUntouched
	case f.present && f.changed && (f.copied || !f.valid) && f.wasValid && !desired:
		return reasonRestored
	case f.present && f.changed && !f.valid:
		return reasonInvalid
	case f.present && f.changed && f.copied && desired:
		return reasonReturned
	case f.present && f.changed:
		return reasonKept
	case desired:
		return reasonUpdated
	}
	return reasonUntouched
}

// decideOwned goes on where decide has said that an object is its owner's: it continues
// what caused the owner, or has a cause of its own. Pure.
func decideOwned(ownerKind string, owners Cause, now time.Time) reason {
	if owners.SpanContext().IsValid() && (repeats(ownerKind) || ownerKind != jobKind && owners.aged(now)) {
		return reasonLinked
	}
	return reasonOwned
}

// jobKind is a Job, of whatever group: one piece of work, however long it waits or runs.
const jobKind = "Job"

// repeats says whether owners of this kind make work again and again, by the names that such kinds have:
// CronJob, CronWorkflow, ScheduledSparkApplication, BackupSchedule.
func repeats(kind string) bool {
	return strings.Contains(kind, "Cron") || strings.HasPrefix(kind, "Scheduled") || strings.HasSuffix(kind, "Schedule")
}

// runsOnce says whether an object is one piece of work, whose cause is who submitted it.
func runsOnce(r metav1.GroupVersionResource) bool {
	return r.Group == "batch" && r.Resource == "jobs" || r.Group == "" && r.Resource == "pods"
}

// Mutate stores the cause where the table in doc.go says so.
func (t *TraceContext) Mutate(ctx context.Context, req *Request, resp *Response) error {
	now := t.now()
	stored, present := t.read(resp.Annotation)
	storedSpan := stored.SpanContext()
	owner, owned := req.Object.ControllerOwner()
	if req.Operation == admissionv1.Create && madeByHand(req, owner) {
		owned = false
	}
	f := facts{
		operation: req.Operation,
		excluded:  req.SubResource != "" || req.Object.Raw == nil || !persisted(req),
		owned:     owned,
		repeats:   owned && repeats(owner.Kind),
		once:      runsOnce(req.Resource),
		present:   present,
		valid:     storedSpan.IsValid(),
		copied:    storedSpan.IsValid() && stored.vouched,
		aged:      stored.aged(now),
	}
	if _, mirror := req.Object.Annotation(mirrorAnnotation); mirror {
		f.excluded = true
	}
	var old Cause
	if req.Operation == admissionv1.Update {
		deadline, _ := ctx.Deadline()
		var wasPresent bool
		old, wasPresent = t.read(req.OldObject.Annotation)
		f.wasValid = old.SpanContext().IsValid()
		f.changed = wasPresent != present || old.Traceparent != stored.Traceparent
		f.desired = !desiredStateEqual(&req.Object, &req.OldObject) && !onlyScaled(&req.Object, &req.OldObject, deadline)
	}
	f.thisCall = f.valid && belongsTo(req, stored, old, now)

	r := decide(f)
	var owners Cause
	if r == reasonOwned || r == reasonInvalid && owned {
		owners = t.causeOf(ctx, req, owner)
		if r == reasonOwned {
			r = decideOwned(owner.Kind, owners, now)
		}
	}
	t.stamps.Add(ctx, 1, t.reasons[r]...)
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(t.attributes[r]...)
	}

	if present && !f.valid && (r == reasonInvalid || r == reasonRestored) {
		resp.Warn(fmt.Sprintf("annotation %s: %q is no W3C traceparent and was replaced", t.key, clip(stored.Traceparent)))
	}
	replaced := old
	if !f.wasValid {
		replaced = stored
	}
	switch r {
	case reasonExcluded, reasonUntouched:
		return nil
	case reasonSameCall:
		if f.copied {
			return nil
		}
		// The client has chosen the trace that it is in.
		t.writeCausedAt(req, resp, stored.Traceparent, now)
		if f.wasValid {
			t.replace(req, resp, stored, old)
			link(req, resp, old)
		}
		return nil
	case reasonRestored:
		t.restore(req, resp)
		return nil
	case reasonKept:
		if !f.copied {
			t.writeCausedAt(req, resp, stored.Traceparent, now)
		}
		if f.wasValid {
			t.replace(req, resp, stored, old)
		}
		if owned {
			t.writeCreateSpan(ctx, req, resp, owner, stored)
		}
	case reasonOwned, reasonLinked, reasonInvalid:
		link(req, resp, owners)
		if owners.SpanContext().IsValid() && decideOwned(owner.Kind, owners, now) == reasonOwned {
			t.inherit(ctx, req, resp, owner, owners, now)
		} else {
			t.write(req, resp, replaced, now)
		}
	case reasonCreated, reasonUpdated, reasonReturned:
		t.write(req, resp, replaced, now)
	}
	link(req, resp, stored)
	if old.Traceparent != stored.Traceparent {
		link(req, resp, old)
	}
	return nil
}

// madeByHand says whether a Job was made of a CronJob by somebody who named it the Job's
// controller: kubectl and Argo CD do, so that the CronJob cleans up.
func madeByHand(req *Request, owner metav1.OwnerReference) bool {
	if !repeats(owner.Kind) {
		return false
	}
	how, _ := req.Object.Annotation(instantiateAnnotation)
	return how == "manual"
}

// belongsTo says whether what is stored was stored in this very request, by an earlier call of a
// webhook (reinvocationPolicy), or was chosen by a client that is in the same trace.
func belongsTo(req *Request, stored, old Cause, now time.Time) bool {
	sameTrace := stored.SpanContext().TraceID() == req.SpanContext.TraceID()
	if !stored.vouched {
		return sameTrace
	}
	// One trace may hold many requests: `rollout undo` brings back what an earlier one stored.
	if stored.place != placeOf(req, stored.Traceparent) || now.Sub(stored.At).Abs() >= requestLasts || stored.At.Before(old.At) {
		return false
	}
	// Where the API server does not trace, each call starts a trace of its own.
	return sameTrace || stored.At.After(old.At)
}

// replace keeps the way back from a cause that the client has stored to the one before, and
// removes the tracestate of that one if it was left behind.
func (t *TraceContext) replace(req *Request, resp *Response, stored, old Cause) {
	t.writePrevious(req, resp, old)
	if !stored.vouched && stored.Tracestate == old.Tracestate {
		resp.RemoveAnnotation(t.tracestateKey)
	}
}

// link adds a link to the SERVER span of the request, unless nobody is to be believed.
func link(req *Request, resp *Response, c Cause) {
	if req.trust != TrustNone {
		resp.Link(c.SpanContext())
	}
}

// read returns what is stored; annotation is where from.
func (t *TraceContext) read(annotation func(string) (string, bool)) (c Cause, present bool) {
	if c.Traceparent, present = annotation(t.key); present {
		c.Tracestate, _ = annotation(t.tracestateKey)
		causedAt, _ := annotation(t.causedAtKey)
		c.readCausedAt(causedAt)
	}
	return c, present
}

// write stores this request's context in the place of another. One that is not to be stored
// leaves nothing behind, but never takes the place of a valid one without being stored.
func (t *TraceContext) write(req *Request, resp *Response, replaced Cause, now time.Time) {
	span, was := req.SpanContext, replaced.SpanContext()
	if !span.IsValid() && was.IsValid() {
		return
	}
	var c Cause
	if span.IsValid() && (t.always || span.IsSampled() || was.IsValid()) {
		c = causeOf(span)
	}
	t.writeCause(req, resp, c, now)
	resp.RemoveAnnotation(t.createKey)
	if was.IsValid() {
		t.writePrevious(req, resp, replaced)
	}
}

func (t *TraceContext) writeCause(req *Request, resp *Response, c Cause, at time.Time) {
	set(resp, t.key, c.Traceparent)
	set(resp, t.tracestateKey, c.Tracestate)
	t.writeCausedAt(req, resp, c.Traceparent, at)
}

func (t *TraceContext) writeCausedAt(req *Request, resp *Response, traceparent string, at time.Time) {
	var text string
	if traceparent != "" {
		text = formatCausedAt(at, traceparent, placeOf(req, traceparent))
	}
	set(resp, t.causedAtKey, text)
}

// writePrevious keeps the way back. A context that is not sampled leads to no span, so it does
// not take the place of one that is.
func (t *TraceContext) writePrevious(req *Request, resp *Response, replaced Cause) {
	previous := replaced.Traceparent
	if !replaced.SpanContext().IsSampled() {
		if before, _ := req.OldObject.Annotation(t.previousKey); cause.Parse(before, "").IsValid() {
			previous = before
		}
	}
	resp.SetAnnotation(t.previousKey, previous)
	if resp.annotationBytes() > mostAnnotationBytes { // the present cause is worth more
		resp.RemoveAnnotation(t.previousKey)
	}
}

// restore puts back what was stored before the update.
func (t *TraceContext) restore(req *Request, resp *Response) {
	for _, key := range [5]string{t.key, t.tracestateKey, t.causedAtKey, t.previousKey, t.createKey} {
		if value, ok := req.OldObject.Annotation(key); ok {
			resp.SetAnnotation(key, value)
		} else {
			resp.RemoveAnnotation(key)
		}
	}
}

// set removes the annotation where the value is "".
func set(resp *Response, key, value string) {
	if value == "" {
		resp.RemoveAnnotation(key)
	} else {
		resp.SetAnnotation(key, value)
	}
}

// causeOf asks what caused an owner. Not to find it is counted by Causes and harms nobody.
func (t *TraceContext) causeOf(ctx context.Context, req *Request, owner metav1.OwnerReference) (c Cause) {
	if t.causes != nil {
		c, _ = t.causes.Cause(ctx, req.Namespace, owner)
	}
	return c
}

// inherit stores what caused the owner, with the time of that, so that a chain of owners does
// not make it younger.
func (t *TraceContext) inherit(ctx context.Context, req *Request, resp *Response, owner metav1.OwnerReference, owners Cause, now time.Time) {
	c := owners
	if create := t.writeCreateSpan(ctx, req, resp, owner, owners); create.IsValid() {
		c = causeOf(create)
	}
	if !owners.At.IsZero() {
		now = owners.At
	}
	t.writeCause(req, resp, c, now)
}
