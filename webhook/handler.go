package webhook

// The way of a request: deadline → review → otelhttp → mutators → patch → response.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/tracehook/tracehook/webhook/limit"
)

// DefaultMaxBodyBytes is the largest review that is read: the API server takes objects of
// up to 3 MiB, and a review of an UPDATE holds two. controller-runtime's limit is the same.
const DefaultMaxBodyBytes = 7 << 20

const (
	// The API server's own limits for a webhook's timeoutSeconds.
	defaultTimeout = 10 * time.Second
	longestTimeout = 30 * time.Second
	// answerMargin is kept of the caller's timeout to get the answer written in time.
	answerMargin = 50 * time.Millisecond
)

// Options of a handler. The zero value answers every request without a patch.
type Options struct {
	// Mutators run in this order.
	Mutators Chain
	// MaxBodyBytes bounds a request's body; 0 means DefaultMaxBodyBytes.
	MaxBodyBytes int64
	// Trust says what the trace context of a request is to its SERVER span.
	// The zero value is TrustParent.
	Trust Trust
	// TracerProvider makes the spans; nil means none are made.
	TracerProvider trace.TracerProvider
	// MeterProvider makes the metrics; nil means none are made.
	MeterProvider metric.MeterProvider
	// Logger gets one record for each call that was refused or failed open, and at
	// debug level for every call; nil means no log.
	Logger *slog.Logger
}

// Trust is whom to believe: what the trace context in a request's headers means.
//
// With a tracing configuration the API server sends a context of its own, whoever
// asked it. Without one it passes any user's traceparent through unchanged, so
// that a user can choose the trace, and that it is sampled.
type Trust string

const (
	// TrustParent: the SERVER span is a child of the context in the headers.
	TrustParent Trust = "parent"
	// TrustLink: the SERVER span starts a trace of its own and links to the context.
	TrustLink Trust = "link"
	// TrustNone: the context is not looked at.
	TrustNone Trust = "none"
)

// New returns the handler of a mutating admission webhook (admission.k8s.io/v1).
//
// Each call gets a SERVER span whose parent is the span in the traceparent header,
// and each mutator an INTERNAL span below it. Baggage is not read.
func New(o Options) (http.Handler, error) {
	if o.MaxBodyBytes < 0 {
		return nil, fmt.Errorf("a body limit of %d bytes is negative", o.MaxBodyBytes)
	}
	if o.MaxBodyBytes == 0 {
		o.MaxBodyBytes = DefaultMaxBodyBytes
	}
	telemetry, err := newTelemetry(o.TracerProvider, o.MeterProvider, o.Logger)
	if err != nil {
		return nil, err
	}
	h := &handler{chain: slices.Clone(o.Mutators), maxBodyBytes: o.MaxBodyBytes, trust: o.Trust, telemetry: telemetry}
	for i, step := range o.Mutators {
		if step.Name == "" || step.Mutator == nil {
			return nil, fmt.Errorf("mutator %d has no name or is nil", i)
		}
		h.spanNames = append(h.spanNames, "mutate "+step.Name)
	}

	h.spans, err = serverSpans(http.HandlerFunc(h.serveAdmission), o.TracerProvider, o.Trust)
	if err != nil {
		return nil, err
	}
	return h, nil
}

// serverSpans gives every call of next a SERVER span.
func serverSpans(next http.Handler, tracerProvider trace.TracerProvider, trust Trust) (http.Handler, error) {
	if tracerProvider == nil {
		tracerProvider = tracenoop.NewTracerProvider()
	}
	options := []otelhttp.Option{
		otelhttp.WithTracerProvider(tracerProvider),
		// The histogram of this package says more, and its attributes are closed sets;
		// otelhttp's would carry the Host header of any caller.
		otelhttp.WithMeterProvider(metricnoop.NewMeterProvider()),
		otelhttp.WithSpanNameFormatter(spanName),
	}
	switch trust {
	case TrustParent, "":
		options = append(options, otelhttp.WithPropagators(traceContext{}))
	case TrustLink:
		options = append(options, otelhttp.WithPropagators(traceContext{}),
			otelhttp.WithPublicEndpointFn(func(*http.Request) bool { return true }))
	case TrustNone:
		options = append(options, otelhttp.WithPropagators(propagation.NewCompositeTextMapPropagator()))
	default:
		return nil, fmt.Errorf("trust %q: want %s, %s or %s", trust, TrustParent, TrustLink, TrustNone)
	}
	return presentable(otelhttp.NewHandler(asItCame(next), "admission", options...)), nil
}

// spanName is `POST /mutate`, from the route and never from the URL.
func spanName(_ string, r *http.Request) string {
	method := r.Method
	if method != http.MethodPost {
		method = "HTTP" // whatever it is, it is refused
	}
	// A pattern may begin with a method and a host.
	if slash := strings.IndexByte(r.Pattern, '/'); slash >= 0 {
		return method + " " + r.Pattern[slash:]
	}
	return method
}

type handler struct {
	chain        Chain
	spanNames    []string // of the chain's steps
	maxBodyBytes int64
	trust        Trust
	telemetry    *telemetry
	calls        sync.Pool    // of *call
	spans        http.Handler // serveAdmission in a SERVER span
}

// call is the memory of one call, used again by later ones.
type call struct {
	body     bytes.Buffer
	limited  io.LimitedReader // of the request's body
	start    time.Time
	budget   time.Duration // that the caller gives
	decoder  reviewDecoder
	request  Request
	response Response
	early    result   // that came of reading the review, if one did
	withheld withheld // of what the mutators wanted
	patch    []byte
	out      []byte
}

const (
	// A buffer that one large object made is not kept for the small ones.
	keepBytes = 256 << 10
	// A caller gets no more than this for an announced length alone.
	growBytes = 64 << 10
)

// callKey is where a request's context has its *call.
type callKey struct{}

// NamespaceFromContext returns the namespace of the admission request that ctx belongs to, empty for one of
// a cluster-scoped object. It is not ok for other contexts. It is for samplers: their
// SamplingParameters.ParentContext knows the namespace when the SERVER span starts.
func NamespaceFromContext(ctx context.Context) (namespace string, ok bool) {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return "", false
	}
	return c.request.Namespace, true
}

// ServeHTTP reads the review first: what is no admission request gets no span, which would
// count against the sampler's budget.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, _ := h.calls.Get().(*call)
	if c == nil {
		c = new(call)
	}
	c.start, c.budget = time.Now(), timeout(r.URL)
	spans := h.spans
	if handOver(r.Context()) {
		spans = http.HandlerFunc(h.serveAdmission) // within InstrumentHTTP, in its span
	}
	if res, ok := h.understand(w, r, c); ok {
		// The span is of the whole call, though it is made now.
		ctx := otelhttp.ContextWithStartTime(context.WithValue(r.Context(), callKey{}, c), c.start)
		understood := r.WithContext(ctx)
		understood.Body = http.NoBody // it is read
		spans.ServeHTTP(w, understood)
	} else {
		h.end(r.Context(), w, c, res)
		// The rest of a body that is not wanted must not hold anybody up, in net/http neither.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(lingering))
	}

	if c.body.Cap() <= keepBytes {
		c.body.Reset()
		c.request, c.response = Request{}, Response{audit: c.response.audit[:0]}
		h.calls.Put(c)
	}
}

// serveAdmission answers the request of a call that was understood, in its SERVER span.
func (h *handler) serveAdmission(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	c, _ := ctx.Value(callKey{}).(*call)
	h.end(ctx, w, c, h.answer(ctx, c))
}

// end writes how the call ended, and records it.
func (h *handler) end(ctx context.Context, w http.ResponseWriter, c *call, res result) {
	if err := h.write(w, c, res); err != nil && res.err == nil {
		res = unwritten(err)
	}
	h.telemetry.finish(ctx, trace.SpanFromContext(ctx), c, res, c.budget, time.Since(c.start))
}

func (c *call) deadline() time.Time { return c.start.Add(c.budget - answerMargin) }

// understand reads and decodes the request. It is not ok when there is no request to answer.
func (h *handler) understand(w http.ResponseWriter, r *http.Request, c *call) (result, bool) {
	if r.Method != http.MethodPost {
		return methodNotAllowed(r.Method), false
	}
	if contentType := r.Header.Get("Content-Type"); !isJSON(contentType) {
		return unsupportedMediaType(contentType), false
	}
	if res, ok := h.read(w, r, c); !ok {
		return res, false
	}
	if c.body.Len() > limit.Large {
		ctx, cancel := context.WithDeadline(r.Context(), c.deadline())
		defer cancel()
		end, err := limit.Turn(ctx)
		if err != nil {
			return overloaded(fmt.Errorf("wait for a turn of the large requests: %w", err)), false
		}
		defer end()
	}
	c.early, c.decoder.deadline = result{}, c.deadline()
	if err := c.decoder.decode(c.body.Bytes(), &c.request); err != nil {
		c.early = undecodable(err, c.request.UID != "")
		if !c.early.understood() {
			c.request = Request{} // half a request must not look like one in log and metric
			return c.early, false
		}
	}
	return result{}, true
}

// answer goes the way of an admission request up to its result.
func (h *handler) answer(ctx context.Context, c *call) result {
	c.request.SpanContext, c.request.trust = trace.SpanContextFromContext(ctx), h.trust
	c.response.object, c.withheld = &c.request.Object, nothingWithheld
	if c.request.SpanContext.IsSampled() {
		// From the audit event to the trace; the UID on the span is the way back.
		c.response.AuditAnnotation("trace-id", c.request.SpanContext.TraceID().String())
		c.response.AuditAnnotation("span-id", c.request.SpanContext.SpanID().String())
	}

	if c.early.err != nil {
		return c.early
	}

	// Not cancelled with the connection or the server's context: while the server
	// drains, an answer still counts. The deadline bounds it.
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), c.deadline())
	defer cancel()
	for i := range h.chain {
		if res, ok := h.mutate(ctx, i, c); !ok {
			return res
		}
	}
	var operations int
	c.patch, operations = appendPatch(c.patch[:0], &c.request.Object, c.response.changes)
	switch {
	case c.withheld != nothingWithheld:
		return withheldFrom(c.withheld, c.patch, operations)
	case operations == 0:
		return unchanged()
	}
	return patched(c.patch, operations)
}

// read fills c.body. It is not ok when there is no body to go on with.
func (h *handler) read(w http.ResponseWriter, r *http.Request, c *call) (result, bool) {
	if r.ContentLength > h.maxBodyBytes {
		return bodyTooLarge(h.maxBodyBytes), false
	}
	if r.ContentLength > 0 {
		// Room for what is announced, as far as an announcement may cost; ReadFrom
		// wants a little more, to see the end.
		c.body.Grow(int(min(r.ContentLength, growBytes)) + bytes.MinRead)
	}
	// A caller that sends its body drop by drop is cut off; writers that have no
	// deadline (tests) go without. net/http sets another one for the next request.
	_ = http.NewResponseController(w).SetReadDeadline(c.deadline())
	c.limited = io.LimitedReader{R: r.Body, N: h.maxBodyBytes + 1}
	n, err := c.body.ReadFrom(&c.limited)
	c.limited.R = nil
	switch {
	case errors.Is(err, limit.ErrOverloaded):
		return overloaded(fmt.Errorf("read the body: %w", err)), false
	case err != nil:
		return unreadableBody(err), false
	case n > h.maxBodyBytes:
		return bodyTooLarge(h.maxBodyBytes), false
	case n == 0:
		return emptyBody(), false
	}
	return result{}, true
}

// mutate runs step i of the chain in its span; a panic in it ends this call only.
func (h *handler) mutate(ctx context.Context, i int, c *call) (res result, ok bool) {
	step := h.chain[i]
	var span trace.Span
	defer func() {
		value := recover() // before the span ends, which would record the panic as an event
		if span != nil {
			span.End()
		}
		if value != nil {
			res, ok = mutatorPanicked(step.Name, value), false
			h.telemetry.panicked(ctx, &c.request, debug.Stack())
		}
	}()
	if err := ctx.Err(); err != nil {
		return mutatorFailed(step.Name, err), false
	}
	if selective, ok := step.Mutator.(Selective); ok && !selective.Wants(&c.request, &c.response) {
		return result{}, true
	}
	ctx, span = h.telemetry.mutate(ctx, h.spanNames[i])
	before := slices.Clone(c.response.changes)
	if err := step.Mutator.Mutate(ctx, &c.request, &c.response); err != nil {
		return mutatorFailed(step.Name, err), false
	}
	if reason := c.withhold(step, before); reason != nothingWithheld {
		h.telemetry.withheld(span, reason)
	}
	return result{}, true
}

func (h *handler) write(w http.ResponseWriter, c *call, res result) error {
	if !res.understood() {
		if res.ending == endMethodNotAllowed {
			w.Header().Set("Allow", http.MethodPost)
		}
		http.Error(w, res.err.Error(), res.status())
		return nil
	}
	c.out = res.appendReview(c.out[:0], string(c.request.UID), answer{warnings: c.response.warnings, audit: c.response.audit})
	w.Header()["Content-Type"] = jsonContentType
	_, err := w.Write(c.out)
	return err
}

var jsonContentType = []string{"application/json"}

func isJSON(contentType string) bool {
	if contentType == "application/json" {
		return true
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	return err == nil && mediaType == "application/json"
}

// timeout is how long the caller waits: the API server says so in ?timeout=10s.
func timeout(u *url.URL) time.Duration {
	// As the API server writes it, this is all there is.
	value, ok := strings.CutPrefix(u.RawQuery, "timeout=")
	if !ok || strings.ContainsAny(value, "&;%+") {
		query, err := url.ParseQuery(u.RawQuery)
		if err != nil {
			return defaultTimeout
		}
		value = query.Get("timeout")
	}
	d, err := time.ParseDuration(value)
	switch {
	case err != nil || d <= 0:
		return defaultTimeout
	case d > longestTimeout:
		return longestTimeout
	}
	return max(d, 2*answerMargin)
}
