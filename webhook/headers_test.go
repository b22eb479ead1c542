package webhook

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/tracehook/tracehook/webhook/cause"
)

// The cases of https://github.com/w3c/trace-context/blob/main/test/test.py, and some more.
func TestTheTraceContextIsReadAsW3CSays(t *testing.T) {
	const (
		valid  = "00-12345678901234567890123456789012-1234567890123456-01"
		valid2 = "00-12345678901234567890123456789011-1234567890123456-01"
	)
	one := func(s string) []string { return []string{s} }
	list := func(n int) string {
		var members []string
		for i := range n {
			members = append(members, fmt.Sprintf("bar%02d=%02d", i+1, i+1))
		}
		return strings.Join(members, ",")
	}
	for name, test := range map[string]struct {
		traceparents, tracestates []string
		there                     bool
		tracestate                string
	}{
		"neither":                       {},
		"no tracestate":                 {one(valid), nil, true, ""},
		"no traceparent":                {nil, one("foo=1"), false, ""},
		"both":                          {one(valid), one("foo=1,bar=2"), true, "foo=1,bar=2"},
		"two traceparents":              {[]string{valid2, valid}, nil, false, ""},
		"the same traceparent, two":     {[]string{valid, valid}, nil, false, ""},
		"one and an empty one":          {[]string{valid, ""}, nil, false, ""},
		"two in one header":             {one(valid + "," + valid), nil, false, ""},
		"something after it":            {one(valid + "."), nil, false, ""},
		"a dash after it":               {one(valid + "-"), nil, false, ""},
		"version 00 with a future":      {one(valid + "-what-the-future-will-be-like"), nil, false, ""},
		"a later version":               {one("cc" + valid[2:]), nil, true, ""},
		"with a future":                 {one("cc" + valid[2:] + "-what-the-future-will-be-like"), nil, true, ""},
		"with a future of another kind": {one("cc" + valid[2:] + ".what-the-future-will-not-be-like"), nil, false, ""},
		"version ff":                    {one("ff" + valid[2:]), nil, false, ""},
		"a version of no hex":           {one(".0" + valid[2:]), nil, false, ""},
		"a version of half hex":         {one("0." + valid[2:]), nil, false, ""},
		"a version too long":            {one("0" + valid), nil, false, ""},
		"a version much too long":       {one("00" + valid), nil, false, ""},
		"a version too short":           {one(valid[1:]), nil, false, ""},
		"a trace id of zeros":           {one("00-00000000000000000000000000000000-1234567890123456-01"), nil, false, ""},
		"a trace id of no hex":          {one("00-.2345678901234567890123456789012-1234567890123456-01"), nil, false, ""},
		"a trace id of half hex":        {one("00-1234567890123456789012345678901.-1234567890123456-01"), nil, false, ""},
		"a trace id too long":           {one("00-123456789012345678901234567890123-1234567890123456-01"), nil, false, ""},
		"a trace id too short":          {one("00-1234567890123456789012345678901-1234567890123456-01"), nil, false, ""},
		"a trace id in upper case":      {one("00-ABCDEF78901234567890123456789012-1234567890123456-01"), nil, false, ""},
		"a parent id of zeros":          {one("00-12345678901234567890123456789012-0000000000000000-01"), nil, false, ""},
		"a parent id of no hex":         {one("00-12345678901234567890123456789012-.234567890123456-01"), nil, false, ""},
		"a parent id of half hex":       {one("00-12345678901234567890123456789012-123456789012345.-01"), nil, false, ""},
		"a parent id too long":          {one("00-12345678901234567890123456789012-12345678901234567-01"), nil, false, ""},
		"a parent id too short":         {one("00-12345678901234567890123456789012-123456789012345-01"), nil, false, ""},
		"flags of no hex":               {one("00-12345678901234567890123456789012-1234567890123456-.0"), nil, false, ""},
		"flags of half hex":             {one("00-12345678901234567890123456789012-1234567890123456-0."), nil, false, ""},
		"flags too long":                {one("00-12345678901234567890123456789012-1234567890123456-001"), nil, false, ""},
		"flags too short":               {one("00-12345678901234567890123456789012-1234567890123456-1"), nil, false, ""},
		"white space around":            {one(" \t" + valid + " \t"), nil, true, ""},

		"an empty tracestate":               {one(valid), one(""), true, ""},
		"an empty one behind":               {one(valid), []string{"foo=1", ""}, true, "foo=1"},
		"an empty one in front":             {one(valid), []string{"", "foo=1"}, true, "foo=1"},
		"three tracestates":                 {one(valid), []string{"foo=1,bar=2", "rojo=1,congo=2", "baz=3"}, true, "foo=1,bar=2,rojo=1,congo=2,baz=3"},
		"a key twice, the same":             {one(valid), one("foo=1,foo=1"), true, "foo=1"},
		"a key twice":                       {one(valid), one("foo=1,bar=3,foo=2"), true, "foo=1,bar=3"},
		"a key in two headers":              {one(valid), []string{"foo=1", "foo=2"}, true, "foo=1"},
		"an empty member":                   {one(valid), one("foo=1,,bar=2,"), true, "foo=1,bar=2"},
		"a member of white space":           {one(valid), one("foo=1, \t ,bar=2"), true, "foo=1,bar=2"},
		"white space around members":        {one(valid), one(" \tfoo=1 \t , \t bar=2, \t baz=3 "), true, "foo=1,bar=2,baz=3"},
		"white space in a key":              {one(valid), one("foo =1"), true, ""},
		"upper case in a key":               {one(valid), one("FOO=1"), true, ""},
		"a dot in a key":                    {one(valid), one("foo.bar=1"), true, ""},
		"no vendor behind @":                {one(valid), one("foo@=1,bar=2"), true, ""},
		"no tenant before @":                {one(valid), one("@foo=1,bar=2"), true, ""},
		"two @":                             {one(valid), one("foo@@bar=1,bar=2"), true, ""},
		"two vendors":                       {one(valid), one("foo@bar@baz=1,bar=2"), true, ""},
		"every character of a key":          {one(valid), one("abcdefghijklmnopqrstuvwxyz0123456789_-*/=a"), true, "abcdefghijklmnopqrstuvwxyz0123456789_-*/=a"},
		"every character of a vendor's key": {one(valid), one("0123456789abcdefghijklmnopqrstuvwxyz_-*/@a-z0-9_-*/=a"), true, "0123456789abcdefghijklmnopqrstuvwxyz_-*/@a-z0-9_-*/=a"},
		"every character of a value":        {one(valid), one("foo=" + characters()), true, "foo=" + characters()},
		"32 members":                        {one(valid), one(list(32)), true, list(32)},
		"33 members":                        {one(valid), one(list(33)), true, ""},
		"33 members in two headers":         {one(valid), []string{list(32), "z=1"}, true, ""},
		"the longest key":                   {one(valid), one("foo=1," + strings.Repeat("z", 256) + "=1"), true, "foo=1," + strings.Repeat("z", 256) + "=1"},
		"a key too long":                    {one(valid), one("foo=1," + strings.Repeat("z", 257) + "=1"), true, ""},
		"the longest vendor":                {one(valid), one(strings.Repeat("t", 241) + "@" + strings.Repeat("v", 14) + "=1"), true, strings.Repeat("t", 241) + "@" + strings.Repeat("v", 14) + "=1"},
		"a tenant too long":                 {one(valid), one(strings.Repeat("t", 242) + "@v=1"), true, ""},
		"a vendor too long":                 {one(valid), one("t@" + strings.Repeat("v", 15) + "=1"), true, ""},
		"= in a value":                      {one(valid), one("foo=bar=baz"), true, ""},
		"an empty value":                    {one(valid), one("foo=,bar=3"), true, ""},
		"no value":                          {one(valid), one("foo,bar=3"), true, ""},
		"bytes that are no UTF-8":           {one(valid), one("foo=\xff"), true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			header := http.Header{"Traceparent": test.traceparents, "Tracestate": test.tracestates}
			got := trace.SpanContextFromContext(traceContext{}.Extract(context.Background(), propagation.HeaderCarrier(header)))
			if got.IsValid() != test.there || got.TraceState().String() != test.tracestate {
				t.Errorf("%q %q: got %v with tracestate %q, want one: %t, with tracestate %q", test.traceparents, test.tracestates, got.IsValid(), got.TraceState(), test.there, test.tracestate)
			}
			if got.IsValid() && (!got.IsRemote() || !got.IsSampled() || got.TraceID().String() != "12345678901234567890123456789012") {
				t.Errorf("got %v", got)
			}
		})
	}
}

// characters are all that a tracestate's value may hold, the blank not at the end.
func characters() string {
	var b strings.Builder
	for c := byte(' '); c <= '~'; c++ {
		if c != ',' && c != '=' {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// everyHandler calls f for each kind of handler that makes SERVER spans. seen is the
// request as the innermost handler has it, nil where that is ours.
func everyHandler(t *testing.T, f func(t *testing.T, handler http.Handler, seen *http.Request, spans *tracetest.SpanRecorder)) {
	t.Helper()
	seen := new(http.Request)
	answers := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*seen = *r
		http.Error(w, "no", http.StatusBadRequest)
	})
	allows := admission.HandlerFunc(func(context.Context, admission.Request) admission.Response { return admission.Allowed("") })
	for _, kind := range []struct {
		name string
		wrap func(trace.TracerProvider) http.Handler
		seen *http.Request
	}{
		{"New", func(p trace.TracerProvider) http.Handler {
			h, err := New(Options{TracerProvider: p, MaxBodyBytes: 64 << 20, Mutators: Chain{{Name: "trace-context", Mutator: newTraceContext(t, TraceContextOptions{})}}})
			if err != nil {
				t.Fatal(err)
			}
			return h
		}, nil},
		{"Instrument", func(p trace.TracerProvider) http.Handler {
			return Instrument(allows, InstrumentOptions{TracerProvider: p})
		}, nil},
		{"InstrumentHTTP", func(p trace.TracerProvider) http.Handler {
			return InstrumentHTTP(answers, InstrumentOptions{TracerProvider: p})
		}, seen},
	} {
		t.Run(kind.name, func(t *testing.T) {
			rec := tracetest.NewSpanRecorder()
			f(t, kind.wrap(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(rec))), kind.seen, rec)
		})
	}
}

// What a span holds of a call is valid UTF-8 and short, whatever the caller sends: one
// byte else, and the exporter loses the batch. The handler below sees the request as it was.
func TestNothingThatACallerSendsMakesASpanThatCannotBeExported(t *testing.T) {
	for name, odd := range map[string]string{
		"no UTF-8":            "x\xff",
		"long":                strings.Repeat("x", 1<<20),
		"long and no UTF-8":   strings.Repeat("\xff", 1<<20),
		"cut in a character":  strings.Repeat("x", mostText-1) + "é",
		"half a character":    strings.Repeat("x", mostText-1) + "\xc3",
		"a surrogate's bytes": "\xed\xa0\x80",
	} {
		t.Run(name, func(t *testing.T) {
			everyHandler(t, func(t *testing.T, handler http.Handler, seen *http.Request, spans *tracetest.SpanRecorder) {
				quoted := strings.ToValidUTF8(odd, "?") // what stands in the review is valid
				body := fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":%[1]q,"name":%[1]q,"namespace":%[1]q,"subResource":%[1]q,`+
					`"kind":{"group":%[1]q,"version":%[1]q,"kind":%[1]q},"resource":{"group":%[1]q,"version":%[1]q,"resource":%[1]q},"object":{}}}`, quoted)
				r := httptest.NewRequest(http.MethodPost, "/mutate", strings.NewReader(body))
				r.Header = http.Header{
					"Content-Type": {"application/json"}, "User-Agent": {odd}, "X-Forwarded-For": {odd},
					"Traceparent": {testTraceparent}, "Tracestate": {odd},
				}
				r.Host, r.RemoteAddr, r.URL.Path = odd, odd+":1", "/"+odd
				handler.ServeHTTP(httptest.NewRecorder(), r)
				if len(spans.Ended()) == 0 {
					t.Fatal("no span")
				}
				for _, span := range spans.Ended() {
					wantPresentable(t, span)
				}
				if seen != nil && (seen.Header.Get("User-Agent") != odd || seen.Host != odd || seen.URL.Path != "/"+odd || seen.RemoteAddr != odd+":1") {
					t.Error("the handler sees another request than was sent")
				}
			})
		})
	}
}

func wantPresentable(t *testing.T, span sdktrace.ReadOnlySpan) {
	t.Helper()
	check := func(what, text string, most int) {
		t.Helper()
		if !utf8.ValidString(text) {
			t.Errorf("%s: %s is not valid UTF-8: %q", span.Name(), what, clean(text, 80))
		}
		if len(text) > most+len("…") {
			t.Errorf("%s: %s has %d bytes", span.Name(), what, len(text))
		}
	}
	check("the name", span.Name(), mostText)
	check("the status", span.Status().Description, mostErrorText)
	check("the tracestate", span.SpanContext().TraceState().String(), cause.MaxTracestateBytes)
	for _, a := range span.Attributes() {
		check(string(a.Key), a.Value.String(), mostText)
	}
	for _, link := range span.Links() {
		check("a link's tracestate", link.SpanContext.TraceState().String(), cause.MaxTracestateBytes)
	}
	if len(span.Events()) > 0 {
		t.Errorf("%s has events: %v", span.Name(), span.Events())
	}
}

func TestACallersTracestateIsBoundedOnTheSpan(t *testing.T) {
	var members []string
	for i := range 30 {
		members = append(members, fmt.Sprintf("v%02d=%s", i, strings.Repeat("x", 200)))
	}
	for _, trust := range []Trust{TrustParent, TrustLink} {
		t.Run(string(trust), func(t *testing.T) {
			handler, rec := newTestHandler(t, Options{Trust: trust})
			r := httptest.NewRequest(http.MethodPost, "/mutate", strings.NewReader(testReview))
			r.Header = http.Header{"Content-Type": {"application/json"}, "Traceparent": {testTraceparent}, "Tracestate": {members[0], strings.Join(members[1:], ",")}}
			handler.ServeHTTP(httptest.NewRecorder(), r)
			server := rec.span(t, "POST /mutate")
			got := server.SpanContext().TraceState()
			if trust == TrustLink {
				got = server.Links()[0].SpanContext.TraceState()
			}
			if want := members[0] + "," + members[1]; got.String() != want {
				t.Errorf("got a tracestate of %d bytes, want the first two members", len(got.String()))
			}
		})
	}
}

func TestTextFromOutsideIsValidAndShort(t *testing.T) {
	for _, test := range []struct {
		in   string
		most int
		want string
	}{
		{"", 4, ""}, {"four", 4, "four"}, {"fives", 4, "five…"}, {"üü", 4, "üü"}, {"üüü", 5, "üü…"}, {"x\xff", 9, "x\ufffd"},
		{"\xff\xff\xff\xff", 4, "\ufffd"}, {"a\xffb\xffc\xff", 6, "a\ufffdb"}, {"\x80\x80\x80\x80\x80", 4, "\ufffd…"},
	} {
		if got := clean(test.in, test.most); got != test.want {
			t.Errorf("clean(%q, %d) is %q, want %q", test.in, test.most, got, test.want)
		}
	}
}

func FuzzTextFromOutsideIsValidAndShort(f *testing.F) {
	f.Add("x\xff", 3)
	f.Add("üü", 3)
	f.Fuzz(func(t *testing.T, s string, most int) {
		if most < 4 || most > 1<<16 {
			return
		}
		got := clean(s, most)
		if !utf8.ValidString(got) || len(got) > most+len("…") {
			t.Errorf("clean(%q, %d) is %q", s, most, got)
		}
		if utf8.ValidString(s) && len(s) <= most && got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}
