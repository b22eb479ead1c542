package webhook

// What a caller's headers may do to telemetry. Anybody may send them, of any size and with
// any bytes: the trace context is read as W3C Trace Context says, and what a span shows
// of a request is valid UTF-8 and short. One byte that is not UTF-8 would make the exporter
// lose a whole batch of spans, and a long one a batch that no Collector takes.

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/tracehook/tracehook/webhook/cause"
)

const (
	// mostText is how many bytes of a text that came from outside go on a span or a log
	// line. The names of Kubernetes have 253 at most. A batch of 512 spans with every
	// attribute that long stays below the 4 MiB that a Collector takes over gRPC.
	mostText = 256
	// mostErrorText is the same for an error.
	mostErrorText = 512
	// traceparentBytes is how long every traceparent of version 00 is.
	traceparentBytes = 55
)

// clean makes a text that came from outside fit for a span or a log line: valid UTF-8, and
// no more than most bytes of it, with an ellipsis behind them where there were more.
func clean(s string, most int) string {
	if len(s) <= most && utf8.ValidString(s) {
		return s
	}
	whole := len(s) <= most
	s = strings.ToValidUTF8(s[:cutAt(s, most)], "\ufffd") // longer than before, perhaps
	if s = s[:cutAt(s, most)]; whole {
		return s
	}
	return s + "…"
}

// cutAt is where to cut a text so that most bytes are left and no character is cut through.
func cutAt(s string, most int) int {
	if len(s) <= most {
		return len(s)
	}
	for at := most; at > most-utf8.UTFMax && at > 0; at-- {
		if utf8.RuneStart(s[at]) {
			return at
		}
	}
	return most
}

// clip is clean for what is quoted in a message.
func clip(s string) string {
	const most = 64
	return clean(s, most)
}

// traceContext is the propagator for requests from anybody. It differs from
// OpenTelemetry's in what W3C Trace Context says of odd headers: two traceparents are none
// (2.2.2), several tracestates are one list in their order (3.3.1.1), whose empty
// members, and further ones of the same key, count for nothing. Of the list
// cause.MaxTracestateBytes are kept.
type traceContext struct{ propagation.TraceContext }

// Extract puts the headers' span context, if they hold one, into ctx.
func (t traceContext) Extract(ctx context.Context, carrier propagation.TextMapCarrier) context.Context {
	headers, ok := carrier.(propagation.ValuesGetter)
	if !ok {
		return t.TraceContext.Extract(ctx, carrier)
	}
	traceparents := headers.Values("traceparent")
	if len(traceparents) != 1 {
		return ctx
	}
	tracestates := headers.Values("tracestate")
	if len(tracestates) == 0 && len(traceparents[0]) == traceparentBytes {
		return t.TraceContext.Extract(ctx, carrier) // the usual case
	}
	span := cause.Parse(strings.Trim(traceparents[0], " \t"), "")
	if !span.IsValid() {
		return ctx
	}
	if len(tracestates) > 0 {
		span = span.WithTraceState(readTracestate(tracestates))
	}
	return trace.ContextWithRemoteSpanContext(ctx, span)
}

// readTracestate makes one list of the headers: none where one of the members is broken,
// or where there are more than 32.
func readTracestate(headers []string) trace.TraceState {
	const mostMembers = 32
	var members, keys []string
	for _, header := range headers {
		for member := range strings.SplitSeq(header, ",") {
			if member = strings.Trim(member, " \t"); member == "" {
				continue
			}
			key, _, _ := strings.Cut(member, "=")
			if slices.Contains(keys, key) {
				continue
			}
			if len(members) == mostMembers {
				return trace.TraceState{}
			}
			members, keys = append(members, member), append(keys, key)
		}
	}
	state, err := trace.ParseTraceState(strings.Join(members, ","))
	if err != nil {
		return trace.TraceState{}
	}
	if bounded := boundTracestate(state.String()); len(bounded) < len(state.String()) {
		state, _ = trace.ParseTraceState(bounded) // a part of what was parsed
	}
	return state
}

// presentable hands spans, which makes a SERVER span of each request and then calls
// asItCame, requests that such a span may show.
func presentable(spans http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if shown := show(r); shown != nil {
			r = shown.WithContext(context.WithValue(r.Context(), originalKey{}, r))
		}
		spans.ServeHTTP(w, r)
	})
}

// asItCame gives next the request that presentable has changed as it was before.
func asItCame(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if original, ok := r.Context().Value(originalKey{}).(*http.Request); ok {
			r.Method, r.Host, r.RemoteAddr, r.URL, r.Header = original.Method, original.Host, original.RemoteAddr, original.URL, original.Header
		}
		next.ServeHTTP(w, r)
	})
}

type originalKey struct{}

// show returns a copy of r in which everything that otelhttp puts on a span is clean, nil
// where it is in r.
func show(r *http.Request) *http.Request {
	var shown *http.Request
	change := func() *http.Request {
		if shown == nil {
			c := *r
			shown = &c
		}
		return shown
	}
	if s := clean(r.Method, mostText); s != r.Method {
		change().Method = s
	}
	if s := clean(r.Host, mostText); s != r.Host {
		change().Host = s
	}
	if s := clean(r.RemoteAddr, mostText); s != r.RemoteAddr {
		change().RemoteAddr = s
	}
	if r.URL != nil {
		if s := clean(r.URL.Path, mostText); s != r.URL.Path {
			change().URL = &url.URL{Path: s}
		}
	}
	cloned := false
	for _, name := range [...]string{"User-Agent", "X-Forwarded-For"} {
		values := r.Header[name]
		if len(values) == 0 {
			continue
		}
		if s := clean(values[0], mostText); s != values[0] {
			if !cloned {
				change().Header = r.Header.Clone()
				cloned = true
			}
			shown.Header[name] = []string{s}
		}
	}
	return shown
}
