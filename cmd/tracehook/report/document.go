// This file is the report as data: a Report comes in, a document goes out whose
// JSON is a stable schema. Errors: the writer's, and a counter that is no number.
//
// # The kind TraceReport of tracehook.dev/v1alpha1
//
// Fields are only ever added under this name. What is empty is left out, but for
// numbers and for the lists "sections" and "spans".
//
//	apiVersion "tracehook.dev/v1alpha1"
//	kind       "TraceReport"
//	title, summary
//	generated  RFC 3339, UTC
//	facts      [{name, value}]
//	sections   [{heading, text, command, output, failed, facts, trace, counters}]
//
//	trace      {trace_id, start, duration_us, services, spans}
//	services   [{name, spans, self_us}]      self_us: time in which no child ran
//	spans      in the order of the tree, parents first:
//	           {span_id, parent_id, trace_id, depth, lost, service, scope,
//	            scope_version, name, kind, object, start, offset_us, duration_us,
//	            critical_us, status, status_message, attributes, events, links,
//	            resource}
//	trace_id   of a span of another trace, such as a kubelet's, that is shown here
//	object     the Kubernetes object that it is about, "configmaps/hello in default"
//	critical_us  how much of it is on the critical path
//	lost       "missing" or "cycle" for a span without its parent
//	events     [{name, offset_us, attributes}]
//	links      [{trace_id, span_id}]
//	counters   [{name, before, after, delta, meaning}]
//
// Times in "start" are RFC 3339 in UTC; *_us are whole microseconds, and offsets
// count from the start of the trace. Attribute values are strings, booleans and
// numbers. Integers beyond ±2^53, which JavaScript would round, and floats that
// are no numbers are strings; bytes are base64.

package report

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// Kind is what the document calls itself.
const (
	apiVersion = "tracehook.dev/v1alpha1"
	Kind       = "TraceReport"
)

// Document is what JSON writes, for those who describe it.
type Document = document

type (
	document struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Title      string            `json:"title,omitempty"`
		Summary    string            `json:"summary,omitempty"`
		Generated  time.Time         `json:"generated"`
		Facts      []documentFact    `json:"facts,omitempty"`
		Sections   []documentSection `json:"sections"`
	}
	documentFact struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	documentSection struct {
		Heading  string            `json:"heading,omitempty"`
		Text     string            `json:"text,omitempty"`
		Command  string            `json:"command,omitempty"`
		Output   string            `json:"output,omitempty"`
		Failed   bool              `json:"failed,omitempty"`
		Facts    []documentFact    `json:"facts,omitempty"`
		Trace    *documentTrace    `json:"trace,omitempty"`
		Counters []documentCounter `json:"counters,omitempty"`
	}
	documentCounter struct {
		Name    string  `json:"name"`
		Before  float64 `json:"before"`
		After   float64 `json:"after"`
		Delta   float64 `json:"delta"`
		Meaning string  `json:"meaning,omitempty"`
	}
	documentTrace struct {
		TraceID  string            `json:"trace_id"`
		Start    time.Time         `json:"start"`
		Duration int64             `json:"duration_us"`
		Services []documentService `json:"services,omitempty"`
		Spans    []documentSpan    `json:"spans"`
	}
	documentService struct {
		Name  string `json:"name"`
		Spans int    `json:"spans"`
		Self  int64  `json:"self_us"`
	}
	documentSpan struct {
		ID            string          `json:"span_id"`
		ParentID      string          `json:"parent_id,omitempty"`
		TraceID       string          `json:"trace_id,omitempty"`
		Depth         int             `json:"depth"`
		Lost          string          `json:"lost,omitempty"`
		Service       string          `json:"service"`
		Scope         string          `json:"scope,omitempty"`
		ScopeVersion  string          `json:"scope_version,omitempty"`
		Name          string          `json:"name"`
		Kind          string          `json:"kind,omitempty"`
		Object        string          `json:"object,omitempty"`
		Start         time.Time       `json:"start"`
		Offset        int64           `json:"offset_us"`
		Duration      int64           `json:"duration_us"`
		Critical      int64           `json:"critical_us,omitempty"`
		Status        string          `json:"status,omitempty"`
		StatusMessage string          `json:"status_message,omitempty"`
		Attributes    map[string]any  `json:"attributes,omitempty"`
		Events        []documentEvent `json:"events,omitempty"`
		Links         []documentLink  `json:"links,omitempty"`
		Resource      map[string]any  `json:"resource,omitempty"`
	}
	documentEvent struct {
		Name       string         `json:"name"`
		Offset     int64          `json:"offset_us"`
		Attributes map[string]any `json:"attributes,omitempty"`
	}
	documentLink struct {
		TraceID string `json:"trace_id"`
		SpanID  string `json:"span_id"`
	}
)

// JSON writes the report in the schema above.
func JSON(w io.Writer, r Report) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(newDocument(r)); err != nil {
		return fmt.Errorf("write the report as JSON: %w", err)
	}
	return nil
}

func newDocument(r Report) document {
	d := document{
		APIVersion: apiVersion, Kind: Kind, Title: r.Title, Summary: r.Summary, Generated: r.Generated.UTC(),
		Facts: documentFacts(r.Facts), Sections: []documentSection{},
	}
	for _, s := range r.Sections {
		section := documentSection{
			Heading: s.Heading, Text: s.Text, Command: s.Command, Output: s.Output, Failed: s.Failed,
			Facts: documentFacts(s.Facts),
		}
		if s.Trace != nil {
			section.Trace = newDocumentTrace(newLayout(*s.Trace, filtersAsTheyAre))
		}
		for _, c := range s.Counters {
			section.Counters = append(section.Counters, documentCounter{c.Name, c.Before, c.After, c.Delta(), c.Meaning})
		}
		d.Sections = append(d.Sections, section)
	}
	return d
}

func documentFacts(facts []Fact) []documentFact {
	var out []documentFact
	for _, f := range facts {
		out = append(out, documentFact(f))
	}
	return out
}

func newDocumentTrace(l layout) *documentTrace {
	t := &documentTrace{TraceID: l.Trace.ID, Start: l.Start.UTC(), Duration: l.Total.Microseconds(), Spans: []documentSpan{}}
	for _, s := range l.Services {
		t.Services = append(t.Services, documentService{s.Name, s.Spans, s.Self.Microseconds()})
	}
	for _, r := range l.Rows {
		span := documentSpan{
			ID: r.ID, ParentID: r.ParentID, TraceID: r.TraceID, Depth: r.Depth,
			Lost:    map[tracestore.Lost]string{tracestore.ParentMissing: "missing", tracestore.ParentCycle: "cycle"}[r.Lost],
			Service: r.Service, Scope: r.Scope, ScopeVersion: r.ScopeVersion, Name: r.Name, Kind: r.Kind, Object: r.Object,
			Start: r.Start.UTC(), Offset: r.Offset.Microseconds(), Duration: r.Duration.Microseconds(), Critical: r.CriticalTime.Microseconds(),
			Status: r.Status, StatusMessage: r.StatusMessage,
			Attributes: plain(r.Attributes), Resource: plain(r.Resource),
		}
		for _, e := range r.Events {
			span.Events = append(span.Events, documentEvent{e.Name, e.Time.Sub(l.Start).Microseconds(), plain(e.Attributes)})
		}
		for _, link := range r.Links {
			span.Links = append(span.Links, documentLink(link))
		}
		t.Spans = append(t.Spans, span)
	}
	return t
}

// plain gives every value a type that JSON and JavaScript keep as it is.
func plain(values map[string]any) map[string]any {
	const safe = 1 << 53
	out := make(map[string]any, len(values))
	for key, v := range values {
		switch v := v.(type) {
		case string, bool:
			out[key] = v
		case int64:
			if v > safe || v < -safe {
				out[key] = strconv.FormatInt(v, 10)
			} else {
				out[key] = v
			}
		case float64:
			if math.IsNaN(v) || math.IsInf(v, 0) {
				out[key] = strconv.FormatFloat(v, 'g', -1, 64)
			} else {
				out[key] = v
			}
		case []byte:
			out[key] = base64.StdEncoding.EncodeToString(v)
		default:
			out[key] = fmt.Sprint(v)
		}
	}
	return out
}
