// Package tracestore reads whole traces back from the place they were exported
// to, as plain values that tests and reports can look at.
//
//	Client.Wait ─ polls ─▶ Client.Trace ─▶ Decode ─▶ Trace ─▶ Trace.Forest
//
// This file is the model: what one trace is. Nothing here fails.
package tracestore

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// The span kinds as Span.Kind spells them. A span without a kind has "".
const (
	KindInternal = "internal"
	KindServer   = "server"
	KindClient   = "client"
	KindProducer = "producer"
	KindConsumer = "consumer"
)

// The states of Span.Status.
const (
	StatusUnset = ""
	StatusOK    = "ok"
	StatusError = "error"
)

// Trace is every span that arrived under one trace id.
type Trace struct {
	ID    string // 32 lower-case hexadecimal digits
	Spans []Span // by start; of two that start together the longer comes first
}

// Span is one span as its process ended it.
type Span struct {
	ID       string // 16 lower-case hexadecimal digits
	ParentID string // "" for a root; it may name a span that never arrived
	Service  string // the resource's service.name
	// Scope and ScopeVersion name the instrumentation that made the span.
	Scope        string
	ScopeVersion string
	Name         string
	Kind         string
	Start        time.Time     // to the microsecond, which is what the store keeps
	Duration     time.Duration // likewise
	// Attributes hold string, bool, int64, float64 or []byte. The store turns
	// lists and maps into their JSON text.
	Attributes    map[string]any
	Events        []Event // by time
	Links         []Link
	Status        string
	StatusMessage string
	Resource      map[string]any // without service.name, which is Service
	// TraceID is set where the span is of another trace than the one that it is in (Trace.Hang).
	TraceID string
}

// End is when the span ended.
func (s Span) End() time.Time { return s.Start.Add(s.Duration) }

// Event is something that happened within a span.
type Event struct {
	Time       time.Time
	Name       string
	Attributes map[string]any
}

// Link points at a span that is no parent, often one of another trace.
type Link struct {
	TraceID, SpanID string
}

// sortSpans puts spans in the order that Trace.Spans promises. Starts are
// rounded to microseconds, so that a parent and its first child often start
// "together": the longer one is the parent. The id settles the rest, because
// the store answers in no particular order.
func sortSpans(spans []Span) {
	slices.SortStableFunc(spans, func(a, b Span) int {
		return cmp.Or(
			a.Start.Compare(b.Start),
			cmp.Compare(b.Duration, a.Duration),
			strings.Compare(a.ID, b.ID),
		)
	})
}
