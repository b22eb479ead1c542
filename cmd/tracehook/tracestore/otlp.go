// This file decodes OTLP in JSON, in which both stores answer. An answer comes in, a
// Trace goes out. Errors: no JSON, too much of it, an id that is none.
//
// Jaeger wraps OTLP in {"result": …} and writes ids in hexadecimal digits, as OTLP says.
// Tempo wraps it in {"trace": …}, before 2.7 in nothing, and writes ids in base64. Both
// forms of ids, enumerations and numbers are read from either.

package tracestore

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of an answer. A trace beyond them is refused, not cut: half a tree would lie.
const (
	maxBytes = 32 << 20
	maxSpans = 100_000
	// maxObjects counts braces: 32 MiB of the shortest attributes have fewer, and an empty
	// object takes 3 bytes here and hundreds in memory.
	maxObjects = 2_000_000
	maxDepth   = 16 // of lists and maps in a value; deeper ones are shown as "…"
)

// errTooLarge says that an answer goes beyond a limit.
var errTooLarge = errors.New("too large")

// The shapes of OTLP, as far as they are read.
type (
	otlpAnswer struct {
		otlpData
		Result *otlpData `json:"result"` // Jaeger
		Trace  *otlpData `json:"trace"`  // Tempo
		Error  *struct {
			Code    int    `json:"httpCode"`
			Message string `json:"message"`
		} `json:"error"`
	}
	otlpData struct {
		ResourceSpans []otlpResource `json:"resourceSpans"`
		Batches       []otlpResource `json:"batches"` // Tempo's older name
	}
	otlpResource struct {
		Resource struct {
			Attributes []otlpAttribute `json:"attributes"`
		} `json:"resource"`
		ScopeSpans []struct {
			Scope struct {
				Name    string `json:"name"`
				Version string `json:"version"`
			} `json:"scope"`
			Spans []otlpSpan `json:"spans"`
		} `json:"scopeSpans"`
	}
	otlpSpan struct {
		TraceID      string          `json:"traceId"`
		SpanID       string          `json:"spanId"`
		ParentSpanID string          `json:"parentSpanId"`
		Name         string          `json:"name"`
		Kind         otlpEnum        `json:"kind"`
		Start        otlpInt         `json:"startTimeUnixNano"`
		End          otlpInt         `json:"endTimeUnixNano"`
		Attributes   []otlpAttribute `json:"attributes"`
		Events       []struct {
			Time       otlpInt         `json:"timeUnixNano"`
			Name       string          `json:"name"`
			Attributes []otlpAttribute `json:"attributes"`
		} `json:"events"`
		Links []struct {
			TraceID string `json:"traceId"`
			SpanID  string `json:"spanId"`
		} `json:"links"`
		Status struct {
			Code    otlpEnum `json:"code"`
			Message string   `json:"message"`
		} `json:"status"`
	}
	otlpAttribute struct {
		Key   string    `json:"key"`
		Value otlpValue `json:"value"`
	}
	// otlpValue has one of these, or none.
	otlpValue struct {
		String *string     `json:"stringValue"`
		Bool   *bool       `json:"boolValue"`
		Int    *otlpInt    `json:"intValue"`
		Double *otlpDouble `json:"doubleValue"`
		Bytes  *[]byte     `json:"bytesValue"`
		Array  *struct {
			Values []otlpValue `json:"values"`
		} `json:"arrayValue"`
		Map *struct {
			Values []otlpAttribute `json:"values"`
		} `json:"kvlistValue"`
	}
	otlpInt    int64   // a number, or a string where JavaScript would lose digits
	otlpDouble float64 // a number, or "NaN", "Infinity", "-Infinity"
	otlpEnum   string  // a number, or a name
)

func (v *otlpInt) UnmarshalJSON(text []byte) error {
	number, err := strconv.ParseInt(strings.Trim(string(text), `"`), 10, 64)
	*v = otlpInt(number)
	return err
}

func (v *otlpDouble) UnmarshalJSON(text []byte) error {
	number, err := strconv.ParseFloat(strings.Trim(string(text), `"`), 64)
	if errors.Is(err, strconv.ErrRange) {
		err = nil // infinite then
	}
	*v = otlpDouble(number)
	return err
}

func (v *otlpEnum) UnmarshalJSON(text []byte) error {
	*v = otlpEnum(strings.Trim(string(text), `"`))
	return nil
}

var (
	kinds = map[otlpEnum]string{
		"1": KindInternal, "2": KindServer, "3": KindClient, "4": KindProducer, "5": KindConsumer,
		"SPAN_KIND_INTERNAL": KindInternal, "SPAN_KIND_SERVER": KindServer, "SPAN_KIND_CLIENT": KindClient,
		"SPAN_KIND_PRODUCER": KindProducer, "SPAN_KIND_CONSUMER": KindConsumer,
	}
	statuses = map[otlpEnum]string{
		"1": StatusOK, "2": StatusError, "STATUS_CODE_OK": StatusOK, "STATUS_CODE_ERROR": StatusError,
	}
)

// Decode reads one trace, of at most 32 MiB and 100,000 spans. A well-formed answer that
// holds no span gives ErrNotFound. A span that came twice, as it does when an exporter
// tries again, is there once.
func Decode(r io.Reader) (Trace, error) {
	limited := &io.LimitedReader{R: r, N: maxBytes + 1}
	objects := &objectCounter{from: limited}
	decoder := json.NewDecoder(objects)
	var read reading
	for { // Jaeger may send a trace in several pieces
		var answer otlpAnswer
		err := decoder.Decode(&answer)
		if err == io.EOF && read.answers > 0 {
			break
		}
		if objects.n > maxObjects {
			return Trace{}, fmt.Errorf("decode the store's answer: %w: more than %d objects", errTooLarge, maxObjects)
		}
		if limited.N <= 0 {
			return Trace{}, fmt.Errorf("decode the store's answer: %w: more than %d MiB", errTooLarge, maxBytes>>20)
		}
		if err != nil {
			return Trace{}, fmt.Errorf("decode the store's answer: %w", err)
		}
		if err := read.add(answer); err != nil {
			return Trace{}, fmt.Errorf("decode the store's answer: %w", err)
		}
	}
	if len(read.trace.Spans) == 0 {
		return Trace{}, ErrNotFound
	}
	sortSpans(read.trace.Spans)
	read.trace.Spans = slices.CompactFunc(read.trace.Spans, sameSpan)
	return read.trace, nil
}

// objectCounter ends a read that opens too many objects. It counts braces, also those in texts.
type objectCounter struct {
	from io.Reader
	n    int
}

func (c *objectCounter) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	if c.n += bytes.Count(p[:n], []byte{'{'}); c.n > maxObjects {
		return 0, errTooLarge
	}
	return n, err
}

// sameSpan: the order of spans puts what came twice side by side.
func sameSpan(a, b Span) bool {
	return a.ID == b.ID && a.Start.Equal(b.Start) && a.Duration == b.Duration && a.Name == b.Name && a.Kind == b.Kind && a.Service == b.Service
}

// reading is what has been read of an answer.
type reading struct {
	answers int
	trace   Trace
}

func (r *reading) add(answer otlpAnswer) error {
	r.answers++
	if answer.Error != nil {
		if answer.Error.Code == 404 {
			return nil
		}
		return fmt.Errorf("the store says: %s", firstLine(answer.Error.Message))
	}
	for _, data := range []*otlpData{&answer.otlpData, answer.Result, answer.Trace} {
		if data == nil {
			continue
		}
		for _, in := range slices.Concat(data.ResourceSpans, data.Batches) {
			if err := r.addResource(in); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *reading) addResource(in otlpResource) error {
	resource := decodeAttributes(in.Resource.Attributes)
	service, _ := resource["service.name"].(string)
	delete(resource, "service.name")
	for _, scope := range in.ScopeSpans {
		for _, s := range scope.Spans {
			if len(r.trace.Spans) == maxSpans {
				return fmt.Errorf("%w: more than %d spans", errTooLarge, maxSpans)
			}
			traceID, err := id(s.TraceID, 16)
			if err != nil {
				return fmt.Errorf("span %q: trace id: %w", s.Name, err)
			}
			switch r.trace.ID {
			case "":
				r.trace.ID = traceID
			case traceID:
			default:
				return fmt.Errorf("two traces, %s and %s, where one was asked for", r.trace.ID, traceID)
			}
			span, err := decodeSpan(s)
			if err != nil {
				return fmt.Errorf("span %q: %w", s.Name, err)
			}
			span.Service, span.Resource = service, resource
			span.Scope, span.ScopeVersion = scope.Scope.Name, scope.Scope.Version
			r.trace.Spans = append(r.trace.Spans, span)
		}
	}
	return nil
}

func decodeSpan(in otlpSpan) (Span, error) {
	span := Span{
		Name:          in.Name,
		Kind:          kinds[in.Kind],
		Start:         time.Unix(0, int64(in.Start)).UTC(),
		Attributes:    decodeAttributes(in.Attributes),
		Status:        statuses[in.Status.Code],
		StatusMessage: in.Status.Message,
	}
	if in.End > in.Start && in.Start >= 0 { // a span that has not ended, or odd clocks: no duration
		span.Duration = time.Duration(in.End - in.Start)
	}
	var err error
	if span.ID, err = id(in.SpanID, 8); err != nil {
		return Span{}, err
	}
	if in.ParentSpanID != "" {
		if span.ParentID, err = id(in.ParentSpanID, 8); err != nil {
			return Span{}, fmt.Errorf("parent: %w", err)
		}
	}
	if strings.Trim(span.ParentID, "0") == "" {
		span.ParentID = ""
	}
	for _, event := range in.Events {
		span.Events = append(span.Events, Event{
			Time: time.Unix(0, int64(event.Time)).UTC(), Name: event.Name, Attributes: decodeAttributes(event.Attributes),
		})
	}
	slices.SortStableFunc(span.Events, func(a, b Event) int { return a.Time.Compare(b.Time) })
	for _, link := range in.Links {
		var l Link
		if l.TraceID, err = id(link.TraceID, 16); err != nil {
			return Span{}, fmt.Errorf("link: %w", err)
		}
		if l.SpanID, err = id(link.SpanID, 8); err != nil {
			return Span{}, fmt.Errorf("link: %w", err)
		}
		span.Links = append(span.Links, l)
	}
	return span, nil
}

func decodeAttributes(attributes []otlpAttribute) map[string]any {
	values := make(map[string]any, len(attributes))
	for _, a := range attributes {
		switch v := a.Value.plain(0).(type) {
		case []any, map[string]any:
			text, _ := json.Marshal(v) // of plain values: it has no error
			values[a.Key] = string(text)
		case nil:
			values[a.Key] = ""
		case jsonDouble:
			values[a.Key] = float64(v)
		default:
			values[a.Key] = v
		}
	}
	return values
}

// jsonDouble is a float that JSON can hold, whichever it is.
type jsonDouble float64

func (d jsonDouble) MarshalJSON() ([]byte, error) {
	if f := float64(d); math.IsNaN(f) || math.IsInf(f, 0) {
		return json.Marshal(strconv.FormatFloat(f, 'g', -1, 64))
	}
	return json.Marshal(float64(d))
}

// plain is the value as encoding/json would have read it.
func (v otlpValue) plain(depth int) any {
	switch {
	case depth > maxDepth:
		return "…"
	case v.String != nil:
		return *v.String
	case v.Bool != nil:
		return *v.Bool
	case v.Int != nil:
		return int64(*v.Int)
	case v.Double != nil:
		return jsonDouble(*v.Double)
	case v.Bytes != nil:
		return *v.Bytes
	case v.Array != nil:
		list := make([]any, len(v.Array.Values))
		for i, element := range v.Array.Values {
			list[i] = element.plain(depth + 1)
		}
		return list
	case v.Map != nil:
		values := make(map[string]any, len(v.Map.Values))
		for _, a := range v.Map.Values {
			values[a.Key] = a.Value.plain(depth + 1)
		}
		return values
	}
	return nil
}

// id is an id of so many bytes in hexadecimal digits, from these or from base64.
func id(text string, bytes int) (string, error) {
	if len(text) == hex.EncodedLen(bytes) {
		if decoded, err := hex.DecodeString(text); err == nil {
			return hex.EncodeToString(decoded), nil // in small letters
		}
	}
	if decoded, err := base64.StdEncoding.DecodeString(text); err == nil && len(decoded) == bytes {
		return hex.EncodeToString(decoded), nil
	}
	if len(text) > 64 {
		text = text[:64] + "…"
	}
	return "", fmt.Errorf("%q is no id of %d bytes", text, bytes)
}

// firstLine is enough to quote of what a server says.
func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if len(line) > 300 {
		line = line[:300] + "…"
	}
	return strings.ToValidUTF8(line, "?")
}
