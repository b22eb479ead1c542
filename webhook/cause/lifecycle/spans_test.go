package lifecycle

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/tracehook/tracehook/webhook/cause"
)

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// asked is the IDGenerator that a Controller needs.
type asked struct{ t *testing.T }

func (a asked) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	traceID, spanID, ok := WantedIDs(ctx)
	if !ok {
		a.t.Error("a span is made without ids")
	}
	return traceID, spanID
}

func (a asked) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	_, spanID := a.NewIDs(ctx)
	return spanID
}

func recorded(t *testing.T, s subject, trust Trust, late bool, stages ...Stage) tracetest.SpanStubs {
	t.Helper()
	to := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(to), sdktrace.WithIDGenerator(asked{t}))
	for _, stage := range stages {
		s.tell(provider.Tracer(""), trust, late, stage)
	}
	return to.GetSpans()
}

func web() subject {
	return subject{kind: "Pod", namespace: "shop", name: "web", uid: "u-1", cause: cause.Parse(traceparent, "v=1"), from: noon, created: noon}
}

func second(n int) time.Time { return noon.Add(time.Duration(n) * time.Second) }

func TestAStageIsTheSameSpanWhoeverTellsIt(t *testing.T) {
	stage := Stage{Name: RunContainer, Container: "app", Restart: 2, Start: second(1), End: second(3), Resolution: time.Second, Failure: Failure{Reason: "OOMKilled", ExitCode: 137}}
	one, two := recorded(t, web(), TrustParent, false, stage)[0], recorded(t, web(), TrustParent, false, stage)[0]
	if !one.SpanContext.Equal(two.SpanContext) || !one.StartTime.Equal(second(1)) || !one.EndTime.Equal(second(3)) {
		t.Errorf("%+v and %+v", one, two)
	}
	for name, change := range map[string]func(*subject, *Stage){
		"another object":    func(s *subject, _ *Stage) { s.uid = "u-2" },
		"another container": func(_ *subject, s *Stage) { s.Container = "other" },
		"another run":       func(_ *subject, s *Stage) { s.Restart = 3 },
		"another stage":     func(_ *subject, s *Stage) { s.Name = RestartContainer },
		"another cause": func(s *subject, _ *Stage) {
			s.cause = cause.Parse("00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01", "")
		},
	} {
		s, other := web(), stage
		change(&s, &other)
		if got := recorded(t, s, TrustParent, false, other)[0]; got.SpanContext.SpanID() == one.SpanContext.SpanID() {
			t.Errorf("%s has the same span id", name)
		}
	}
	if one.Status.Code != codes.Error || one.Status.Description != "OOMKilled" {
		t.Errorf("status %+v", one.Status)
	}
	var attributes []string
	for _, a := range one.Attributes {
		attributes = append(attributes, string(a.Key)+"="+a.Value.String())
	}
	want := []string{"k8s.namespace.name=shop", "k8s.pod.name=web", "k8s.pod.uid=u-1", "k8s.container.name=app", "k8s.container.restart_count=2",
		"k8s.container.status.reason=OOMKilled", "error.type=OOMKilled", "process.exit.code=137", "tracehook.time.resolution=1"}
	if !slices.Equal(attributes, want) {
		t.Errorf("attributes\n%s\nwant\n%s", strings.Join(attributes, "\n"), strings.Join(want, "\n"))
	}
}

func TestSpansHangWhereTrustAndAgePutThem(t *testing.T) {
	found := web().cause
	anchor, schedule := Stage{Name: PodAnchor, Start: noon, End: noon}, Stage{Name: Schedule, Start: noon, End: second(1)}
	spans := recorded(t, web(), TrustParent, false, anchor, schedule)
	if spans[0].Parent.SpanID() != found.SpanID() || spans[0].SpanContext.TraceID() != found.TraceID() || spans[0].SpanContext.TraceState().String() != "v=1" || len(spans[0].Links) > 0 {
		t.Errorf("the Pod is not below its cause: %+v", spans[0])
	}
	if spans[1].Parent.SpanID() != spans[0].SpanContext.SpanID() || spans[1].SpanContext.TraceID() != found.TraceID() {
		t.Errorf("a stage is not below the Pod: %+v", spans[1])
	}

	own := web()
	own.own = true // the cause is the span `create Pod`
	if s := recorded(t, own, TrustParent, false, schedule)[0]; s.Parent.SpanID() != found.SpanID() || own.tells(TrustParent, anchor) {
		t.Errorf("the stage is not below the Pod's own span: %+v", s)
	}

	for _, trust := range []Trust{TrustLink, TrustNone} {
		spans := recorded(t, web(), trust, false, anchor, schedule)
		if spans[0].SpanContext.TraceID() == found.TraceID() || spans[0].Parent.IsValid() || (len(spans[0].Links) == 1) != (trust == TrustLink) {
			t.Errorf("%s: the Pod is not the root of its own trace: %+v", trust, spans[0])
		}
		if spans[1].Parent.SpanID() != spans[0].SpanContext.SpanID() || spans[1].SpanContext.TraceID() != spans[0].SpanContext.TraceID() || len(spans[1].Links) > 0 {
			t.Errorf("%s: a stage is not below the Pod: %+v", trust, spans[1])
		}
	}

	late := recorded(t, web(), TrustParent, true, Stage{Name: DeletePod, Start: noon, End: second(1)})[0]
	if late.Parent.IsValid() || late.SpanContext.TraceID() == found.TraceID() || len(late.Links) != 1 || late.Links[0].SpanContext.SpanID() != found.SpanID() {
		t.Errorf("what is late has no trace of its own: %+v", late)
	}
}

func TestAMarkIsReadAsItWasWritten(t *testing.T) {
	for _, mark := range []Mark{nil, {"pods": 7}, {"pods": 1 << 63, "events": 0, "jobs": 3}} {
		got, err := ParseMark(mark.String())
		if err != nil || got.String() != mark.String() {
			t.Errorf("%v, %v; want %v", got, err, mark)
		}
	}
}

func FuzzParseMark(f *testing.F) {
	f.Add("events=5,pods=7")
	f.Add("pods=,=7")
	f.Fuzz(func(t *testing.T, text string) {
		mark, err := ParseMark(text)
		if err != nil {
			return
		}
		if again, err := ParseMark(mark.String()); err != nil || again.String() != mark.String() {
			t.Errorf("%q is %v, and read again %v, %v", text, mark, again, err)
		}
	})
}
