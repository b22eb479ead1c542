package cause_test

import (
	"context"
	"errors"
	"maps"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/webhook/cause"
)

const (
	one    = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	nearer = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
	other  = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
	key    = cause.DefaultKey
	kep    = cause.KEP5915Key
)

func object(annotations map[string]string) metav1.Object {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u-1", Annotations: annotations}}
}

func asTraceparent(c trace.SpanContext) string {
	if !c.IsValid() {
		return ""
	}
	return "00-" + c.TraceID().String() + "-" + c.SpanID().String() + "-" + c.TraceFlags().String()
}

func TestTheCauseIsTheFirstValidTraceparentOfTheKeys(t *testing.T) {
	for name, test := range map[string]struct {
		annotations map[string]string
		keys        []string
		want        string
		invalid     string // keys that the error names
	}{
		"no annotations":                        {nil, nil, "", ""},
		"others only":                           {map[string]string{"a": one}, nil, "", ""},
		"the default key":                       {map[string]string{key: one}, nil, one, ""},
		"the key of KEP-5915":                   {map[string]string{kep: other}, nil, other, ""},
		"ours before KEP-5915's":                {map[string]string{key: one, kep: other}, nil, one, ""},
		"KEP-5915's where ours is broken":       {map[string]string{key: "broken", kep: other}, nil, other, ""},
		"both broken":                           {map[string]string{key: "broken", kep: ""}, nil, "", key + " " + kep},
		"a key of one's own":                    {map[string]string{"shop.example/cause": one, key: other}, []string{"shop.example/cause"}, one, ""},
		"a key without prefix":                  {map[string]string{"traceparent": one}, []string{"traceparent"}, one, ""},
		"a key of one's own is the only one":    {map[string]string{key: one}, []string{"shop.example/cause"}, "", ""},
		"the object's own creation is nearer":   {map[string]string{key: one, "tracehook.dev/create-traceparent": nearer}, nil, nearer, ""},
		"an old creation of another trace":      {map[string]string{key: one, "tracehook.dev/create-traceparent": other}, nil, one, ""},
		"a broken creation":                     {map[string]string{key: one, "tracehook.dev/create-traceparent": "broken"}, nil, one, ""},
		"a creation alone is not ours":          {map[string]string{"tracehook.dev/create-traceparent": one}, nil, "", ""},
		"zeros as trace id":                     {map[string]string{key: "00-00000000000000000000000000000000-b7ad6b7169203331-01"}, nil, "", key},
		"zeros as span id":                      {map[string]string{key: "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"}, nil, "", key},
		"upper case":                            {map[string]string{key: strings.ToUpper(one)}, nil, "", key},
		"something after it":                    {map[string]string{key: one + "-00"}, nil, "", key},
		"white space":                           {map[string]string{key: " " + one}, nil, "", key},
		"a later version with more in it":       {map[string]string{key: "cc" + one[2:] + "-what-the-future-will-be-like"}, nil, one, ""},
		"a later version with too much in it":   {map[string]string{key: "cc" + one[2:] + "-" + strings.Repeat("x", 256-55)}, nil, "", key},
		"version ff":                            {map[string]string{key: "ff" + one[2:]}, nil, "", key},
		"a quarter of a mebibyte":               {map[string]string{key: strings.Repeat("0", 256<<10)}, nil, "", key},
		"the tracestate alone causes nothing":   {map[string]string{"tracehook.dev/tracestate": "a=b"}, nil, "", ""},
		"an empty value is no trace context":    {map[string]string{key: ""}, nil, "", key},
		"flags that are not defined are no use": {map[string]string{key: one[:53] + "ff"}, nil, "", key},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := cause.Of(object(test.annotations), test.keys...)
			if asTraceparent(got) != test.want {
				t.Errorf("got %q, want %q", asTraceparent(got), test.want)
			}
			if got.IsValid() && !got.IsRemote() {
				t.Error("the span context does not say that it came from somewhere else")
			}
			if (test.invalid != "") != errors.Is(err, cause.ErrInvalid) {
				t.Fatalf("got error %v, want one about %q", err, test.invalid)
			}
			for _, k := range strings.Fields(test.invalid) {
				if !strings.Contains(err.Error(), k) {
					t.Errorf("error %q does not name %s", err, k)
				}
			}
			if err != nil && len(err.Error()) > 200 {
				t.Errorf("the error quotes what it should not: %s", err)
			}
		})
	}
}

func TestAnObjectThatIsGoneHasNoCause(t *testing.T) {
	if got, err := cause.Of(nil); got.IsValid() || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

// half is an object that has been made by hand, and not to its end.
type half struct{ *metav1.ObjectMeta }

func TestAnObjectWhoseMethodsPanicIsGone(t *testing.T) {
	var gone *metav1.PartialObjectMetadata // what a lister returns with its "not found"
	for name, obj := range map[string]metav1.Object{
		"a nil pointer":                gone,
		"a nil pointer to metadata":    (*metav1.ObjectMeta)(nil),
		"an embedded nil pointer":      half{},
		"an embedded nil interface":    struct{ metav1.Object }{},
		"a nil pointer, boxed again":   struct{ metav1.Object }{gone},
		"an object that has no fields": &metav1.PartialObjectMetadata{},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := cause.Of(obj); got.IsValid() || err != nil {
				t.Errorf("got %v, %v", got, err)
			}
			for _, parent := range []bool{false, true} {
				span := started(t, t.Context(), obj, cause.Options{Parent: parent}, sdktrace.AlwaysSample())
				if len(span.Links()) != 0 || span.Parent().IsValid() || span.Name() != "reconcile widget" {
					t.Errorf("got span %q, links %v, parent %v", span.Name(), span.Links(), span.Parent())
				}
				if got := attributeOf(span, cause.AttributeCause); got != "none" {
					t.Errorf("cause %q, want none", got)
				}
			}
		})
	}
}

func attributeOf(span sdktrace.ReadOnlySpan, key attribute.Key) string {
	for _, a := range span.Attributes() {
		if a.Key == key {
			return a.Value.AsString()
		}
	}
	return ""
}

// A struct that its author has not filled in, as in a unit test.
func TestWithoutATracerNothingIsRecordedAndTheContextGoesOn(t *testing.T) {
	type key struct{}
	ctx, span := cause.Start(context.WithValue(t.Context(), key{}, "kept"), nil, "reconcile widget", object(map[string]string{cause.DefaultKey: one}), cause.Options{})
	span.End()
	if span.IsRecording() || ctx.Value(key{}) != "kept" {
		t.Errorf("recording %v, context %v", span.IsRecording(), ctx)
	}
}

// The options of many spans, made once, with room behind them.
func TestOptionsStayTheCallers(t *testing.T) {
	shared := append(make([]trace.SpanStartOption, 0, 8), trace.WithSpanKind(trace.SpanKindConsumer))
	recorder := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer("test")
	var group sync.WaitGroup
	for _, traceparent := range []string{one, other} {
		obj := object(map[string]string{key: traceparent})
		group.Go(func() {
			for range 50 {
				_, span := cause.Start(t.Context(), tracer, traceparent, obj, cause.Options{}, shared...)
				span.End()
			}
		})
	}
	group.Wait()
	for _, span := range recorder.Ended() {
		if len(span.Links()) != 1 || asTraceparent(span.Links()[0].SpanContext) != span.Name() {
			t.Fatalf("the span of %s links to %v", span.Name(), span.Links())
		}
	}
	if behind := shared[:2]; behind[1] != nil {
		t.Errorf("something was written behind the caller's options: %v", behind[1])
	}
}

func TestATracestateIsReadFromBesideItsTraceparent(t *testing.T) {
	for name, test := range map[string]struct {
		annotations map[string]string
		keys        []string
		want        string
	}{
		"ours":                       {map[string]string{key: one, "tracehook.dev/tracestate": "a=1,b=2"}, nil, "a=1,b=2"},
		"KEP-5915's":                 {map[string]string{kep: one, "tracing.k8s.io/tracestate": "a=1"}, nil, "a=1"},
		"of another prefix":          {map[string]string{key: one, "tracing.k8s.io/tracestate": "a=1"}, nil, ""},
		"without prefix":             {map[string]string{"traceparent": one, "tracestate": "a=1"}, []string{"traceparent"}, "a=1"},
		"the longest":                {map[string]string{key: one, "tracehook.dev/tracestate": tracestate(512)}, nil, tracestate(512)},
		"a byte too long":            {map[string]string{key: one, "tracehook.dev/tracestate": tracestate(513)}, nil, ""},
		"broken":                     {map[string]string{key: one, "tracehook.dev/tracestate": "a=1,a=2"}, nil, ""},
		"beside a broken one":        {map[string]string{key: "broken", "tracehook.dev/tracestate": "a=1"}, nil, ""},
		"more members than W3C's 32": {map[string]string{key: one, "tracehook.dev/tracestate": members(33)}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := cause.Of(object(test.annotations), test.keys...)
			if got.TraceState().String() != test.want {
				t.Errorf("got tracestate %q, want %q", got.TraceState(), test.want)
			}
		})
	}
}

// tracestate of this many bytes: one member cannot be longer than about 256.
func tracestate(size int) string {
	const first = "a="
	head := first + strings.Repeat("x", 250) + ","
	second := "b=" + strings.Repeat("x", 240) + ","
	return head + second + "c=" + strings.Repeat("x", size-len(head)-len(second)-len("c="))
}

func members(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('a' + byte(i%26))
		b.WriteByte('a' + byte(i/26))
		b.WriteString("=1")
	}
	return b.String()
}

func started(t *testing.T, ctx context.Context, obj metav1.Object, o cause.Options, sampler sdktrace.Sampler) sdktrace.ReadOnlySpan {
	t.Helper()
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder), sdktrace.WithSampler(sampler))
	_, span := cause.Start(ctx, provider.Tracer("test"), "reconcile widget", obj, o, trace.WithSpanKind(trace.SpanKindConsumer))
	span.End()
	if len(recorder.Ended()) == 0 {
		return nil
	}
	return recorder.Ended()[0]
}

func wantSpan(t *testing.T, got sdktrace.ReadOnlySpan, parent string, links []string, attributes map[attribute.Key]any) {
	t.Helper()
	if got.Name() != "reconcile widget" || got.SpanKind() != trace.SpanKindConsumer {
		t.Errorf("got %s span %q: the caller's name and options are lost", got.SpanKind(), got.Name())
	}
	if asTraceparent(got.Parent()) != parent {
		t.Errorf("parent %q, want %q", asTraceparent(got.Parent()), parent)
	}
	var gotLinks []string
	for _, l := range got.Links() {
		gotLinks = append(gotLinks, asTraceparent(l.SpanContext))
	}
	if strings.Join(gotLinks, " ") != strings.Join(links, " ") {
		t.Errorf("links %q, want %q", gotLinks, links)
	}
	gotAttributes := map[attribute.Key]any{}
	for _, a := range got.Attributes() {
		gotAttributes[a.Key] = a.Value.AsInterface()
	}
	if !maps.Equal(gotAttributes, attributes) {
		t.Errorf("attributes\ngot  %v\nwant %v", gotAttributes, attributes)
	}
}

func about(what string) map[attribute.Key]any {
	return map[attribute.Key]any{
		"tracehook.cause": what, "k8s.namespace.name": "shop", "tracehook.object.name": "web", "tracehook.object.uid": "u-1",
	}
}

func TestASpanLinksToTheCauseAndIsTheRootOfATraceOfItsOwn(t *testing.T) {
	span := started(t, t.Context(), object(map[string]string{key: one}), cause.Options{}, sdktrace.AlwaysSample())
	wantSpan(t, span, "", []string{one}, about("link"))
	if span.SpanContext().TraceID().String() == one[3:35] {
		t.Error("the span is in the cause's trace")
	}
}

func TestByOptionASpanIsAChildOfTheCause(t *testing.T) {
	span := started(t, t.Context(), object(map[string]string{key: one}), cause.Options{Parent: true}, sdktrace.AlwaysSample())
	wantSpan(t, span, one, nil, about("parent"))
	if span.SpanContext().TraceID().String() != one[3:35] {
		t.Error("the span is not in the cause's trace")
	}
}

func TestASpanUnderWayIsKeptAsParentOrAsLink(t *testing.T) {
	underWay, _ := cause.Of(object(map[string]string{key: other}))
	ctx := trace.ContextWithSpanContext(t.Context(), underWay)
	obj := object(map[string]string{key: one})
	wantSpan(t, started(t, ctx, obj, cause.Options{}, sdktrace.AlwaysSample()), other, []string{one}, about("link"))
	wantSpan(t, started(t, ctx, obj, cause.Options{Parent: true}, sdktrace.AlwaysSample()), one, []string{other}, about("parent"))
}

func TestWithoutAUsableCauseTheSpanSaysSo(t *testing.T) {
	for _, parent := range []bool{false, true} {
		o := cause.Options{Parent: parent}
		wantSpan(t, started(t, t.Context(), object(nil), o, sdktrace.AlwaysSample()), "", nil, about("none"))
		wantSpan(t, started(t, t.Context(), object(map[string]string{key: "broken"}), o, sdktrace.AlwaysSample()), "", nil, about("invalid"))
		wantSpan(t, started(t, t.Context(), nil, o, sdktrace.AlwaysSample()), "", nil, map[attribute.Key]any{"tracehook.cause": "none"})
	}
}

func TestAClusterScopedObjectHasNoNamespace(t *testing.T) {
	obj := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "node-1", UID: "u-2"}}
	wantSpan(t, started(t, t.Context(), obj, cause.Options{}, sdktrace.AlwaysSample()), "", nil,
		map[attribute.Key]any{"tracehook.cause": "none", "tracehook.object.name": "node-1", "tracehook.object.uid": "u-2"})
}

func TestOtherKeysAreReadWhenAskedFor(t *testing.T) {
	obj := object(map[string]string{key: one, "shop.example/cause": other})
	wantSpan(t, started(t, t.Context(), obj, cause.Options{Keys: []string{"shop.example/cause"}}, sdktrace.AlwaysSample()), "", []string{other}, about("link"))
}

func TestAnUnsampledCauseDecidesForItsChildrenOnly(t *testing.T) {
	obj := object(map[string]string{key: other})
	sampler := sdktrace.ParentBased(sdktrace.AlwaysSample())
	if span := started(t, t.Context(), obj, cause.Options{Parent: true}, sampler); span != nil {
		t.Error("the child of an unsampled cause was sampled")
	}
	if span := started(t, t.Context(), obj, cause.Options{}, sampler); span == nil {
		t.Error("the link to an unsampled cause took the sampling decision with it")
	}
}

func TestThePackageBringsNoServerAlong(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/tracehook/tracehook/webhook/cause").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dependency := range strings.Fields(string(out)) {
		for _, heavy := range []string{"sigs.k8s.io/controller-runtime", "k8s.io/client-go", "go.opentelemetry.io/contrib", "go.opentelemetry.io/otel/sdk", "github.com/prometheus"} {
			if strings.HasPrefix(dependency, heavy) {
				t.Errorf("it imports %s", dependency)
			}
		}
	}
}

func FuzzNoAnnotationIsTooMuch(f *testing.F) {
	f.Add(one, "a=1,b=2")
	f.Add(other, "")
	f.Add("cc"+one[2:]+"-more", strings.Repeat("a=1,", 40))
	f.Add("00-zz", "=")
	f.Fuzz(func(t *testing.T, traceparent, tracestate string) {
		got, err := cause.Of(object(map[string]string{key: traceparent, "tracehook.dev/tracestate": tracestate}))
		if got.IsValid() != (err == nil) {
			t.Fatalf("valid %v, error %v", got.IsValid(), err)
		}
		if !got.IsValid() {
			return
		}
		// What was read is stored and read again without a change.
		again, err := cause.Of(object(map[string]string{key: asTraceparent(got), "tracehook.dev/tracestate": got.TraceState().String()}))
		if err != nil || !again.Equal(got) {
			t.Fatalf("read %v, and again %v, %v", got, again, err)
		}
	})
}

func TestWhenACauseWasStoredIsKnownForItsOwnTraceparentOnly(t *testing.T) {
	const written, sum = "2026-11-28T10:00:00.123Z", "b38a5129"
	for name, test := range map[string]struct {
		traceparent, causedAt string
		want                  string
	}{
		"as the webhook writes it": {one, written + " SUMffffffff", "2026-11-28T10:00:00.123Z"},
		"of another traceparent":   {nearer, written + " SUMffffffff", ""},
		"no traceparent":           {"", written + " SUMffffffff", ""},
		"a broken traceparent":     {"broken", written + " SUMffffffff", ""},
		"no checksum":              {one, written, ""},
		"a wrong checksum":         {one, written + " 0000000000000000", ""},
		"no time":                  {one, "yesterday, in the morning SUMffffffff", ""},
		"nothing":                  {one, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			annotations := map[string]string{cause.CausedAtKey(key): strings.ReplaceAll(test.causedAt, "SUM", sum)}
			if test.traceparent != "" {
				annotations[key] = test.traceparent
			}
			var got string
			if at := cause.At(object(annotations)); !at.IsZero() {
				got = at.Format("2006-01-02T15:04:05.000Z07:00")
			}
			if got != test.want {
				t.Errorf("stored at %q, want %q", got, test.want)
			}
		})
	}
	if at := cause.At((*metav1.PartialObjectMetadata)(nil)); !at.IsZero() {
		t.Errorf("an object that is gone was caused at %s", at)
	}
}
