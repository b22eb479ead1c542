package webhook

// Instrumentation for webhooks that are not ours: a handler in, the same handler in
// a SERVER span with attributes, deadline and metrics out. What it answers is left as
// it is, but for two audit annotations. No errors; what an answer means for the span
// is decided in judge, and the table is at Instrument.

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/felixge/httpsnoop"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	admissionv1 "k8s.io/api/admission/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// Attribute keys that our own handler has no use for: it never denies.
const (
	keyType   = attribute.Key("admission.webhook.type")
	keyCode   = attribute.Key("admission.response.code")
	keyReason = attribute.Key("admission.response.reason")
)

// WebhookType is what kind of configuration calls a webhook. A review does not say.
type WebhookType string

const (
	Mutating   WebhookType = "mutating"
	Validating WebhookType = "validating"
)

// InstrumentOptions of Instrument, InstrumentHTTP and InstrumentServer. The zero value
// will do in a program that has set OpenTelemetry up in the usual, global way.
type InstrumentOptions struct {
	// Type is told on the span. "" means that it follows from the path, as kubebuilder
	// and controller-runtime choose it: /mutate… or /validate…; of another path it is
	// left out.
	Type WebhookType
	// Trust says what the trace context of a request is to its SERVER span; the zero
	// value is TrustParent.
	Trust Trust
	// TracerProvider makes the spans; nil means OpenTelemetry's global one.
	TracerProvider trace.TracerProvider
	// MeterProvider makes the metrics; nil means OpenTelemetry's global one.
	MeterProvider metric.MeterProvider
}

// Instrument makes a handler of controller-runtime's an http.Handler whose calls are
// seen in the trace of the API request that they belong to. It takes an
// admission.Handler, or an *admission.Webhook as made by admission.WithValidator,
// admission.WithDefaulter and their like:
//
//	server.Register("/validate", webhook.Instrument(admission.WithValidator(scheme, v), webhook.InstrumentOptions{}))
//
// A call has a SERVER span with the attributes that the spans of New have, and
// admission.webhook.type, admission.response.code and admission.response.reason. Its
// context ends shortly before the API server stops waiting (?timeout=), and
// log.FromContext knows trace_id and span_id. The answer gets audit annotations
// trace-id and span-id where the trace is sampled.
//
//	outcome     error.type         span   when
//	patched     -                  unset  allowed, with a patch
//	unchanged   -                  unset  allowed, without
//	denied      -                  unset  not allowed, code below 500: an answer, no error
//	failed      500 … 599, _OTHER  error  not allowed, such a code (admission.Errored)
//	failed      deadline_exceeded  error  the same, after the deadline
//	failed      panic              error  the handler panicked
//	failed      invalid_answer     error  InstrumentHTTP: no AdmissionReview came of it
//	failed      wrong_uid          error  InstrumentHTTP: the answer to another request
//	unknown     -                  unset  InstrumentHTTP: an answer that it cannot read
//	unanswered  write_error        error  the caller did not take the answer
//	refused     400 … 499, _OTHER  unset  not an admission request, says the handler
//
// The outcome is on the span, and with http.route on the histogram
// tracehook.admission.duration. It panics if there is no handler, or an option has a
// value that does not exist: mistakes of the program.
//
// An *admission.Webhook is copied, with the logger that admission.StandaloneWebhook gave
// it, so set it up before. A handler that serves HTTP in a way of its own, such as a
// struct around a webhook, is instrumented as by InstrumentHTTP. Where instrumented
// handlers call one another, a call has one span, and the innermost says how it ended.
func Instrument(h admission.Handler, o InstrumentOptions) http.Handler {
	return newInstrument(o).admission(h)
}

// InstrumentHTTP is Instrument for an http.Handler that answers AdmissionReviews in
// whatever way: middleware around a webhook, http.TimeoutHandler, a mux. Request and answer
// pass through it unchanged (so there are no audit annotations), and are read a second
// time to know what they say. Of each it keeps at most 7 MiB. The handler's
// http.ResponseWriter has the optional methods that the server's has.
//
// An answer may be encoded with gzip or deflate. Where it is encoded in another way, is
// longer, or goes over a connection that the handler took over, the outcome is unknown.
func InstrumentHTTP(h http.Handler, o InstrumentOptions) http.Handler {
	if h == nil {
		panic("webhook: InstrumentHTTP of a nil handler")
	}
	return newInstrument(o).wrap(h, true)
}

// InstrumentServer returns a webhook server that instruments every admission webhook
// that is registered with it, by hand or by controller-runtime's builder. With it, one
// line instruments a whole kubebuilder project:
//
//	ctrl.NewManager(config, ctrl.Options{WebhookServer: webhook.InstrumentServer(server, webhook.InstrumentOptions{})})
//
// An admission webhook is an *admission.Webhook, and any other http.Handler that is an
// admission.Handler too. All others are left alone: conversion webhooks, handlers that are
// instrumented already, and webhooks behind middleware, whose type does not say what
// they are. Of those, instrument what is within (Instrument) or the whole (InstrumentHTTP).
func InstrumentServer(server ctrlwebhook.Server, o InstrumentOptions) ctrlwebhook.Server {
	if server == nil {
		panic("webhook: InstrumentServer of a nil server")
	}
	return &instrumentedServer{Server: server, in: newInstrument(o)}
}

type instrumentedServer struct {
	ctrlwebhook.Server
	in *instrument
}

func (s *instrumentedServer) Register(path string, hook http.Handler) {
	if h, ok := hook.(admission.Handler); ok {
		hook = s.in.admission(h)
	}
	s.Server.Register(path, hook)
}

type instrument struct {
	options   InstrumentOptions
	telemetry *telemetry
}

func newInstrument(o InstrumentOptions) *instrument {
	switch o.Type {
	case "", Mutating, Validating:
	default:
		panic(fmt.Sprintf("webhook: type %q: want %s, %s or nothing", o.Type, Mutating, Validating))
	}
	if o.TracerProvider == nil {
		o.TracerProvider = otel.GetTracerProvider()
	}
	if o.MeterProvider == nil {
		o.MeterProvider = otel.GetMeterProvider()
	}
	t, err := newTelemetry(o.TracerProvider, o.MeterProvider, nil)
	if err != nil {
		// As all instrumentation does: telemetry that cannot be had is no reason not
		// to serve.
		otel.Handle(err)
		t, _ = newTelemetry(o.TracerProvider, nil, nil)
	}
	return &instrument{options: o, telemetry: t}
}

// admission wraps the handler, inside its *admission.Webhook if it comes in one: that
// is where a panic can still be told from an answer, and where the logger is.
func (i *instrument) admission(h admission.Handler) http.Handler {
	switch h := h.(type) {
	case nil:
		panic("webhook: Instrument of a nil handler")
	case *admission.Webhook:
		if h == nil || h.Handler == nil {
			panic("webhook: Instrument of a webhook without a handler")
		}
		return i.wrap(inside(h), false)
	case http.Handler:
		return i.wrap(h, true)
	}
	return i.wrap(&admission.Webhook{Handler: &watched{h}}, false)
}

// inside returns a copy of the webhook whose handler is watched. By reflection, because the
// copy must have what is not exported as well: the logger, and whether it is set up.
func inside(wh *admission.Webhook) *admission.Webhook {
	c := new(admission.Webhook)
	reflect.ValueOf(c).Elem().Set(reflect.ValueOf(wh).Elem())
	c.Handler = &watched{wh.Handler}
	return c
}

func (i *instrument) wrap(next http.Handler, reads bool) http.Handler {
	o := &observer{instrument: i, next: next, reads: reads}
	spans, err := serverSpans(o, i.options.TracerProvider, i.options.Trust)
	if err != nil {
		panic(fmt.Sprintf("webhook: %v", err))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if handOver(r.Context()) {
			o.ServeHTTP(w, r) // in the span that is there
			return
		}
		spans.ServeHTTP(w, r)
	})
}

// observation is what is seen of one call. A handler may leave others behind that go on
// reading, and http.TimeoutHandler leaves the handler itself: hence the mutex, and
// nothing is taken any more once the call is over.
type observation struct {
	mu      sync.Mutex
	over    bool
	request Request // zero until it is known
	verdict verdict // zero until it is known
	// What http.Handlers read and wrote, kept where it is needed to know the above.
	in, out    kept
	encodings  [2]string // of in and out
	status     int       // 0 until it is written
	takenOver  bool      // the connection, from net/http
	writeError error
	handedOver bool // to an instrumented handler within: that one records the call
}

// note changes the observation, unless the call is over.
func (o *observation) note(change func(o *observation)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.over {
		change(o)
	}
}

// end: from now on nothing changes, and the fields may be read.
func (o *observation) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over = true
}

// handOver says whether ctx is of a call that is observed, which is left to the caller then.
func handOver(ctx context.Context) bool {
	outer, ok := ctx.Value(observationKey{}).(*observation)
	if ok {
		outer.note(func(o *observation) { o.handedOver = true })
	}
	return ok
}

// kept is what went by, as far as it is kept.
type kept struct {
	bytes.Buffer
	cut bool // there was more, and nothing of it is of use
}

// controller-runtime's own limit: two objects of 3 MiB, and what goes with them.
const mostObserved = 7 << 20

func (k *kept) add(p []byte) {
	if k.cut = k.cut || k.Len()+len(p) > mostObserved; k.cut {
		k.Buffer = bytes.Buffer{}
		return
	}
	k.Write(p)
}

// plain returns what was kept without its encoding (RFC 9110, 8.4.1). It is not ok where that is
// not known: it was too long, or is encoded in a way that is not understood here.
func (k *kept) plain(encoding string) (content []byte, ok bool) {
	content = k.Bytes()
	if k.cut {
		return nil, false
	}
	// A layer around this one may announce what it is yet to do.
	if text := bytes.TrimLeft(content, " \t\r\n"); len(text) > 0 && text[0] == '{' {
		return content, true
	}
	var from io.Reader
	var err error
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "", "identity":
		return content, true
	case "gzip", "x-gzip":
		from, err = gzip.NewReader(bytes.NewReader(content))
	case "deflate":
		if from, err = zlib.NewReader(bytes.NewReader(content)); err != nil {
			from, err = flate.NewReader(bytes.NewReader(content)), nil // as some send it
		}
	default:
		return nil, false
	}
	if err != nil {
		return nil, true // its reader cannot make anything of it either
	}
	content, err = io.ReadAll(io.LimitReader(from, mostObserved+1))
	switch {
	case len(content) > mostObserved:
		return nil, false
	case err != nil:
		return nil, true
	}
	return content, true
}

type observationKey struct{}

// verdict is how a call ended: a row of the table at Instrument.
type verdict struct {
	outcome, errorType string
	says               string                         // the error, for the span's status
	response           *admissionv1.AdmissionResponse // nil if the call was not answered with a review
	operations         int                            // in the response's patch
}

// watched is the innermost layer, called with the request decoded.
type watched struct{ next admission.Handler }

func (h *watched) Handle(ctx context.Context, req admission.Request) admission.Response {
	o, ok := ctx.Value(observationKey{}).(*observation)
	if !ok { // a WithContextFunc has thrown the request's context away
		return h.next.Handle(ctx, req)
	}
	o.note(func(o *observation) {
		o.request = Request{
			UID: req.UID, Kind: req.Kind, Resource: req.Resource, SubResource: req.SubResource,
			Name: req.Name, Namespace: req.Namespace, Operation: req.Operation, DryRun: req.DryRun != nil && *req.DryRun,
		}
		o.verdict = panicked // unless the handler returns
	})
	span := trace.SpanContextFromContext(ctx)
	if span.IsValid() {
		ctx = log.IntoContext(ctx, log.FromContext(ctx).WithValues("trace_id", span.TraceID().String(), "span_id", span.SpanID().String()))
	}

	resp := h.next.Handle(ctx, req)

	if span.IsSampled() {
		resp.AuditAnnotations = annotated(resp.AuditAnnotations, span)
	}
	// The webhook around us is about to do this. Done here, it gives the answer as it
	// will be sent; with the patch as bytes, it is not done twice.
	if err := resp.Complete(req); err != nil {
		o.note(func(o *observation) { o.verdict = verdict{} }) // the webhook around us comes to the same end, and answers
		return resp
	}
	resp.Patches = nil
	o.note(func(o *observation) { o.verdict = judge(ctx, &resp.AdmissionResponse) })
	return resp
}

// annotated adds where the trace is, unless the handler uses these names itself. The
// map is the handler's, which may use it for every answer, so it is copied.
func annotated(annotations map[string]string, span trace.SpanContext) map[string]string {
	all := map[string]string{"trace-id": span.TraceID().String(), "span-id": span.SpanID().String()}
	maps.Copy(all, annotations)
	return all
}

var panicked = verdict{outcome: "failed", errorType: "panic", says: "the handler panicked"}

// judge says what an answer amounts to.
func judge(ctx context.Context, resp *admissionv1.AdmissionResponse) verdict {
	v := verdict{response: resp, operations: countOperations(resp.Patch)}
	code := statusCode(resp)
	switch {
	case resp.Allowed && v.operations > 0:
		v.outcome = "patched"
	case resp.Allowed:
		v.outcome = "unchanged"
	case code < http.StatusInternalServerError:
		v.outcome = "denied"
	default:
		v.outcome, v.errorType = "failed", codeName(code)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			v.errorType = "deadline_exceeded"
		}
		v.says = clean(resp.Result.Message, mostErrorText)
	}
	return v
}

func statusCode(resp *admissionv1.AdmissionResponse) int {
	if resp.Result == nil {
		return 0
	}
	return int(resp.Result.Code)
}

// codeName is an HTTP status as an error.type: a closed set, whatever a handler writes.
func codeName(code int) string {
	if code < 400 || code > 599 {
		return semconv.ErrorTypeOther.Value.AsString()
	}
	return strconv.Itoa(code)
}

// countOperations of a JSON Patch. What is no patch has none: to refuse it is the API
// server's business.
func countOperations(patch []byte) int {
	if len(patch) == 0 {
		return 0
	}
	var operations []json.RawMessage
	if json.Unmarshal(patch, &operations) != nil {
		return 0
	}
	return len(operations)
}

// observer is the outermost layer below the SERVER span.
type observer struct {
	*instrument
	next  http.Handler
	reads bool // next is no webhook of controller-runtime's: look at what it reads and writes
}

func (h *observer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	budget := timeout(r.URL)
	ctx, cancel := context.WithDeadline(r.Context(), start.Add(budget-answerMargin))
	defer cancel()
	o := &observation{encodings: [2]string{r.Header.Get("Content-Encoding")}}
	inner := r.WithContext(context.WithValue(ctx, observationKey{}, o))
	if h.reads && r.Body != nil && r.Body != http.NoBody {
		inner.Body = &observedBody{r.Body, o}
	}

	returned := false
	defer func() {
		// For those around: the route of a mux within, and files that net/http removes.
		r.Pattern, r.MultipartForm = inner.Pattern, inner.MultipartForm
		o.end()
		switch {
		case o.handedOver:
			return
		case !returned:
			o.verdict = panicked
		case o.verdict.outcome == "":
			h.read(ctx, o)
		}
		h.finish(inner, o, budget, time.Since(start))
	}()
	h.next.ServeHTTP(o.writer(w), inner)
	returned = true
}

// read works out from what was read and written how the call ended.
func (h *observer) read(ctx context.Context, o *observation) {
	anyUID := false
	if body, ok := o.in.plain(o.encodings[0]); ok && h.reads {
		// That it is a v1beta1 review, or not strictly JSON, is between its sender and
		// its reader; what is needed may be there all the same.
		err := new(reviewDecoder).decode(body, &o.request)
		if errors.Is(err, ErrNoRequest) {
			o.request = Request{}
		}
		anyUID = errors.Is(err, ErrUnsupportedVersion) // in v1beta1 API servers do not look at it
	}
	var review admissionv1.AdmissionReview
	answer, known := o.out.plain(o.encodings[1])
	if json.Unmarshal(answer, &review) != nil {
		review.Response = nil
	}
	understood := o.request.UID != ""
	known = known && !o.takenOver
	o.status = cmp.Or(o.status, http.StatusOK)                                     // nothing was written
	answered := o.status >= http.StatusOK && o.status <= http.StatusPartialContent // as client-go sees it
	switch resp := review.Response; {
	case o.status >= http.StatusInternalServerError:
		o.verdict = verdict{outcome: "failed", errorType: codeName(o.status), says: http.StatusText(o.status)}
	case !answered && understood:
		o.verdict = verdict{outcome: "failed", errorType: codeName(o.status), says: fmt.Sprintf("the answer has HTTP status %d", o.status)}
	case !answered:
		o.verdict = verdict{outcome: "refused", errorType: codeName(o.status)}
	case !known:
		o.verdict = verdict{outcome: "unknown"}
	case resp != nil && (understood && (anyUID || resp.UID == o.request.UID) || !understood && resp.UID != ""):
		o.verdict = judge(ctx, resp)
	case resp != nil && !understood: // controller-runtime refuses so: HTTP status 200, no UID
		o.verdict = verdict{outcome: "refused", errorType: codeName(statusCode(resp))}
	case resp != nil:
		o.verdict = verdict{outcome: "failed", errorType: "wrong_uid", says: "the answer has the UID of another request"}
	default:
		o.verdict = verdict{outcome: "failed", errorType: "invalid_answer", says: "the answer is no AdmissionReview with a response"}
	}
}

// finish records the call on span and metrics.
func (h *observer) finish(r *http.Request, o *observation, budget, took time.Duration) {
	v := o.verdict
	if o.writeError != nil && v.errorType == "" {
		v.outcome, v.errorType, v.says = "unanswered", "write_error", "write the answer: "+clean(o.writeError.Error(), mostErrorText)
	}
	attributes := []attribute.KeyValue{
		keyResource.String(resourceText(resources[resourceOf(&o.request)])),
		keyOperation.String(operationNames[operationOf(&o.request)]),
		keyOutcome.String(v.outcome),
	}
	if v.errorType != "" {
		attributes = append(attributes, semconv.ErrorTypeKey.String(v.errorType))
	}
	if slash := strings.IndexByte(r.Pattern, '/'); slash >= 0 {
		attributes = append(attributes, semconv.HTTPRoute(r.Pattern[slash:]))
	}
	measured := metric.WithAttributeSet(attribute.NewSet(attributes...))
	h.telemetry.duration.Record(r.Context(), took.Seconds(), measured)
	if v.operations > 0 {
		h.telemetry.patchSize.Record(r.Context(), int64(len(v.response.Patch)), measured)
	}

	span := trace.SpanFromContext(r.Context())
	if !span.IsRecording() {
		return
	}
	if o.request.UID != "" {
		span.SetAttributes(requestAttributes(&o.request)...)
	}
	span.SetAttributes(keyOutcome.String(v.outcome), keyBudget.Float64(budget.Seconds()), keyRemaining.Float64((budget - took).Seconds()))
	if kind := cmp.Or(h.options.Type, typeOf(r.URL.Path)); kind != "" {
		span.SetAttributes(keyType.String(string(kind)))
	}
	if v.response != nil {
		span.SetAttributes(keyAllowed.Bool(v.response.Allowed), keyOperations.Int(v.operations))
		if result := v.response.Result; result != nil {
			span.SetAttributes(keyCode.Int(int(result.Code)))
			if result.Reason != "" {
				span.SetAttributes(keyReason.String(clean(string(result.Reason), mostText)))
			}
		}
	}
	if v.errorType != "" {
		span.SetAttributes(semconv.ErrorTypeKey.String(v.errorType))
	}
	if v.outcome == "failed" || v.outcome == "unanswered" {
		span.SetStatus(codes.Error, v.says)
	}
}

// typeOf reads the path as kubebuilder writes it.
func typeOf(path string) WebhookType {
	switch {
	case strings.HasPrefix(path, "/mutate"):
		return Mutating
	case strings.HasPrefix(path, "/validate"):
		return Validating
	}
	return ""
}

// observedBody keeps what the handler reads of a request. Where that is too much, the
// review is not understood.
type observedBody struct {
	io.ReadCloser
	o *observation
}

func (b *observedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.o.note(func(o *observation) { o.in.add(p[:n]) })
	return n, err
}

// writer keeps what is written, unless Handle has told already. It has those optional
// methods that w has.
func (o *observation) writer(w http.ResponseWriter) http.ResponseWriter {
	return httpsnoop.Wrap(w, httpsnoop.Hooks{
		WriteHeader: func(next httpsnoop.WriteHeaderFunc) httpsnoop.WriteHeaderFunc {
			return func(status int) {
				// Informational ones go before the answer; to switch protocols is one.
				if status >= http.StatusOK || status == http.StatusSwitchingProtocols {
					o.begin(status, w)
				}
				next(status)
			}
		},
		Write: func(next httpsnoop.WriteFunc) httpsnoop.WriteFunc {
			return func(p []byte) (int, error) {
				o.begin(http.StatusOK, w)
				n, err := next(p)
				o.wrote(p, err)
				return n, err
			}
		},
		ReadFrom: func(next httpsnoop.ReadFromFunc) httpsnoop.ReadFromFunc {
			return func(src io.Reader) (int64, error) {
				o.begin(http.StatusOK, w)
				from := &observedSource{Reader: src, o: o}
				n, err := next(from)
				if from.err == nil {
					o.wrote(nil, err)
				}
				return n, err
			}
		},
		Hijack: func(next httpsnoop.HijackFunc) httpsnoop.HijackFunc {
			return func() (net.Conn, *bufio.ReadWriter, error) {
				conn, buffer, err := next()
				if err == nil {
					o.note(func(o *observation) { o.takenOver = true })
				}
				return conn, buffer, err
			}
		},
	})
}

// begin of an answer: the first status counts, and the headers as they are then.
func (o *observation) begin(status int, w http.ResponseWriter) {
	o.note(func(o *observation) {
		if o.status == 0 {
			o.status, o.encodings[1] = status, w.Header().Get("Content-Encoding")
		}
	})
}

func (o *observation) wrote(p []byte, err error) {
	o.note(func(o *observation) {
		if err != nil {
			o.writeError = err
		}
		if o.verdict.outcome == "" {
			o.out.add(p)
		}
	})
}

// observedSource is what a handler gives the server to write.
type observedSource struct {
	io.Reader
	o   *observation
	err error
}

func (s *observedSource) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	s.o.wrote(p[:n], nil)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}
