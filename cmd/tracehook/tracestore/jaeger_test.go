package tracestore_test

import (
	"errors"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

func TestARecordedTraceDecodesIntoOneTree(t *testing.T) {
	trace := recorded(t, "testdata/configmap.json")
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

// everyField is one span with something in each field that Decode reads.
const everyField = `{"data": [{"traceID": "f00d", "processes": {
	"p1": {"serviceName": "shop", "tags": [{"key": "host.name", "type": "string", "value": "a"}]}},
"spans": [{
	"traceID": "f00d", "spanID": "ab", "operationName": "pay", "processID": "p1",
	"startTime": 1700000000000001, "duration": 1500,
	"references": [
		{"refType": "FOLLOWS_FROM", "traceID": "beef", "spanID": "1"},
		{"refType": "CHILD_OF", "traceID": "f00d", "spanID": "2"}],
	"tags": [
		{"key": "span.kind", "type": "string", "value": "producer"},
		{"key": "otel.scope.name", "type": "string", "value": "lib"},
		{"key": "otel.scope.version", "type": "string", "value": "1.2"},
		{"key": "otel.status_code", "type": "string", "value": "ERROR"},
		{"key": "otel.status_description", "type": "string", "value": "no money"},
		{"key": "error", "type": "bool", "value": true},
		{"key": "internal.span.format", "type": "string", "value": "otlp"},
		{"key": "s", "type": "string", "value": "x"},
		{"key": "b", "type": "bool", "value": false},
		{"key": "i", "type": "int64", "value": 42},
		{"key": "large", "type": "int64", "value": "9223372036854775807"},
		{"key": "f", "type": "float64", "value": 2},
		{"key": "raw", "type": "binary", "value": "AQI="}],
	"logs": [
		{"timestamp": 1700000000000900, "fields": [{"key": "event", "type": "string", "value": "second"}]},
		{"timestamp": 1700000000000500, "fields": [
			{"key": "event", "type": "string", "value": "first"}, {"key": "n", "type": "int64", "value": 1}]}]
}]}]}`

func TestDecodeGivesEveryFieldItsPlace(t *testing.T) {
	trace, err := tracestore.Decode(strings.NewReader(everyField))
	if err != nil {
		t.Fatal(err)
	}
	start := time.UnixMicro(1700000000000001).UTC()
	want := tracestore.Trace{
		ID: "0000000000000000000000000000f00d",
		Spans: []tracestore.Span{{
			ID: "00000000000000ab", ParentID: "0000000000000002",
			Service: "shop", Scope: "lib", ScopeVersion: "1.2", Name: "pay", Kind: tracestore.KindProducer,
			Start: start, Duration: 1500 * time.Microsecond,
			Attributes: map[string]any{"s": "x", "b": false, "i": int64(42), "large": int64(9223372036854775807), "f": 2.0, "raw": []byte{1, 2}},
			Events: []tracestore.Event{
				{Time: start.Add(499 * time.Microsecond), Name: "first", Attributes: map[string]any{"n": int64(1)}},
				{Time: start.Add(899 * time.Microsecond), Name: "second", Attributes: map[string]any{}},
			},
			Links:  []tracestore.Link{{TraceID: "0000000000000000000000000000beef", SpanID: "0000000000000001"}},
			Status: tracestore.StatusError, StatusMessage: "no money",
			Resource: map[string]any{"host.name": "a"},
		}},
	}
	if !reflect.DeepEqual(trace, want) {
		t.Errorf("decoded\n%+v\nwant\n%+v", trace, want)
	}
}

func TestASpanThatLinksToItsOwnParentKeepsBoth(t *testing.T) {
	trace, err := tracestore.Decode(strings.NewReader(`{"data": [{"traceID": "f00d", "processes": {"p1": {"serviceName": "s"}},
		"spans": [{"spanID": "ab", "operationName": "o", "processID": "p1",
			"references": [{"refType": "FOLLOWS_FROM", "traceID": "f00d", "spanID": "2"}]}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	span := trace.Spans[0]
	if span.ParentID != "0000000000000002" || len(span.Links) != 1 || span.Links[0].SpanID != span.ParentID {
		t.Errorf("parent %q, links %v, want 0000000000000002 as both", span.ParentID, span.Links)
	}
}

func TestDecodeSaysWhatItDoesNotUnderstand(t *testing.T) {
	span := func(rest string) string {
		return `{"data": [{"traceID": "f00d", "processes": {"p1": {"serviceName": "s"}}, "spans": [{"spanID": "ab", "operationName": "pay", ` + rest + `}]}]}`
	}
	for name, c := range map[string]struct{ answer, want string }{
		"no JSON":          {`<html>`, "invalid character"},
		"two traces":       {`{"data": [{"traceID": "1"}, {"traceID": "2"}]}`, "2 traces"},
		"no trace id":      {`{"data": [{}]}`, "no id"},
		"a long trace id":  {`{"data": [{"traceID": "000000000000000000000000000000001"}]}`, "no id"},
		"a crooked id":     {`{"data": [{"traceID": "xyz"}]}`, "no id"},
		"no process":       {span(`"processID": "p9"`), `span "pay" ab: no process "p9"`},
		"an unknown type":  {span(`"processID": "p1", "tags": [{"key": "k", "type": "moon", "value": 1}]`), `attribute k: unknown type "moon"`},
		"a wrong type":     {span(`"processID": "p1", "tags": [{"key": "k", "type": "int64", "value": "many"}]`), "attribute k: "},
		"a status unknown": {span(`"processID": "p1", "tags": [{"key": "otel.status_code", "type": "string", "value": "MAYBE"}]`), `unknown status "MAYBE"`},
		"an error":         {`{"data": null, "errors": [{"code": 500, "msg": "disk full"}]}`, "disk full"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tracestore.Decode(strings.NewReader(c.answer))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one that contains %q", err, c.want)
			}
		})
	}
	if _, err := tracestore.Decode(strings.NewReader(`{"data": [], "errors": [{"code": 404, "msg": "trace not found"}]}`)); !errors.Is(err, tracestore.ErrNotFound) {
		t.Errorf("an answer without a trace gives %v, want ErrNotFound", err)
	}
}

// FuzzDecode: whatever decodes must come out of Forest once, span for span.
func FuzzDecode(f *testing.F) {
	// Small seeds: the fuzzer spends its time on shortening large ones.
	f.Add(everyField)
	f.Add(`{"data": [{"traceID": "1", "processes": {"p": {}}, "spans": [
		{"spanID": "1", "processID": "p", "references": [{"refType": "CHILD_OF", "traceID": "1", "spanID": "2"}]},
		{"spanID": "2", "processID": "p", "references": [{"refType": "CHILD_OF", "traceID": "1", "spanID": "1"}]},
		{"spanID": "2", "processID": "p", "references": [{"refType": "CHILD_OF", "traceID": "1", "spanID": "2"}]}]}]}`)
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

func recorded(t *testing.T, path string) tracestore.Trace {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	trace, err := tracestore.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	return trace
}
