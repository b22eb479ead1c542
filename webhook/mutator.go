package webhook

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// A Mutator looks at one admission request and says which changes it wants.
//
// It must be quick, must not keep req or resp, and must be idempotent: the API
// server may call it again in the same request (reinvocationPolicy: IfNeeded).
// An error means that something of ours failed: the request is then allowed
// without any patch, and the error is in log, span and metric.
type Mutator interface {
	Mutate(ctx context.Context, req *Request, resp *Response) error
}

// MutatorFunc is a function that is a Mutator.
type MutatorFunc func(ctx context.Context, req *Request, resp *Response) error

// Mutate calls f.
func (f MutatorFunc) Mutate(ctx context.Context, req *Request, resp *Response) error {
	return f(ctx, req, resp)
}

// Selective is a Mutator that can tell, at little cost, that a request is none of its
// business: it is then not called, and the trace holds no span of it.
type Selective interface {
	Mutator
	Wants(req *Request, resp *Response) bool
}

// Chain runs mutators in order, each in a span `mutate <Name>`.
type Chain []Step

// Step is a Mutator and the name of its span, lower case with hyphens.
type Step struct {
	Name    string
	Mutator Mutator
}

// Response collects what the mutators want of the answer. Later mutators see
// what earlier ones set. The zero value is for an object without annotations;
// NewResponse is for the object of a request.
type Response struct {
	object   *Object
	changes  []change
	links    []trace.SpanContext
	warnings []string
	audit    []change
	space    [5]change
}

// SetAnnotation sets metadata.annotations[key] of the object and leaves every
// other annotation alone. What is said of a key last counts.
func (r *Response) SetAnnotation(key, value string) {
	if now, ok := r.stored(key); ok && now == value {
		r.forget(key)
		return
	}
	r.forget(key)
	r.append(change{key: key, value: value})
}

// RemoveAnnotation removes metadata.annotations[key] if it is there.
func (r *Response) RemoveAnnotation(key string) {
	r.forget(key)
	if _, ok := r.stored(key); ok {
		r.append(change{key: key, remove: true})
	}
}

// Annotation returns an annotation as it will be: a mutator's wish, else what the object has.
func (r *Response) Annotation(key string) (value string, ok bool) {
	for _, c := range r.changes {
		if c.key == key {
			return c.value, !c.remove
		}
	}
	return r.stored(key)
}

func (r *Response) stored(key string) (value string, ok bool) {
	if r.object == nil {
		return "", false
	}
	return r.object.Annotation(key)
}

func (r *Response) append(c change) {
	if r.changes == nil {
		r.changes = r.space[:0]
	}
	r.changes = append(r.changes, c)
}

func (r *Response) forget(key string) {
	r.changes = slices.DeleteFunc(r.changes, func(c change) bool { return c.key == key })
}

// Link adds a link to the SERVER span of the request: this call has to do with that
// span of another trace.
func (r *Response) Link(span trace.SpanContext) {
	if span.IsValid() {
		r.links = append(r.links, span)
	}
}

// Warn tells the client something (kubectl prints it as a warning). At most 120
// characters by the API server's own advice; say what to do.
func (r *Response) Warn(message string) { r.warnings = append(r.warnings, message) }

// AuditAnnotation adds <webhook name>/<key> to the request's audit event.
func (r *Response) AuditAnnotation(key, value string) {
	r.audit = append(r.audit, change{key: key, value: value})
}

// NewResponse returns an empty Response to req. It is for unit tests of a Mutator, which
// need neither a server nor a review:
//
//	req := &webhook.Request{
//		Operation: admissionv1.Create,
//		Object:    webhook.Object{Raw: []byte(`{"kind": "Pod", "metadata": {"name": "web"}}`)},
//	}
//	resp, err := webhook.NewResponse(req)
//	err = mutator.Mutate(ctx, req, resp)
//	// resp.Patch(), resp.Annotation(…), resp.Warnings()
//
// It reads the Raw of both objects as the handler reads a review, so call it before req is
// used. The error says where one is not strictly JSON, or no object of Kubernetes.
func NewResponse(req *Request) (*Response, error) {
	var d reviewDecoder
	for i, o := range []*Object{&req.Object, &req.OldObject} {
		raw := o.Raw
		if *o = (Object{}); raw == nil {
			continue
		}
		d.json.reset(raw, time.Time{})
		err := d.rawObject(o)
		if err == nil {
			err = d.json.end()
		}
		if errors.Is(err, errSyntax) {
			err = explain(raw)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", [...]string{"object", "oldObject"}[i], err)
		}
	}
	return &Response{object: &req.Object}, nil
}

// Patch returns the JSON Patch (RFC 6902) that makes the changes which were asked for;
// nil if there are none.
func (r *Response) Patch() []byte {
	o := r.object
	if o == nil {
		o = new(Object)
	}
	patch, _ := appendPatch(nil, o, r.changes)
	return patch
}

// Warnings returns what was said to Warn.
func (r *Response) Warnings() []string { return slices.Clone(r.warnings) }

// AuditAnnotations returns what was said to AuditAnnotation.
func (r *Response) AuditAnnotations() map[string]string {
	all := map[string]string{}
	for _, a := range r.audit {
		all[a.key] = a.value
	}
	return all
}
