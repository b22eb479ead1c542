package main

// Traces that spans link to: a controller's work is a trace of its own with links to what
// caused it (KEP-5915). In: a trace and a store. Out: the linked traces. Errors stay with
// the link that they concern.

import (
	"context"
	"errors"
	"fmt"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// mostLinked bounds the traces that are fetched for one: a reconciler's span may link to
// thousands.
const mostLinked = 20

// linkedTrace is a trace at the far end of a link.
type linkedTrace struct {
	Service, Span string // that links to it
	Trace         tracestore.Trace
	Err           error // why Trace has no spans
}

func (l linkedTrace) why() string {
	said := fmt.Sprintf("%s of %s links to trace %s", l.Span, l.Service, l.Trace.ID)
	switch {
	case errors.Is(l.Err, tracestore.ErrNotFound):
		return said + ", which the store does not hold"
	case l.Err != nil:
		return fmt.Sprintf("%s, which could not be read: %v", said, l.Err)
	}
	return said
}

// followLinks fetches the traces that t links to, what these link to, and so on to the given
// depth. Each trace comes once; left is how many were not fetched.
func followLinks(ctx context.Context, store *tracestore.Client, t tracestore.Trace, depth int) (linked []linkedTrace, left int) {
	seen := map[string]bool{t.ID: true}
	round := []tracestore.Trace{t}
	for ; depth > 0 && len(round) > 0; depth-- {
		var next []tracestore.Trace
		for _, from := range round {
			for _, span := range from.Spans {
				for _, link := range span.Links {
					if seen[link.TraceID] {
						continue
					}
					seen[link.TraceID] = true
					if len(linked) == mostLinked {
						left++
						continue
					}
					l := linkedTrace{Service: span.Service, Span: span.Name}
					l.Trace, l.Err = store.Trace(ctx, link.TraceID)
					l.Trace.ID = link.TraceID
					linked = append(linked, l)
					next = append(next, l.Trace)
				}
			}
		}
		round = next
	}
	return linked, left
}

// linksOut counts the other traces that a trace links to.
func linksOut(t tracestore.Trace) int {
	others := map[string]bool{}
	for _, span := range t.Spans {
		for _, link := range span.Links {
			if link.TraceID != t.ID {
				others[link.TraceID] = true
			}
		}
	}
	return len(others)
}
