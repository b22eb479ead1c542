// This file shows one trace within another. Two traces come in, one goes out. Pure.

package tracestore

import "slices"

// Hang adds the spans of another trace below a span of t; its roots become children of that
// span, or stay roots where below is "". Each says of which trace it is. Spans that t has
// already are left out.
func (t Trace) Hang(below string, other Trace) Trace {
	known := make(map[string]bool, len(t.Spans))
	for _, s := range t.Spans {
		known[s.ID] = true
	}
	hung := Trace{ID: t.ID, Spans: slices.Clone(t.Spans)}
	for _, s := range other.Spans {
		if known[s.ID] {
			continue
		}
		if s.TraceID == "" {
			s.TraceID = other.ID
		}
		if s.ParentID == "" {
			s.ParentID = below
		}
		hung.Spans = append(hung.Spans, s)
	}
	sortSpans(hung.Spans)
	return hung
}
