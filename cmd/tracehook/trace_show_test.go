package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

const (
	anID     = "0af7651916cd43dd8448eb211c80319c"
	aCall    = "00000000000000c1"
	ofServer = `{"traceId": "` + anID + `", "spanId": "00000000000000d1", "parentSpanId": "` + aCall + `", "name": "GET", "kind": 2}`
	ofChild  = `{"traceId": "` + anID + `", "spanId": "00000000000000e1", "parentSpanId": "00000000000000ee", "name": "lost", "kind": 1}`
)

// waiting is a wait for a trace of one call, at a store that gives these answers in turn, the last
// one from then on; "" is 404.
func waiting(t *testing.T, answers ...string) traceWait {
	t.Helper()
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := answers[min(int(asked.Add(1)), len(answers))-1]
		switch answer {
		case "":
			http.Error(w, `{"error":{"httpCode":404,"message":"No traces found"}}`, http.StatusNotFound)
		case "busy":
			http.Error(w, answer, http.StatusServiceUnavailable)
		default:
			fmt.Fprintf(w, `{"result": {"resourceSpans": [{"scopeSpans": [{"spans": [%s]}]}]}}`, answer)
		}
	}))
	t.Cleanup(server.Close)
	return traceWait{
		Store: &tracestore.Client{BaseURL: server.URL}, Timeout: time.Minute, Now: time.Now, Calls: []string{aCall},
		Own: tracestore.Trace{ID: anID, Spans: []tracestore.Span{{ID: "00000000000000a1", Name: "kubectl get"}, {ID: aCall, ParentID: "00000000000000a1", Name: "GET", Kind: tracestore.KindClient}}},
	}
}

func TestTheWaitEndsAsSoonAsTheTraceIsComplete(t *testing.T) {
	for name, answers := range map[string][]string{
		"it comes at last":       {"", "busy", ofServer},
		"in pieces":              {"", ofChild, ofChild + "," + ofServer, ofServer},
		"it was there at once":   {ofServer},
		"the store was not sure": {ofServer, "", ofServer},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			trace, lines := waiting(t, answers...).collect(t.Context())
			if len(lines) > 0 || time.Since(began) > 30*time.Second {
				t.Errorf("after %s it says %q", time.Since(began), lines)
			}
			if len(trace.Spans) != 3 {
				t.Errorf("%d spans, want its own two and the API server's", len(trace.Spans))
			}
		})
	}
}

func TestTheWaitIsBoundedAndSaysWhatIsMissing(t *testing.T) {
	for name, c := range map[string]struct {
		answer, want string
		spans        int
	}{
		"nothing":          {"", "after 3s nothing of this trace was in the store; is it where the spans are exported to? `tracehook show " + anID + "`", 2},
		"an error":         {"busy", "the trace store could not be read: 503 Service Unavailable: busy", 2},
		"not the server's": {strings.Replace(ofServer, `"kind": 2`, `"kind": 1`, 1), "1 calls have no span of the API server", 3},
		"an orphan":        {ofServer + "," + ofChild, "the parents of 1 spans have not arrived", 4},
		"own spans only":   {strings.NewReplacer("00000000000000d1", aCall, `"parentSpanId": "`+aCall+`"`, `"parentSpanId": "00000000000000a1"`, `"kind": 2`, `"kind": 3`).Replace(ofServer), "after 3s nothing of the API server has arrived", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wait := waiting(t, c.answer)
			wait.Timeout = 3 * time.Second // the store is asked in it
			trace, lines := wait.collect(t.Context())
			if len(lines) != 1 || !strings.Contains(lines[0], c.want) {
				t.Errorf("it says %q, want %q", lines, c.want)
			}
			if len(trace.Spans) != c.spans {
				t.Errorf("%d spans, want %d", len(trace.Spans), c.spans)
			}
		})
	}
}

func TestASignalEndsTheWait(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	wait := waiting(t, "")
	time.AfterFunc(50*time.Millisecond, cancel)
	trace, lines := wait.collect(ctx)
	if len(lines) != 1 || !strings.Contains(lines[0], "not waited for the rest") || len(trace.Spans) != 2 {
		t.Errorf("%d spans, it says %q", len(trace.Spans), lines)
	}
}

func TestWhereTheAPIServerOnlyLinksNothingIsAwaited(t *testing.T) {
	wait := waiting(t, strings.NewReplacer("00000000000000d1", aCall, `"parentSpanId": "`+aCall+`"`, `"parentSpanId": "00000000000000a1"`).Replace(ofServer))
	wait.Linked = true
	if _, lines := wait.collect(t.Context()); len(lines) > 0 {
		t.Errorf("it says %q", lines)
	}
}

func TestLinksAreFollowedOnceAndToTheGivenDepth(t *testing.T) {
	id := func(n int) string { return fmt.Sprintf("%032x", n) }
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var n int
		if _, err := fmt.Sscanf(strings.TrimPrefix(r.URL.Path, "/api/v3/traces/"), "%x", &n); err != nil || n == 9 {
			http.Error(w, `{"error":{"httpCode":404,"message":"No traces found"}}`, http.StatusNotFound)
			return
		}
		// Each links to itself, to the next one and to one that is gone.
		fmt.Fprintf(w, `{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": %q, "spanId": "00000000000000a1", "name": "reconcile", "links": [
			{"traceId": %q, "spanId": "00000000000000a1"}, {"traceId": %q, "spanId": "00000000000000a1"}, {"traceId": %q, "spanId": "00000000000000a1"}]}]}]}]}`,
			id(n), id(n), id(n+1), id(9))
	}))
	defer server.Close()
	store := &tracestore.Client{BaseURL: server.URL}
	trace, err := store.Trace(t.Context(), id(1))
	if err != nil {
		t.Fatal(err)
	}
	if n := linksOut(trace); n != 2 {
		t.Errorf("it links to %d other traces, want 2", n)
	}
	for depth, want := range []string{"", "2 9", "2 9 3"} {
		asked.Store(0)
		linked, left := followLinks(t.Context(), store, trace, depth)
		var got []string
		for _, l := range linked {
			got = append(got, strings.TrimLeft(l.Trace.ID, "0"))
		}
		if strings.Join(got, " ") != want || left != 0 || int(asked.Load()) != len(linked) {
			t.Errorf("depth %d: %v after %d questions, %d left, want %s", depth, got, asked.Load(), left, want)
		}
	}
	linked, _ := followLinks(t.Context(), store, trace, 1)
	if want := "reconcile of  links to trace " + id(9) + ", which the store does not hold"; linked[1].why() != want {
		t.Errorf("%q, want %q", linked[1].why(), want)
	}
	for n := range 30 {
		trace.Spans[0].Links = append(trace.Spans[0].Links, tracestore.Link{TraceID: id(100 + n)})
	}
	if linked, left := followLinks(t.Context(), store, trace, 3); len(linked) != mostLinked || left == 0 {
		t.Errorf("%d traces fetched, %d left, want no more than %d", len(linked), left, mostLinked)
	}
}
