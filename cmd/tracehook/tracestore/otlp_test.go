package tracestore_test

import (
	"errors"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore/recorded"
)

func TestARecordedTraceDecodesIntoOneTree(t *testing.T) {
	trace := recorded.Trace(t, "configmap")
	if want := "0af7651916cd43dd8448eb211c80319c"; trace.ID != want {
		t.Errorf("trace id is %s, want %s", trace.ID, want)
	}
	forest := trace.Forest()
	if len(forest) != 1 || forest[0].Lost != tracestore.NotLost {
		t.Fatalf("%d trees, want 1 with nothing lost", len(forest))
	}
	var got []string
	forest[0].Walk(func(n *tracestore.Node, depth int) {
		got = append(got, strings.Repeat(" ", depth)+n.Span.Service+" "+n.Span.Name)
	})
	want := []string{
		"kubectl kubectl create",
		" kubectl HTTP GET",
		"  apiserver GET",
		"   apiserver audit",
		"    apiserver constrainedimpersonation",
		"     apiserver priorityandfairness",
		"      apiserver authorization",
		" kubectl HTTP POST",
		"  apiserver POST /api/v1/namespaces/{:namespace}/configmaps",
		"   apiserver audit",
		"    apiserver constrainedimpersonation",
		"     apiserver priorityandfairness",
		"      apiserver authorization",
		"       apiserver Create",
		"        apiserver Call mutating webhook",
		"         apiserver HTTP POST",
		"          tracehook POST /mutate",
		"           tracehook mutate trace-context",
		"        apiserver Create etcd3",
		"         apiserver etcdserverpb.KV/Txn",
		"          etcd etcdserverpb.KV/Txn",
		"        apiserver SerializeObject",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the tree is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for i := 1; i < len(trace.Spans); i++ {
		if trace.Spans[i].Start.Before(trace.Spans[i-1].Start) {
			t.Errorf("span %d (%s) starts before span %d (%s)", i, trace.Spans[i].Name, i-1, trace.Spans[i-1].Name)
		}
	}
}

// everyField is one span with something in each field that Decode reads, as Jaeger writes it.
const everyField = `{"result": {"resourceSpans": [{
	"resource": {"attributes": [
		{"key": "service.name", "value": {"stringValue": "shop"}}, {"key": "host.name", "value": {"stringValue": "a"}}]},
	"scopeSpans": [{"scope": {"name": "lib", "version": "1.2"}, "spans": [{
		"traceId": "0000000000000000000000000000F00D", "spanId": "00000000000000ab", "parentSpanId": "0000000000000002",
		"name": "pay", "kind": 4, "startTimeUnixNano": "1700000000000001002", "endTimeUnixNano": "1700000000001501002",
		"attributes": [
			{"key": "s", "value": {"stringValue": "x"}},
			{"key": "none", "value": {}},
			{"key": "b", "value": {"boolValue": false}},
			{"key": "i", "value": {"intValue": 42}},
			{"key": "large", "value": {"intValue": "9223372036854775807"}},
			{"key": "f", "value": {"doubleValue": 2}},
			{"key": "inf", "value": {"doubleValue": "-Infinity"}},
			{"key": "list", "value": {"arrayValue": {"values": [{"stringValue": "x"}, {"intValue": "1"}, {"doubleValue": "NaN"}, {}]}}},
			{"key": "map", "value": {"kvlistValue": {"values": [{"key": "k", "value": {"arrayValue": {}}}]}}},
			{"key": "raw", "value": {"bytesValue": "AQI="}}],
		"events": [
			{"timeUnixNano": "1700000000000900000", "name": "second"},
			{"timeUnixNano": "1700000000000500000", "name": "first", "attributes": [{"key": "n", "value": {"intValue": "1"}}]}],
		"links": [{"traceId": "0000000000000000000000000000beef", "spanId": "0000000000000001"}],
		"status": {"code": 2, "message": "no money"}}]}]}]}}`

// The same span as Tempo writes it: ids in base64, names for numbers, another wrapping.
var asTempo = strings.NewReplacer(
	`"result"`, `"trace"`, `"resourceSpans"`, `"batches"`,
	"0000000000000000000000000000F00D", "AAAAAAAAAAAAAAAAAADwDQ==", "00000000000000ab", "AAAAAAAAAKs=", "0000000000000002", "AAAAAAAAAAI=",
	"0000000000000000000000000000beef", "AAAAAAAAAAAAAAAAAAC+7w==", "0000000000000001", "AAAAAAAAAAE=",
	`"kind": 4`, `"kind": "SPAN_KIND_PRODUCER"`, `"code": 2`, `"code": "STATUS_CODE_ERROR"`,
).Replace(everyField)

func TestDecodeGivesEveryFieldItsPlace(t *testing.T) {
	start := time.Unix(0, 1700000000000001002).UTC()
	at := time.UnixMicro(1700000000000000).UTC()
	want := tracestore.Trace{
		ID: "0000000000000000000000000000f00d",
		Spans: []tracestore.Span{{
			ID: "00000000000000ab", ParentID: "0000000000000002",
			Service: "shop", Scope: "lib", ScopeVersion: "1.2", Name: "pay", Kind: tracestore.KindProducer,
			Start: start, Duration: 1500 * time.Microsecond,
			Attributes: map[string]any{
				"s": "x", "none": "", "b": false, "i": int64(42), "large": int64(9223372036854775807), "f": 2.0, "inf": math.Inf(-1),
				"list": `["x",1,"NaN",null]`, "map": `{"k":[]}`, "raw": []byte{1, 2}},
			Events: []tracestore.Event{
				{Time: at.Add(500 * time.Microsecond), Name: "first", Attributes: map[string]any{"n": int64(1)}},
				{Time: at.Add(900 * time.Microsecond), Name: "second", Attributes: map[string]any{}},
			},
			Links:  []tracestore.Link{{TraceID: "0000000000000000000000000000beef", SpanID: "0000000000000001"}},
			Status: tracestore.StatusError, StatusMessage: "no money",
			Resource: map[string]any{"host.name": "a"},
		}},
	}
	for form, answer := range map[string]string{
		"Jaeger":                everyField,
		"Jaeger, in two pieces": everyField + "\n" + `{"result": {"resourceSpans": []}}`,
		"the same span twice":   everyField + "\n" + everyField,
		"Tempo":                 asTempo,
		"bare OTLP":             strings.TrimSuffix(strings.TrimPrefix(everyField, `{"result": `), "}"),
	} {
		t.Run(form, func(t *testing.T) {
			trace, err := tracestore.Decode(strings.NewReader(answer))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(trace, want) {
				t.Errorf("decoded\n%+v\nwant\n%+v", trace, want)
			}
		})
	}
}

func TestOddTimesGiveASpanWithoutDuration(t *testing.T) {
	for times, want := range map[string]time.Duration{
		`"startTimeUnixNano": "5", "endTimeUnixNano": "5"`:                                      0,
		`"startTimeUnixNano": "5"`:                                                              0,
		`"startTimeUnixNano": "5", "endTimeUnixNano": "2"`:                                      0,
		`"startTimeUnixNano": "-9223372036854775808", "endTimeUnixNano": "9223372036854775807"`: 0,
		`"startTimeUnixNano": 5, "endTimeUnixNano": 7`:                                          2,
	} {
		trace, err := tracestore.Decode(strings.NewReader(answerWith(times)))
		if err != nil {
			t.Errorf("%s: %v", times, err)
			continue
		}
		if got := trace.Spans[0].Duration; got != want {
			t.Errorf("%s lasts %d ns, want %d", times, got, want)
		}
	}
}

func TestASpanThatLinksToItsOwnParentKeepsBoth(t *testing.T) {
	trace, err := tracestore.Decode(strings.NewReader(answerWith(`"parentSpanId": "0000000000000002",
		"links": [{"traceId": "0000000000000000000000000000f00d", "spanId": "0000000000000002"}]`)))
	if err != nil {
		t.Fatal(err)
	}
	span := trace.Spans[0]
	if span.ParentID != "0000000000000002" || len(span.Links) != 1 || span.Links[0].SpanID != span.ParentID {
		t.Errorf("parent %q, links %v, want 0000000000000002 as both", span.ParentID, span.Links)
	}
}

// answerWith is one span with more fields.
func answerWith(fields string) string {
	return `{"result": {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "0000000000000000000000000000f00d", "spanId": "00000000000000ab", ` + fields + `}]}]}]}}`
}

func TestDecodeSaysWhatItDoesNotUnderstand(t *testing.T) {
	many := func(n int, span string) string {
		return `{"resourceSpans": [{"scopeSpans": [{"spans": [` + strings.TrimSuffix(strings.Repeat(span+",", n), ",") + `]}]}]}`
	}
	for name, c := range map[string]struct{ answer, want string }{
		"nothing":           {``, "EOF"},
		"no JSON":           {`<html>`, "invalid character"},
		"an end too soon":   {everyField[:400], "unexpected EOF"},
		"two traces":        {everyField + strings.Replace(everyField, "F00D", "F00F", 1), "two traces"},
		"no trace id":       {many(1, `{"spanId": "00000000000000ab"}`), "trace id"},
		"a crooked id":      {answerWith(`"parentSpanId": "xyz"`), `parent: "xyz" is no id of 8 bytes`},
		"a long id":         {answerWith(`"parentSpanId": "` + strings.Repeat("f", 1000) + `"`), "is no id"},
		"a crooked number":  {answerWith(`"startTimeUnixNano": "soon"`), "soon"},
		"an error":          {`{"error": {"httpCode": 500, "message": "disk full\nstack trace"}}`, "the store says: disk full"},
		"too many spans":    {many(100_001, `{"traceId": "0000000000000000000000000000f00d", "spanId": "00000000000000ab"}`), "too large: more than 100000 spans"},
		"too many bytes":    {answerWith(`"name": "` + strings.Repeat("x", 33<<20) + `"`), "too large: more than 32 MiB"},
		"endless nesting":   {answerWith(`"attributes": ` + strings.Repeat(`[{"value": {"arrayValue": {"values": `, 20_000)), "exceeded max depth"},
		"text where a list": {answerWith(`"attributes": "x"`), "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tracestore.Decode(strings.NewReader(c.answer))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %.300v, want one that contains %q", err, c.want)
			}
			if err != nil && len(err.Error()) > 600 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
	for name, answer := range map[string]string{
		"no span":        `{"result": {"resourceSpans": []}}`,
		"an object":      `{}`,
		"Jaeger's error": `{"error": {"httpCode": 404, "message": "No traces found"}}`,
	} {
		if _, err := tracestore.Decode(strings.NewReader(answer)); !errors.Is(err, tracestore.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", name, err)
		}
	}
}

func TestDeepValuesEndInDots(t *testing.T) {
	value := strings.Repeat(`{"arrayValue": {"values": [`, 30) + `{"intValue": 1}` + strings.Repeat(`]}}`, 30)
	trace, err := tracestore.Decode(strings.NewReader(answerWith(`"attributes": [{"key": "k", "value": ` + value + `}]`)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := trace.Spans[0].Attributes["k"], strings.Repeat("[", 17)+`"…"`+strings.Repeat("]", 17); got != want {
		t.Errorf("the value is %s, want %s", got, want)
	}
}

// FuzzDecode: whatever decodes must come out of Forest once, span for span.
func FuzzDecode(f *testing.F) {
	// Small seeds: the fuzzer spends its time on shortening large ones.
	f.Add(everyField)
	f.Add(asTempo)
	f.Add(`{"resourceSpans": [{"scopeSpans": [{"spans": [
		{"traceId": "0000000000000000000000000000f00d", "spanId": "0000000000000001", "parentSpanId": "0000000000000002"},
		{"traceId": "0000000000000000000000000000f00d", "spanId": "0000000000000002", "parentSpanId": "0000000000000001"},
		{"traceId": "0000000000000000000000000000f00d", "spanId": "0000000000000002", "parentSpanId": "0000000000000002"}]}]}]}`)
	f.Fuzz(func(t *testing.T, answer string) {
		trace, err := tracestore.Decode(strings.NewReader(answer))
		if err != nil {
			return
		}
		seen := make(map[*tracestore.Span]int)
		for _, root := range trace.Forest() {
			root.Walk(func(n *tracestore.Node, _ int) { seen[n.Span]++ })
		}
		if len(seen) != len(trace.Spans) {
			t.Fatalf("%d of %d spans are in the forest", len(seen), len(trace.Spans))
		}
		for times := range maps.Values(seen) {
			if times != 1 {
				t.Fatalf("a span is %d times in the forest", times)
			}
		}
	})
}

func TestAnAnswerOfEmptyObjectsIsRefused(t *testing.T) {
	empty := `{"resourceSpans":[{"scopeSpans":[{"spans":[` + strings.Repeat("{},", 3_000_000) + `{}]}]}]}`
	if _, err := tracestore.Decode(strings.NewReader(empty)); err == nil || !strings.Contains(err.Error(), "objects") {
		t.Errorf("got %v", err)
	}
}
