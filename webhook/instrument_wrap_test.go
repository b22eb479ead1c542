package webhook_test

// What authors put around, into and beside a webhook: each works as it does without the
// instrumentation, and is told as what it was. To be run with -race.

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/tracehook/tracehook/webhook"
)

// ended waits for the span of a call over HTTP: it ends after the answer.
func (in instrumented) ended(t *testing.T) sdktrace.ReadOnlySpan {
	t.Helper()
	for len(in.spans.Ended()) == 0 {
		select {
		case <-t.Context().Done():
			t.Fatal("no span ended")
		case <-time.After(time.Millisecond):
		}
	}
	return in.spans.Ended()[0]
}

func attributeOf(span sdktrace.ReadOnlySpan, key attribute.Key) string {
	for _, a := range span.Attributes() {
		if a.Key == key {
			return a.Value.String()
		}
	}
	return ""
}

func wantOutcome(t *testing.T, span sdktrace.ReadOnlySpan, outcome, errorType string) {
	t.Helper()
	if got := attributeOf(span, "tracehook.outcome"); got != outcome {
		t.Errorf("outcome %q, want %q", got, outcome)
	}
	if got := attributeOf(span, "error.type"); got != errorType {
		t.Errorf("error.type %q, want %q", got, errorType)
	}
	want := codes.Unset
	if outcome == "failed" || outcome == "unanswered" {
		want = codes.Error
	}
	if span.Status().Code != want {
		t.Errorf("status %v, want %v", span.Status(), want)
	}
}

var allows = admission.HandlerFunc(func(context.Context, admission.Request) admission.Response { return admission.Allowed("") })

// post asks over a connection, as an API server does.
func post(t *testing.T, url, body string, header ...string) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, string(all)
}

// endless is a body that is always there to be read.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A handler that time runs out for goes on reading when the call is over.
func TestATimeoutHandlerMayGiveItsHandlerUp(t *testing.T) {
	in := newInstrumented()
	late, over := make(chan struct{}), make(chan struct{})
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(late)
		piece := make([]byte, 10)
		for {
			_, _ = r.Body.Read(piece)
			_, _ = w.Write(piece)
			select {
			case <-over:
				return
			default:
			}
		}
	})
	w := httptest.NewRecorder()
	webhook.InstrumentHTTP(http.TimeoutHandler(slow, time.Millisecond, "too late"), in.options).ServeHTTP(w, asked("/validate", endless{}))
	if w.Code != http.StatusServiceUnavailable || w.Body.String() != "too late" {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
	wantOutcome(t, in.ended(t), "failed", "503")
	close(over)
	<-late
}

// The same with a webhook that is instrumented itself: it tells, and too late it tells nothing.
func TestATimeoutHandlerMayGiveAWebhookUp(t *testing.T) {
	in := newInstrumented()
	release, late := make(chan struct{}), make(chan struct{})
	slow := webhook.Instrument(admission.HandlerFunc(func(ctx context.Context, _ admission.Request) admission.Response {
		defer close(late)
		<-release
		return admission.Errored(500, ctx.Err())
	}), in.options)
	w := call(http.TimeoutHandler(slow, time.Millisecond, "too late"), "/validate", review("v1"))
	close(release)
	<-late
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("got %d", w.Code)
	}
	wantOutcome(t, in.ended(t), "failed", "deadline_exceeded")
}

func TestAHandlerMayLeaveAGoroutineBehindThatReadsOn(t *testing.T) {
	in := newInstrumented()
	var behind sync.WaitGroup
	h := webhook.InstrumentHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := make(chan struct{})
		behind.Go(func() {
			close(started)
			_, _ = io.Copy(io.Discard, r.Body)
		})
		<-started
		_, _ = io.WriteString(w, answer(reviewUID, `,"allowed":true`)) // answered before it was read
	}), in.options)
	for range 20 {
		call(h, "/validate", strings.Repeat(" ", 1<<16)+review("v1"))
	}
	behind.Wait()
	for _, span := range in.spans.Ended() {
		wantOutcome(t, span, "unchanged", "")
	}
}

// encoded is middleware that encodes answers.
func encoded(name string, to func(io.Writer) io.WriteCloser, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", name)
		encoder := to(w)
		next.ServeHTTP(encodedWriter{w, encoder}, r)
		_ = encoder.Close()
	})
}

type encodedWriter struct {
	http.ResponseWriter
	to io.Writer
}

func (w encodedWriter) Write(p []byte) (int, error) { return w.to.Write(p) }

func TestAnEncodedAnswerIsReadAsItsCallerReadsIt(t *testing.T) {
	toGzip := func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }
	toZlib := func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) }
	toFlate := func(w io.Writer) io.WriteCloser { f, _ := flate.NewWriter(w, 9); return f }
	reversed := func(w io.Writer) io.WriteCloser { return &reverser{to: w} }
	broken := func(w io.Writer) io.WriteCloser { return brokenOff{gzip.NewWriter(w)} }
	denies := admission.HandlerFunc(func(context.Context, admission.Request) admission.Response { return admission.Denied("no") })
	long := admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
		return admission.Denied(strings.Repeat("no", 4<<20))
	})
	for name, test := range map[string]struct {
		encoding string
		to       func(io.Writer) io.WriteCloser
		handler  admission.Handler
		outcome  string
		error    string
	}{
		"gzip":                    {"gzip", toGzip, allows, "unchanged", ""},
		"a denial":                {"gzip", toGzip, denies, "denied", ""},
		"gzip by its other name":  {"X-GZIP", toGzip, allows, "unchanged", ""},
		"deflate":                 {"deflate", toZlib, allows, "unchanged", ""},
		"deflate as some send it": {"deflate", toFlate, allows, "unchanged", ""},
		"none":                    {"identity", func(w io.Writer) io.WriteCloser { return nopClose{w} }, allows, "unchanged", ""},
		"one of their own":        {"reversed", reversed, allows, "unknown", ""},
		"two":                     {"gzip, gzip", func(w io.Writer) io.WriteCloser { return toGzip(toGzip(w)) }, allows, "unknown", ""},
		"broken off":              {"gzip", broken, allows, "failed", "invalid_answer"},
		"longer than is kept":     {"gzip", toGzip, long, "unknown", ""},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInstrumented()
			bare := encoded(test.encoding, test.to, asHTTP(test.handler))
			want := call(bare, "/validate", review("v1"))
			got := call(webhook.InstrumentHTTP(bare, in.options), "/validate", review("v1"))
			if !bytes.Equal(got.Body.Bytes(), want.Body.Bytes()) || got.Header().Get("Content-Encoding") != test.encoding {
				t.Errorf("got %d bytes %v, want %d %v", got.Body.Len(), got.Header(), want.Body.Len(), want.Header())
			}
			wantOutcome(t, in.span(t, "POST /validate"), test.outcome, test.error)

			// Around the instrumentation, what is encoded is none of its business.
			in = newInstrumented()
			call(encoded(test.encoding, test.to, webhook.Instrument(test.handler, in.options)), "/validate", review("v1"))
			if got := attributeOf(in.span(t, "POST /validate"), "tracehook.outcome"); got != "unchanged" && got != "denied" {
				t.Errorf("around it: outcome %q", got)
			}
		})
	}
}

func TestAnEncodedRequestIsReadAsItsHandlerReadsIt(t *testing.T) {
	in := newInstrumented()
	h := webhook.InstrumentHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		plain, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		r.Body = io.NopCloser(plain)
		asHTTP(allows).ServeHTTP(w, r)
	}), in.options)
	var body bytes.Buffer
	encoder := gzip.NewWriter(&body)
	_, _ = io.WriteString(encoder, review("v1"))
	_ = encoder.Close()
	r := asked("/validate", &body)
	r.Header.Set("Content-Encoding", "gzip")
	h.ServeHTTP(httptest.NewRecorder(), r)
	span := in.span(t, "POST")
	wantOutcome(t, span, "unchanged", "")
	if got := attributeOf(span, "admission.request.uid"); got != reviewUID {
		t.Errorf("UID %q", got)
	}
}

func TestAnAnswerThatIsTooLongToKeepIsPassedOnAndNotJudged(t *testing.T) {
	in := newInstrumented()
	long := strings.Repeat("0123456789abcdef", 1<<19) // 8 MiB
	w := call(webhook.InstrumentHTTP(raw(200, long), in.options), "/validate", review("v1"))
	if w.Body.String() != long {
		t.Errorf("got %d bytes, want %d", w.Body.Len(), len(long))
	}
	wantOutcome(t, in.span(t, "POST /validate"), "unknown", "")
}

// The optional methods of the server's writer, by assertion and by http.ResponseController.
func TestAHandlersWriterCanDoWhatTheServersCan(t *testing.T) {
	type methods struct {
		flusher, flushesWithError, hijacker, readerFrom, stringWriter, closeNotifier, pusher bool
		deadlines, duplex                                                                    bool
	}
	look := func(w http.ResponseWriter) (m methods) {
		_, m.flusher = w.(http.Flusher)
		_, m.flushesWithError = w.(interface{ FlushError() error })
		_, m.hijacker = w.(http.Hijacker)
		_, m.readerFrom = w.(io.ReaderFrom)
		_, m.stringWriter = w.(io.StringWriter)
		_, m.closeNotifier = w.(http.CloseNotifier) //nolint:staticcheck // old middleware asks for it
		_, m.pusher = w.(http.Pusher)
		control := http.NewResponseController(w)
		m.deadlines = control.SetReadDeadline(time.Now().Add(time.Minute)) == nil && control.SetWriteDeadline(time.Now().Add(time.Minute)) == nil
		m.duplex = control.EnableFullDuplex() == nil
		return m
	}
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		var seen [3]methods
		looking := func(i int) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Proto != protocol {
					t.Errorf("protocol %s", r.Proto)
				}
				seen[i] = look(w)
				_, _ = io.Copy(io.Discard, r.Body)
			})
		}
		mux := http.NewServeMux()
		mux.Handle("/bare", looking(0))
		mux.Handle("/wrapped", webhook.InstrumentHTTP(looking(1), newInstrumented().options))
		mux.Handle("/twice", webhook.InstrumentHTTP(webhook.InstrumentHTTP(looking(2), newInstrumented().options), newInstrumented().options))
		server := httptest.NewUnstartedServer(mux)
		server.EnableHTTP2 = protocol == "HTTP/2.0"
		server.StartTLS()
		for _, path := range []string{"/bare", "/wrapped", "/twice"} {
			resp, err := server.Client().Post(server.URL+path, "application/json", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		server.Close()
		if seen[0] != seen[1] || seen[0] != seen[2] || !seen[0].flusher {
			t.Errorf("%s\nbare    %+v\nwrapped %+v\ntwice   %+v", protocol, seen[0], seen[1], seen[2])
		}
	}
}

func TestAnAnswerMayBeStreamedOrCopiedIn(t *testing.T) {
	text := answer(reviewUID, `,"allowed":false,"status":{"code":403}`)
	for name, write := range map[string]func(http.ResponseWriter){
		"in pieces, flushed": func(w http.ResponseWriter) {
			for piece := range strings.SplitAfterSeq(text, ",") {
				_, _ = io.WriteString(w, piece)
				w.(http.Flusher).Flush()
			}
		},
		"by io.Copy":        func(w http.ResponseWriter) { _, _ = io.Copy(w, struct{ io.Reader }{strings.NewReader(text)}) },
		"by its ReaderFrom": func(w http.ResponseWriter) { _, _ = w.(io.ReaderFrom).ReadFrom(strings.NewReader(text)) },
		"after an early hint": func(w http.ResponseWriter) {
			w.Header().Set("Link", "</style.css>")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusOK)
			_, _ = io.WriteString(w, text)
		},
		"while it is read": func(w http.ResponseWriter) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			_, _ = io.WriteString(w, text)
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInstrumented()
			server := httptest.NewServer(webhook.InstrumentHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				write(w)
				_, _ = io.Copy(io.Discard, r.Body)
			}), in.options))
			defer server.Close()
			if status, got := post(t, server.URL, review("v1")); status != 200 || got != text {
				t.Errorf("got %d %q", status, got)
			}
			if got := attributeOf(in.ended(t), "tracehook.outcome"); got != "denied" {
				t.Errorf("outcome %q", got)
			}
		})
	}
}

func TestASourceThatBreaksOffIsNoErrorOfWriting(t *testing.T) {
	in := newInstrumented()
	server := httptest.NewServer(webhook.InstrumentHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, err := io.Copy(w, io.MultiReader(strings.NewReader("half an answ"), errReader{errors.New("out of luck")}))
		if err == nil || err.Error() != "out of luck" {
			t.Errorf("got %v", err)
		}
	}), in.options))
	defer server.Close()
	post(t, server.URL, review("v1"))
	wantOutcome(t, in.ended(t), "failed", "invalid_answer")
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestAConnectionMayBeTakenOver(t *testing.T) {
	text := answer(reviewUID, `,"allowed":true`)
	for name, hijack := range map[string]func(http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error){
		"by assertion": func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) { return w.(http.Hijacker).Hijack() },
		"by its control": func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
			return http.NewResponseController(w).Hijack()
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInstrumented()
			server := httptest.NewServer(webhook.InstrumentHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				conn, _, err := hijack(w)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"+text)
			}), in.options))
			defer server.Close()
			if status, got := post(t, server.URL, review("v1")); status != 200 || got != text {
				t.Errorf("got %d %q", status, got)
			}
			wantOutcome(t, in.ended(t), "unknown", "")
		})
	}
}

// net/http logs no stack of http.ErrAbortHandler, and closes the connection.
func TestAHandlerMayAbort(t *testing.T) {
	in := newInstrumented()
	aborts := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	func() {
		defer func() {
			value := recover()
			if err, _ := value.(error); !errors.Is(err, http.ErrAbortHandler) {
				t.Errorf("recovered %v", value)
			}
		}()
		call(webhook.InstrumentHTTP(aborts, in.options), "/validate", review("v1"))
	}()
	wantOutcome(t, in.span(t, "POST /validate"), "failed", "panic")
}

func TestAHandlerMayReadItsBodyInItsOwnWay(t *testing.T) {
	reading := func(read func(*http.Request)) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			read(r)
			_, _ = io.WriteString(w, answer(reviewUID, `,"allowed":true`))
		})
	}
	for name, read := range map[string]func(*http.Request){
		"not at all": func(*http.Request) {},
		"in part":    func(r *http.Request) { _, _ = r.Body.Read(make([]byte, 10)) },
		"twice": func(r *http.Request) {
			all, _ := io.ReadAll(r.Body)
			_ = r.Body.Close()
			r.Body = io.NopCloser(bytes.NewReader(all))
			_, _ = io.ReadAll(r.Body)
		},
		"with a limit": func(r *http.Request) { _, _ = io.ReadAll(http.MaxBytesReader(nil, r.Body, 20)) },
		"as a form":    func(r *http.Request) { _ = r.ParseForm() },
	} {
		in := newInstrumented()
		call(webhook.InstrumentHTTP(reading(read), in.options), "/validate", review("v1"))
		span := in.span(t, "POST /validate")
		wantOutcome(t, span, "unchanged", "")
		known := attributeOf(span, "admission.request.uid") == reviewUID
		if known != (name == "twice") {
			t.Errorf("%s: request known %v", name, known)
		}
	}
}

func TestAWebhookKeepsTheLoggerThatItWasGiven(t *testing.T) {
	for name, serve := range map[string]func(*admission.Webhook, webhook.InstrumentOptions) http.Handler{
		"Instrument": func(wh *admission.Webhook, o webhook.InstrumentOptions) http.Handler {
			return webhook.Instrument(wh, o)
		},
		"InstrumentServer": func(wh *admission.Webhook, o webhook.InstrumentOptions) http.Handler {
			r := &registry{hooks: map[string]http.Handler{}}
			webhook.InstrumentServer(r, o).Register("/validate", wh)
			return r.hooks["/validate"]
		},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var lines []string
			logger := funcr.New(func(prefix, args string) {
				mu.Lock()
				defer mu.Unlock()
				lines = append(lines, prefix+" "+args)
			}, funcr.Options{Verbosity: 5}).WithName("mine")
			wh := &admission.Webhook{Handler: admission.HandlerFunc(func(ctx context.Context, _ admission.Request) admission.Response {
				logr.FromContextOrDiscard(ctx).Info("at work")
				return admission.Allowed("")
			})}
			handler := wh.Handler
			if _, err := admission.StandaloneWebhook(wh, admission.StandaloneOptions{Logger: logger}); err != nil {
				t.Fatal(err)
			}
			in := newInstrumented()
			h := serve(wh, in.options)
			for _, body := range []string{review("v1"), "{"} { // what is no review is logged too, outside the handler
				lines = nil
				call(h, "/validate", body)
				all := strings.Join(lines, "\n")
				if !strings.Contains(all, "mine ") || strings.Count(all, "mine ") != len(lines) {
					t.Errorf("not logged with the webhook's logger: %s", all)
				}
				if body != "{" && !strings.Contains(all, apiServerTrace) {
					t.Errorf("the handler's logger does not know the trace: %s", all)
				}
			}
			if reflect.ValueOf(wh.Handler).Pointer() != reflect.ValueOf(handler).Pointer() {
				t.Error("the caller's webhook was changed")
			}
		})
	}
}

// One webhook may be registered in many places, and be called in all of them at once.
func TestAWebhookMayBeInstrumentedAndServedMoreThanOnce(t *testing.T) {
	in := newInstrumented()
	wh := admission.WithValidator(configMaps(), validator{errors.New("no")})
	server := &registry{hooks: map[string]http.Handler{}}
	served := []http.Handler{wh, webhook.Instrument(wh, in.options), webhook.Instrument(wh, in.options)}
	webhook.InstrumentServer(server, in.options).Register("/validate", wh)
	served = append(served, server.hooks["/validate"])
	var group sync.WaitGroup
	for _, h := range served {
		for range 5 {
			group.Go(func() {
				if w := call(h, "/validate", review("v1")); !strings.Contains(w.Body.String(), `"allowed":false`) {
					t.Errorf("got %s", w.Body)
				}
			})
		}
	}
	group.Wait()
	if spans := in.spans.Ended(); len(spans) != 15 {
		t.Errorf("got %d spans, want 15", len(spans))
	}
}

// embedding is a struct around a webhook, with a ServeHTTP of its own.
type embedding struct {
	*admission.Webhook
	called *bool
}

func (e embedding) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	*e.called = true
	e.Webhook.ServeHTTP(w, r)
}

func TestAStructAroundAWebhookServesInItsOwnWay(t *testing.T) {
	for name, serve := range map[string]func(embedding, webhook.InstrumentOptions) http.Handler{
		"Instrument": func(e embedding, o webhook.InstrumentOptions) http.Handler { return webhook.Instrument(e, o) },
		"InstrumentServer": func(e embedding, o webhook.InstrumentOptions) http.Handler {
			r := &registry{hooks: map[string]http.Handler{}}
			webhook.InstrumentServer(r, o).Register("/validate", e)
			return r.hooks["/validate"]
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInstrumented()
			called := false
			call(serve(embedding{admission.WithValidator(configMaps(), validator{errors.New("no")}), &called}, in.options), "/validate", review("v1"))
			if !called {
				t.Error("its ServeHTTP was not called")
			}
			span := in.span(t, "POST /validate")
			wantOutcome(t, span, "denied", "")
			if got := attributeOf(span, "admission.request.uid"); got != reviewUID {
				t.Errorf("UID %q", got)
			}
		})
	}
}

func TestACallHasOneSpanHoweverOftenItIsInstrumented(t *testing.T) {
	in := newInstrumented()
	inner := webhook.Instrument(admission.HandlerFunc(func(context.Context, admission.Request) admission.Response { panic("out of luck") }), in.options)
	passes := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r) })
	}
	ours, err := webhook.New(webhook.Options{TracerProvider: in.options.TracerProvider, MeterProvider: in.options.MeterProvider})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		handler            http.Handler
		outcome, errorType string
	}{
		"around a webhook":            {inner, "failed", "panic"}, // which only the inner one knows
		"around middleware around it": {passes(inner), "failed", "panic"},
		"around itself":               {webhook.InstrumentHTTP(asHTTP(allows), in.options), "unchanged", ""},
		"around a handler of ours":    {passes(ours), "unchanged", ""},
	} {
		t.Run(name, func(t *testing.T) {
			in.spans.Reset()
			w := call(webhook.InstrumentHTTP(test.handler, in.options), "/validate", review("v1"))
			if w.Code != 200 {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
			span := in.span(t, "POST /validate")
			wantOutcome(t, span, test.outcome, test.errorType)
		})
	}
	// And it is counted once.
	in = newInstrumented()
	call(webhook.InstrumentHTTP(passes(webhook.Instrument(allows, in.options)), in.options), "/validate", review("v1"))
	in.wantMeasured(t, map[attribute.Key]string{"admission.request.operation": "CREATE", "admission.request.resource": "v1/configmaps", "tracehook.outcome": "unchanged", "http.route": "/validate"}, 0)
}

// What is called by the mux within is the route, for the span's name as well.
func TestARouteMayBeChosenWithin(t *testing.T) {
	in := newInstrumented()
	mux := http.NewServeMux()
	mux.Handle("POST /validate/{kind}", asHTTP(allows))
	webhook.InstrumentHTTP(mux, in.options).ServeHTTP(httptest.NewRecorder(), asked("/validate/pods", strings.NewReader(review("v1"))))
	wantOutcome(t, in.span(t, "POST /validate/{kind}"), "unchanged", "")
}

type reverser struct {
	to   io.Writer
	kept []byte
}

func (r *reverser) Write(p []byte) (int, error) { r.kept = append(r.kept, p...); return len(p), nil }
func (r *reverser) Close() error {
	for i, j := 0, len(r.kept)-1; i < j; i, j = i+1, j-1 {
		r.kept[i], r.kept[j] = r.kept[j], r.kept[i]
	}
	_, err := r.to.Write(r.kept)
	return err
}

// brokenOff never writes the end.
type brokenOff struct{ *gzip.Writer }

func (b brokenOff) Close() error { return b.Flush() }

type nopClose struct{ io.Writer }

func (nopClose) Close() error { return nil }
