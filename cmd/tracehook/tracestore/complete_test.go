package tracestore_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// arrived builds a trace from "id:kind<parent …".
func arrived(spans string) tracestore.Trace {
	var trace tracestore.Trace
	for _, text := range strings.Fields(spans) {
		text, parent, _ := strings.Cut(text, "<")
		id, kind, _ := strings.Cut(text, ":")
		trace.Spans = append(trace.Spans, tracestore.Span{ID: id, Kind: kind, ParentID: parent})
	}
	return trace
}

func TestATraceIsCompleteWhenEachCallIsAnsweredNoParentIsMissingAndNothingMoves(t *testing.T) {
	at := time.UnixMilli(0)
	for _, c := range []struct{ spans, calls, want string }{
		{"a b:client<a", "b", "1 calls have no span of the API server"},
		{"a b:client<a c:server<b", "b", ""},
		{"a b:client<a c:internal<b d:server<c", "b", ""},             // Kubernetes 1.36 has `authentication` in between
		{"a b:client<a c:client<a d:server<c", "b c", "1 calls have"}, // the other's answer does not count
		{"a b:client<a c:server<b", "b x", "1 calls have"},            // not even the call itself has come
		{"a b:client<a", "", ""},                                      // where the API server only links nothing is awaited
		{"a b:client<a c:server<b e<d", "b", "the parents of 1 spans have not arrived"},
		{"a<b b<a", "", "the parents of 1 spans have not arrived"},
	} {
		check := tracestore.Completeness{Calls: strings.Fields(c.calls), Quiet: time.Second}
		trace := arrived(c.spans)
		if err := check.Check(trace, at); err == nil {
			t.Errorf("%s is complete at once", c.spans)
		}
		got := fmt.Sprint(check.Check(trace, at.Add(time.Second)))
		if c.want == "" && got != "<nil>" || !strings.Contains(got, c.want) {
			t.Errorf("%s with the calls %q: %s, want %q", c.spans, c.calls, got, c.want)
		}
	}
	check := tracestore.Completeness{Quiet: time.Second}
	_ = check.Check(arrived("a"), at)
	if err := check.Check(arrived("a b<a"), at.Add(time.Second)); err == nil || err.Error() != "spans are still arriving" {
		t.Errorf("%v, although a span has just come", err)
	}
	if err := check.Check(arrived("a b<a"), at.Add(2*time.Second)); err != nil {
		t.Errorf("%v, although nothing has come for a second", err)
	}
}

func TestOwnSpansAreAddedToWhatArrived(t *testing.T) {
	own := arrived("a b:client<a")
	own.ID = "1"
	var got []string
	merged := tracestore.Merge(arrived("b:client<a c:server<b"), own)
	for _, s := range merged.Spans {
		got = append(got, s.ID)
	}
	if strings.Join(got, " ") != "a b c" || merged.ID != "1" {
		t.Errorf("merged into %v of %q, want a b c of 1", got, merged.ID)
	}
}
