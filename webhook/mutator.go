package webhook

import "context"

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

// Chain runs mutators in order, each in a span `mutate <Name>`.
type Chain []Step

// Step is a Mutator and the name of its span, lower case with hyphens.
type Step struct {
	Name    string
	Mutator Mutator
}

// Response collects what the mutators want of the answer. Later mutators see
// what earlier ones set.
type Response struct {
	object  *Object
	changes []change
	space   [4]change
}

// SetAnnotation sets metadata.annotations[key] of the object and leaves every
// other annotation alone. Setting a key again replaces the first wish.
func (r *Response) SetAnnotation(key, value string) {
	for i := range r.changes {
		if r.changes[i].key == key {
			r.changes[i].value = value
			return
		}
	}
	if r.changes == nil {
		r.changes = r.space[:0]
	}
	r.changes = append(r.changes, change{key: key, value: value})
}

// Annotation returns an annotation as it will be: a mutator's wish, else what the object has.
func (r *Response) Annotation(key string) (value string, ok bool) {
	for _, c := range r.changes {
		if c.key == key {
			return c.value, true
		}
	}
	return r.object.Annotation(key)
}
