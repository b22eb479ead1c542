// This file decodes what Jaeger's query API answers to GET /api/traces/<id>.
// JSON comes in, a Trace goes out. Errors: no JSON, an id that is none, a value
// that does not have the type it claims, a span without its process.

package tracestore

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The shapes of Jaeger's answer, as far as they are read.
type (
	jaegerAnswer struct {
		Data   []jaegerTrace `json:"data"`
		Errors []struct {
			Code int    `json:"code"`
			Msg  string `json:"msg"`
		} `json:"errors"`
	}
	jaegerTrace struct {
		TraceID   string                   `json:"traceID"`
		Spans     []jaegerSpan             `json:"spans"`
		Processes map[string]jaegerProcess `json:"processes"`
	}
	jaegerSpan struct {
		SpanID        string            `json:"spanID"`
		OperationName string            `json:"operationName"`
		References    []jaegerReference `json:"references"`
		StartTime     int64             `json:"startTime"` // microseconds since 1970
		Duration      int64             `json:"duration"`  // microseconds
		Tags          []jaegerTag       `json:"tags"`
		Logs          []struct {
			Timestamp int64       `json:"timestamp"` // microseconds since 1970
			Fields    []jaegerTag `json:"fields"`
		} `json:"logs"`
		ProcessID string `json:"processID"`
	}
	jaegerReference struct {
		RefType string `json:"refType"`
		TraceID string `json:"traceID"`
		SpanID  string `json:"spanID"`
	}
	jaegerProcess struct {
		ServiceName string      `json:"serviceName"`
		Tags        []jaegerTag `json:"tags"`
	}
	jaegerTag struct {
		Key   string          `json:"key"`
		Type  string          `json:"type"`
		Value json.RawMessage `json:"value"`
	}
)

// Decode reads one trace. A well-formed answer that holds no trace gives
// ErrNotFound.
func Decode(r io.Reader) (Trace, error) {
	var answer jaegerAnswer
	if err := json.NewDecoder(r).Decode(&answer); err != nil {
		return Trace{}, fmt.Errorf("decode Jaeger's answer: %w", err)
	}
	if len(answer.Data) == 0 {
		if len(answer.Errors) > 0 && answer.Errors[0].Code != 404 {
			return Trace{}, fmt.Errorf("ask Jaeger: %s", answer.Errors[0].Msg)
		}
		return Trace{}, ErrNotFound
	}
	if n := len(answer.Data); n > 1 {
		return Trace{}, fmt.Errorf("decode Jaeger's answer: %d traces where one was asked for", n)
	}
	trace, err := decodeTrace(answer.Data[0])
	if err != nil {
		return Trace{}, fmt.Errorf("decode Jaeger's answer: %w", err)
	}
	return trace, nil
}

func decodeTrace(in jaegerTrace) (Trace, error) {
	id, err := hexID(in.TraceID, 32)
	if err != nil {
		return Trace{}, err
	}
	trace := Trace{ID: id, Spans: make([]Span, 0, len(in.Spans))}
	for _, s := range in.Spans {
		process, ok := in.Processes[s.ProcessID]
		if !ok {
			return Trace{}, fmt.Errorf("span %q %s: no process %q", s.OperationName, s.SpanID, s.ProcessID)
		}
		span, err := decodeSpan(trace.ID, s, process)
		if err != nil {
			return Trace{}, fmt.Errorf("span %q %s: %w", s.OperationName, s.SpanID, err)
		}
		trace.Spans = append(trace.Spans, span)
	}
	sortSpans(trace.Spans)
	return trace, nil
}

func decodeSpan(traceID string, in jaegerSpan, process jaegerProcess) (Span, error) {
	id, err := hexID(in.SpanID, 16)
	if err != nil {
		return Span{}, err
	}
	span := Span{
		ID:       id,
		Service:  process.ServiceName,
		Name:     in.OperationName,
		Start:    time.UnixMicro(in.StartTime).UTC(),
		Duration: time.Duration(in.Duration) * time.Microsecond,
	}
	if span.ParentID, span.Links, err = decodeReferences(traceID, in.References); err != nil {
		return Span{}, err
	}
	if span.Attributes, err = decodeTags(in.Tags); err != nil {
		return Span{}, err
	}
	if span.Resource, err = decodeTags(process.Tags); err != nil {
		return Span{}, fmt.Errorf("resource: %w", err)
	}
	for _, l := range in.Logs {
		fields, err := decodeTags(l.Fields)
		if err != nil {
			return Span{}, fmt.Errorf("event: %w", err)
		}
		span.Events = append(span.Events, Event{
			Time:       time.UnixMicro(l.Timestamp).UTC(),
			Name:       take(fields, "event"),
			Attributes: fields,
		})
	}
	slices.SortStableFunc(span.Events, func(a, b Event) int { return a.Time.Compare(b.Time) })

	// What OTLP keeps in fields of their own Jaeger keeps among the tags.
	span.Kind = take(span.Attributes, "span.kind")
	span.Scope = take(span.Attributes, "otel.scope.name")
	span.ScopeVersion = take(span.Attributes, "otel.scope.version")
	span.StatusMessage = take(span.Attributes, "otel.status_description")
	switch code := take(span.Attributes, "otel.status_code"); code {
	case "":
	case "OK":
		span.Status = StatusOK
	case "ERROR":
		span.Status = StatusError
		delete(span.Attributes, "error") // Jaeger's second way of saying it
	default:
		return Span{}, fmt.Errorf("unknown status %q", code)
	}
	delete(span.Attributes, "internal.span.format") // how the span reached Jaeger
	return span, nil
}

// decodeReferences tells the parent from the links. The parent is the first
// CHILD_OF of the same trace; a span that links to its own parent has the type
// of that reference overwritten by FOLLOWS_FROM, so that a first reference into
// the same trace counts too.
func decodeReferences(traceID string, refs []jaegerReference) (parent string, links []Link, err error) {
	parentAt := -1
	decoded := make([]Link, len(refs))
	for i, r := range refs {
		if decoded[i].TraceID, err = hexID(r.TraceID, 32); err != nil {
			return "", nil, fmt.Errorf("reference: %w", err)
		}
		if decoded[i].SpanID, err = hexID(r.SpanID, 16); err != nil {
			return "", nil, fmt.Errorf("reference: %w", err)
		}
		if parentAt < 0 && r.RefType == "CHILD_OF" && decoded[i].TraceID == traceID {
			parentAt = i
		}
	}
	if parentAt < 0 && len(refs) > 0 && decoded[0].TraceID == traceID {
		parentAt = 0
	}
	for i, link := range decoded {
		if i == parentAt {
			parent = link.SpanID
			if refs[i].RefType == "CHILD_OF" {
				continue
			}
		}
		links = append(links, link)
	}
	return parent, links, nil
}

func decodeTags(tags []jaegerTag) (map[string]any, error) {
	values := make(map[string]any, len(tags))
	for _, t := range tags {
		v, err := decodeValue(t)
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", t.Key, err)
		}
		values[t.Key] = v
	}
	return values, nil
}

func decodeValue(t jaegerTag) (any, error) {
	switch t.Type {
	case "string":
		var v string
		err := json.Unmarshal(t.Value, &v)
		return v, err
	case "bool":
		var v bool
		err := json.Unmarshal(t.Value, &v)
		return v, err
	case "int64":
		// A JSON number, or a string where JavaScript would lose digits.
		return strconv.ParseInt(string(bytes.Trim(t.Value, `"`)), 10, 64)
	case "float64":
		var v float64
		err := json.Unmarshal(t.Value, &v)
		return v, err
	case "binary":
		var text string
		if err := json.Unmarshal(t.Value, &text); err != nil {
			return nil, err
		}
		return base64.StdEncoding.DecodeString(text)
	default:
		return nil, fmt.Errorf("unknown type %q", t.Type)
	}
}

// take removes a string from values and returns it; "" when there is none.
func take(values map[string]any, key string) string {
	v, ok := values[key].(string)
	if ok {
		delete(values, key)
	}
	return v
}

// hexID checks an id and gives back the zeros at its front, which Jaeger cuts
// off a trace id whose upper half is 0.
func hexID(id string, digits int) (string, error) {
	if id == "" || len(id) > digits {
		return "", fmt.Errorf("%q is no id of %d hexadecimal digits", id, digits)
	}
	id = strings.Repeat("0", digits-len(id)) + strings.ToLower(id)
	if strings.Trim(id, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%q is no id of %d hexadecimal digits", id, digits)
	}
	return id, nil
}
