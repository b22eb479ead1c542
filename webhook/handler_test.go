package webhook

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

const (
	testTraceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	testTraceID     = "4bf92f3577b34da6a3ce929d0e0e4736"
	testParentID    = "00f067aa0ba902b7"
	testUID         = "705ab4f5-6393-11e8-b7cc-42010a800002"
)

const testReview = `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"` + testUID + `",` +
	`"kind":{"group":"apps","version":"v1","kind":"Deployment"},"resource":{"group":"apps","version":"v1","resource":"deployments"},` +
	`"name":"web","namespace":"shop","operation":"CREATE","userInfo":{"username":"alice","groups":["secret-group"]},` +
	`"object":{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","annotations":{"a":"secret-value"}}},"oldObject":null,"dryRun":true}}`

// sequentialIDs makes span ids 1, 2, 3, …, so that what is recorded stays the same.
type sequentialIDs struct{ last atomic.Uint64 }

func (s *sequentialIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	id := trace.TraceID{15: 0xff}
	return id, s.NewSpanID(ctx, id)
}

func (s *sequentialIDs) NewSpanID(context.Context, trace.TraceID) (id trace.SpanID) {
	binary.BigEndian.PutUint64(id[:], s.last.Add(1))
	return id
}

type recorded struct {
	spans   *tracetest.SpanRecorder
	metrics *metric.ManualReader
	log     *bytes.Buffer
}

// newTestHandler is New with the usual mutator, and everything that it tells recorded.
func newTestHandler(t *testing.T, o Options) (http.Handler, recorded) {
	t.Helper()
	rec := recorded{spans: tracetest.NewSpanRecorder(), metrics: metric.NewManualReader(), log: new(bytes.Buffer)}
	o.TracerProvider = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(rec.spans), sdktrace.WithIDGenerator(new(sequentialIDs)))
	o.MeterProvider = metric.NewMeterProvider(metric.WithReader(rec.metrics))
	o.Logger = slog.New(slog.NewTextHandler(rec.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if o.Mutators == nil {
		o.Mutators = Chain{{Name: "trace-context", Mutator: newTraceContext(t, TraceContextOptions{})}}
	}
	handler, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/mutate", handler)
	return mux, rec
}

// testNow is what the clock of every test says.
var testNow = time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)

func newTraceContext(t testing.TB, o TraceContextOptions) *TraceContext {
	t.Helper()
	if o.Now == nil {
		o.Now = func() time.Time { return testNow }
	}
	m, err := NewTraceContext(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestACallIsAServerSpanBelowTheAPIServersSpanAndOneSpanForEachMutator(t *testing.T) {
	handler, rec := newTestHandler(t, Options{})
	post(handler, []byte(testReview))

	spans := rec.spans.Ended()
	if len(spans) != 2 {
		t.Fatalf("got %d spans, want 2: %v", len(spans), spans)
	}
	mutate, server := spans[0], spans[1]
	if server.Name() != "POST /mutate" || server.SpanKind() != trace.SpanKindServer {
		t.Errorf("got %s span %q, want server span %q", server.SpanKind(), server.Name(), "POST /mutate")
	}
	if got := server.Parent(); got.TraceID().String() != testTraceID || got.SpanID().String() != testParentID || !got.IsRemote() {
		t.Errorf("the server span's parent is %s-%s, want the one in the header", got.TraceID(), got.SpanID())
	}
	if mutate.Name() != "mutate trace-context" || mutate.SpanKind() != trace.SpanKindInternal {
		t.Errorf("got %s span %q, want internal span %q", mutate.SpanKind(), mutate.Name(), "mutate trace-context")
	}
	if mutate.Parent().SpanID() != server.SpanContext().SpanID() {
		t.Error("the mutator's span is not below the server span")
	}
	want := map[attribute.Key]any{
		keyUID: testUID, keyOperation: "CREATE", keyKind: "apps/v1/Deployment", keyResource: "apps/v1/deployments",
		keySubResource: "", keyName: "web", keyDryRun: true, "k8s.namespace.name": "shop",
		keyAllowed: true, keyOperations: int64(2), keyOutcome: "patched",
	}
	got := map[attribute.Key]any{}
	for _, a := range server.Attributes() {
		if _, ours := want[a.Key]; ours || strings.HasPrefix(string(a.Key), "admission.") || strings.HasPrefix(string(a.Key), "k8s.") {
			got[a.Key] = a.Value.AsInterface()
		}
		if text := fmt.Sprint(a.Value.AsInterface()); strings.Contains(text, "secret") || strings.Contains(text, "alice") {
			t.Errorf("attribute %s tells of the user or the object: %s", a.Key, text)
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("attributes of the server span\ngot  %v\nwant %v", got, want)
	}
	if server.Status().Code != codes.Unset {
		t.Errorf("status %v, want unset", server.Status())
	}
}

func TestTheStampIsTheServerSpansContext(t *testing.T) {
	handler, rec := newTestHandler(t, Options{})
	w := post(handler, []byte(testReview))
	server := rec.spans.Ended()[1].SpanContext()
	want := "00-" + testTraceID + "-" + server.SpanID().String() + "-01"
	if got := transcript(t, []byte(testReview), w); !strings.Contains(got, want) {
		t.Errorf("got\n%s\nwant in it the stamp %s", got, want)
	}
}

func TestBaggageIsNotReadAndABrokenTraceparentStartsATrace(t *testing.T) {
	for name, header := range map[string]string{"absent": "", "zeros": "00-00000000000000000000000000000000-0000000000000000-01", "garbage": "00-xyz"} {
		t.Run(name, func(t *testing.T) {
			handler, rec := newTestHandler(t, Options{})
			r := httptest.NewRequest(http.MethodPost, "/mutate", strings.NewReader(testReview))
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Baggage", "user=alice")
			if header != "" {
				r.Header.Set("Traceparent", header)
			}
			handler.ServeHTTP(httptest.NewRecorder(), r)
			for _, span := range rec.spans.Ended() {
				if span.SpanContext().TraceID() != (trace.TraceID{15: 0xff}) {
					t.Errorf("span %s is in trace %s, want one of our own", span.Name(), span.SpanContext().TraceID())
				}
			}
		})
	}
}

func TestACallThatIsNoReviewIsRefusedClearly(t *testing.T) {
	long := strings.Repeat("x", 200)
	for name, test := range map[string]struct {
		method, contentType, body string
		status                    int
		errorType, says           string
	}{
		"GET":                     {http.MethodGet, "application/json", "", 405, "method_not_allowed", "POST"},
		"a method never heard of": {"BREW", "application/json", "", 405, "method_not_allowed", "BREW"},
		"no content type":         {http.MethodPost, "", testReview, 415, "unsupported_media_type", "application/json"},
		"YAML":                    {http.MethodPost, "application/yaml", testReview, 415, "unsupported_media_type", "application/yaml"},
		"a long content type":     {http.MethodPost, long, testReview, 415, "unsupported_media_type", "…"},
		"an empty body":           {http.MethodPost, "application/json", "", 400, "empty_body", "empty"},
		"a large body":            {http.MethodPost, "application/json", testReview + strings.Repeat(" ", 1000), 413, "body_too_large", "1000 bytes"},
		"half a body":             {http.MethodPost, "application/json", testReview[:70], 400, "malformed_review", "byte"},
	} {
		t.Run(name, func(t *testing.T) {
			handler, rec := newTestHandler(t, Options{MaxBodyBytes: 1000})
			r := httptest.NewRequest(test.method, "/mutate", strings.NewReader(test.body))
			r.Header.Set("Content-Type", test.contentType)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			if w.Code != test.status || !strings.Contains(w.Body.String(), test.says) {
				t.Errorf("got %d %q, want %d and %q", w.Code, w.Body, test.status, test.says)
			}
			rec.wantCount(t, "refused", test.errorType)
			if log := rec.log.String(); !strings.Contains(log, "level=WARN") || !strings.Contains(log, test.errorType) || strings.Contains(log, long) {
				t.Errorf("log: %s", log)
			}
		})
	}
}

func TestABodyOfUnknownLengthIsBoundedToo(t *testing.T) {
	handler, rec := newTestHandler(t, Options{MaxBodyBytes: 1000})
	r := httptest.NewRequest(http.MethodPost, "/mutate", iotest.HalfReader(strings.NewReader(testReview+strings.Repeat(" ", 1000))))
	r.ContentLength = -1
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	if w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	rec.wantCount(t, "refused", "body_too_large")
}

func TestACallThatBreaksOffIsRefused(t *testing.T) {
	handler, rec := newTestHandler(t, Options{})
	r := httptest.NewRequest(http.MethodPost, "/mutate", iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(testReview))))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	if w.Code != http.StatusBadRequest {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	rec.wantCount(t, "refused", "unreadable_body")
}

func TestAFailureOfOursAllowsTheRequestWithoutAPatch(t *testing.T) {
	stamp := Step{Name: "stamp", Mutator: newTraceContext(t, TraceContextOptions{})}
	for name, test := range map[string]struct {
		mutator   MutatorFunc
		errorType string
	}{
		"late": {func(context.Context, *Request, *Response) error {
			return fmt.Errorf("out of luck: %w", context.DeadlineExceeded)
		}, "deadline_exceeded"},
		"error": {func(context.Context, *Request, *Response) error { return errors.New("out of luck") }, "mutator_error"},
		"panic": {func(context.Context, *Request, *Response) error { panic("out of luck") }, "mutator_panic"},
	} {
		t.Run(name, func(t *testing.T) {
			handler, rec := newTestHandler(t, Options{Mutators: Chain{stamp, {Name: "broken", Mutator: test.mutator}}})
			w := post(handler, []byte(testReview))
			want := "200 application/json\nuid " + testUID + "\nallowed true\nno patch\n"
			if got := transcript(t, []byte(testReview), w); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			rec.wantCount(t, "failed_open", test.errorType)
			server := rec.spans.Ended()[2]
			if server.Status().Code != codes.Error || !strings.Contains(server.Status().Description, "out of luck") {
				t.Errorf("span status %v, want the error", server.Status())
			}
			log := rec.log.String()
			for _, part := range []string{"level=ERROR", testUID, testTraceID, "out of luck"} {
				if !strings.Contains(log, part) {
					t.Errorf("log lacks %q: %s", part, log)
				}
			}
			if len(w.Header().Values("Content-Type")) != 1 {
				t.Errorf("headers: %v", w.Header())
			}
			// The memory of the broken call must not leak into the next one.
			if next := transcript(t, []byte(testReview), post(handler, []byte(testReview))); next != want {
				t.Errorf("second call: got\n%s\nwant\n%s", next, want)
			}
		})
	}
}

// choosy panics when it is asked whether it wants a request.
type choosy struct{ MutatorFunc }

func (choosy) Wants(*Request, *Response) bool { panic("out of luck") }

func TestAMutatorThatPanicsWhenItIsAskedFailsOpenToo(t *testing.T) {
	handler, rec := newTestHandler(t, Options{Mutators: Chain{{Name: "choosy", Mutator: choosy{}}}})
	w := post(handler, []byte(testReview))
	if got, want := transcript(t, []byte(testReview), w), "200 application/json\nuid "+testUID+"\nallowed true\nno patch\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	rec.wantCount(t, "failed_open", "mutator_panic")
}

// deafWriter is a caller that has gone.
type deafWriter struct{ *httptest.ResponseRecorder }

func (deafWriter) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestAnAnswerThatNobodyTakesIsRecorded(t *testing.T) {
	handler, rec := newTestHandler(t, Options{})
	r := httptest.NewRequest(http.MethodPost, "/mutate", strings.NewReader(testReview))
	r.Header.Set("Content-Type", "application/json")
	handler.ServeHTTP(deafWriter{httptest.NewRecorder()}, r)
	rec.wantCount(t, "unanswered", "write_error")
	if status := rec.span(t, "POST /mutate").Status(); status.Code != codes.Error || !strings.Contains(status.Description, "broken pipe") {
		t.Errorf("span status %v, want the error", status)
	}
	if log := rec.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "broken pipe") {
		t.Errorf("log: %s", log)
	}
}

func TestAMutatorGetsTheCallersTimeoutLessAMargin(t *testing.T) {
	for query, want := range map[string]time.Duration{
		"?timeout=2s": 2*time.Second - answerMargin, "": defaultTimeout - answerMargin, "?timeout=1h": longestTimeout - answerMargin,
		"?timeout=-1s": defaultTimeout - answerMargin, "?timeout=soon": defaultTimeout - answerMargin, "?timeout=1ns": answerMargin, "?%zz": defaultTimeout - answerMargin,
	} {
		t.Run(query, func(t *testing.T) {
			var left time.Duration
			handler, _ := newTestHandler(t, Options{Mutators: Chain{{Name: "look", Mutator: MutatorFunc(func(ctx context.Context, _ *Request, _ *Response) error {
				deadline, _ := ctx.Deadline()
				left = time.Until(deadline)
				return nil
			})}}})
			r := httptest.NewRequest(http.MethodPost, "/mutate", strings.NewReader(testReview))
			r.URL.RawQuery = strings.TrimPrefix(query, "?")
			r.Header.Set("Content-Type", "application/json")
			handler.ServeHTTP(httptest.NewRecorder(), r)
			if left > want || left < want-time.Second {
				t.Errorf("%s left, want just under %s", left, want)
			}
		})
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	for name, o := range map[string]Options{
		"negative limit": {MaxBodyBytes: -1},
		"nameless":       {Mutators: Chain{{Mutator: MutatorFunc(nil)}}},
		"nil mutator":    {Mutators: Chain{{Name: "x"}}},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// wantCount checks that the histogram has counted exactly one call, with this ending.
func (r recorded) wantCount(t *testing.T, outcome, errorType string) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := r.metrics.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	if len(all.ScopeMetrics) != 1 || all.ScopeMetrics[0].Metrics[0].Name != "tracehook.admission.duration" {
		t.Fatalf("got %v, want the histogram of durations first", all.ScopeMetrics)
	}
	points := all.ScopeMetrics[0].Metrics[0].Data.(metricdata.Histogram[float64]).DataPoints
	if len(points) != 1 || points[0].Count != 1 {
		t.Fatalf("got %v, want one call", points)
	}
	set := points[0].Attributes
	gotOutcome, _ := set.Value(keyOutcome)
	gotType, _ := set.Value("error.type")
	if gotOutcome.AsString() != outcome || gotType.AsString() != errorType {
		t.Errorf("counted %v, want outcome %s, error.type %s", set.ToSlice(), outcome, errorType)
	}
	keys := []string{}
	for _, a := range set.ToSlice() {
		keys = append(keys, string(a.Key))
	}
	if want := []string{"admission.request.operation", "admission.request.resource", "error.type", "tracehook.outcome"}; !slices.Equal(keys, want) {
		t.Errorf("attributes %v, want %v", keys, want)
	}
}
