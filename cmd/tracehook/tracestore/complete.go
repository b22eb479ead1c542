// This file decides when a trace that is still arriving has arrived. Traces and times
// come in, nil or what is missing goes out. Pure.

package tracestore

import (
	"errors"
	"fmt"
	"time"
)

// DefaultQuiet is longer than the pause between two batches of exporters that are told
// to hurry; those that are not hold spans for five seconds, which nobody waits for.
const DefaultQuiet = 400 * time.Millisecond

// Completeness watches one trace arrive.
type Completeness struct {
	// Calls are the ids of CLIENT spans, each of which has a SERVER span below it in the
	// end. Nil: none is waited for.
	Calls []string
	// Quiet is how long nothing new must have come. 0: DefaultQuiet.
	Quiet time.Duration

	spans int
	since time.Time
}

// Missing is why a trace is not complete.
type Missing struct {
	Calls   int  // that have no SERVER span below them
	Parents int  // spans whose parents have not arrived
	Moving  bool // something new came a moment ago
}

func (m *Missing) Error() string {
	switch {
	case m.Calls > 0:
		return fmt.Sprintf("%d calls have no span of the API server", m.Calls)
	case m.Parents > 0:
		return fmt.Sprintf("the parents of %d spans have not arrived", m.Parents)
	}
	return "spans are still arriving"
}

// Check returns nil when the trace is complete, else a *Missing. now is when t was read.
func (c *Completeness) Check(t Trace, now time.Time) error {
	if len(t.Spans) != c.spans || c.since.IsZero() {
		c.spans, c.since = len(t.Spans), now
	}
	quiet := c.Quiet
	if quiet == 0 {
		quiet = DefaultQuiet
	}
	missing := Missing{Moving: now.Sub(c.since) < quiet}
	answered := make(map[string]bool)
	for _, root := range t.Forest() {
		if root.Lost != NotLost {
			missing.Parents++
		}
		answer(root, answered)
	}
	for _, id := range c.Calls {
		if !answered[id] {
			missing.Calls++
		}
	}
	if missing != (Missing{}) {
		return &missing
	}
	return nil
}

// answer marks the spans with a SERVER span somewhere below them.
func answer(n *Node, answered map[string]bool) (server bool) {
	for _, child := range n.Children {
		if answer(child, answered) {
			answered[n.Span.ID] = true
		}
	}
	return n.Span.Kind == KindServer || answered[n.Span.ID]
}

// IsMissing returns the *Missing in an error, nil where there is none.
func IsMissing(err error) *Missing {
	var missing *Missing
	errors.As(err, &missing)
	return missing
}

// Merge adds to t the spans that the caller has itself, and that may not have arrived.
func Merge(t Trace, own Trace) Trace {
	if t.ID == "" {
		t.ID = own.ID
	}
	known := make(map[string]bool, len(t.Spans))
	for _, s := range t.Spans {
		known[s.ID] = true
	}
	merged := Trace{ID: t.ID, Spans: append([]Span(nil), t.Spans...)}
	for _, s := range own.Spans {
		if !known[s.ID] {
			merged.Spans = append(merged.Spans, s)
		}
	}
	sortSpans(merged.Spans)
	return merged
}
