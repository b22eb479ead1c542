package webhook

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ownedPod is the create of a Pod of a ReplicaSet.
var ownedPod = strings.Replace(ownedReview, "ANNOTATIONS", "", 1)

func ownersCause(context.Context, string, metav1.OwnerReference) (Cause, error) {
	return Cause{Traceparent: causeText, At: testNow}, nil
}

// Else the Pod would have a parent that nobody has ever seen.
func TestACreateSpanThatIsNotSampledIsNobodysParent(t *testing.T) {
	sampledHere := sdktrace.ParentBased(sdktrace.AlwaysSample(), sdktrace.WithRemoteParentSampled(sdktrace.NeverSample()))
	for name, provider := range map[string]*sdktrace.TracerProvider{
		"a sampler says no": sdktrace.NewTracerProvider(sdktrace.WithSampler(sampledHere)),
		"nothing is traced": nil,
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{Mutators: Chain{{Name: "trace-context", Mutator: newTraceContext(t, TraceContextOptions{Causes: causesFunc(ownersCause), CreateSpans: true})}}}
			if provider != nil {
				o.TracerProvider = provider
			}
			handler, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			got := annotationsAfter(t, handler, ownedPod, map[string]string{"Traceparent": testTraceparent})
			if _, ok := got["tracehook.dev/create-traceparent"]; ok || got[DefaultAnnotationKey] != causeText {
				t.Errorf("stored %v, want the owner's cause alone", got)
			}
		})
	}
}

func TestADryRunMakesNoCreateSpan(t *testing.T) {
	handler, rec := handlerOf(t, TraceContextOptions{Causes: causesFunc(ownersCause), CreateSpans: true})
	review := strings.Replace(ownedPod, `"uid":"u-1",`, `"uid":"u-1","dryRun":true,`, 1)
	got := annotationsAfter(t, handler, review, map[string]string{"Traceparent": testTraceparent})
	if n := rec.count("create Pod"); n != 0 || got[DefaultAnnotationKey] != causeText {
		t.Errorf("%d spans, stored %v, want none and the owner's cause", n, got)
	}
}

// A controller tries again and again what a quota refuses, and every time the webhook is asked first.
func TestWhatIsRefusedAgainAndAgainDoesNotFillTheTrace(t *testing.T) {
	for wanted, most := range map[int]int{0: usuallyWanted, 3: 3} {
		now := testNow
		handler, rec := handlerOf(t, TraceContextOptions{CreateSpans: true, Now: func() time.Time { return now },
			Causes: causesFunc(func(context.Context, string, metav1.OwnerReference) (Cause, error) {
				return Cause{Traceparent: causeText, At: testNow, wanted: wanted}, nil
			})})
		try := func() map[string]string {
			return annotationsAfter(t, handler, ownedPod, map[string]string{"Traceparent": testTraceparent})
		}
		for range 100 {
			now = now.Add(100 * time.Millisecond)
			try()
		}
		if n := rec.count("create Pod"); n != most {
			t.Errorf("%d spans of an owner that wants %d, want %d", n, wanted, most)
		}
		if got := try(); got[DefaultAnnotationKey] != causeText {
			t.Errorf("stored %v, want the owner's cause", got)
		}
		now = now.Add(createSpanEvery)
		try() // a Pod in the place of one that is gone, say
		if n := rec.count("create Pod"); n != most+1 {
			t.Errorf("%d spans a minute later, want one more", n)
		}
		// Another owner has spans of its own.
		annotationsAfter(t, handler, strings.Replace(ownedPod, `"u-9"`, `"u-10"`, 1), map[string]string{"Traceparent": testTraceparent})
		if n := rec.count("create Pod"); n != most+2 {
			t.Errorf("%d spans with another owner's, want one more", n)
		}
	}
	spans := newCreateSpans()
	for i := range 3 * rememberedOwners {
		spans.allow(types.UID(fmt.Sprint(i)), 1, testNow)
	}
	if n := spans.owners.Len(); n != rememberedOwners {
		t.Errorf("%d owners are remembered, want %d", n, rememberedOwners)
	}
}

// Whoever writes an annotation must not choose a trace that we make spans in, or even link to.
func TestTrustHoldsForWhatIsStoredOnObjects(t *testing.T) {
	for trust, want := range map[Trust]struct{ inTrace, linked bool }{
		TrustParent: {true, true}, "": {true, true}, TrustLink: {false, true}, TrustNone: {false, false},
	} {
		for name, test := range map[string]struct {
			review string
			causes Causes
		}{
			"on its owner":          {ownedPod, causesFunc(ownersCause)},
			"on what it has made":   {strings.Replace(ownedReview, "ANNOTATIONS", `"annotations":{"tracehook.dev/traceparent":"`+causeText+`"},`, 1), causesFunc(ownersCause)},
			"on an object":          {asked{object: chosen(causeText)}.review(t), causesFunc(ownersCause)},
			"on an object, changed": {asked{object: chosen(othersText), old: chosen(causeText), oldSpec: "2"}.review(t), causesFunc(ownersCause)},
			"copied":                {asked{object: ours(causeText, 0)}.review(t), causesFunc(ownersCause)},
		} {
			t.Run(fmt.Sprintf("%s, trust %q", name, trust), func(t *testing.T) {
				spans := tracetest.NewSpanRecorder()
				handler, err := New(Options{Trust: trust, TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)),
					Mutators: Chain{{Name: "trace-context", Mutator: newTraceContext(t, TraceContextOptions{Causes: test.causes, CreateSpans: true})}}})
				if err != nil {
					t.Fatal(err)
				}
				got := annotationsAfter(t, handler, test.review, nil)
				inTrace, linked := false, false
				for _, span := range spans.Ended() {
					inTrace = inTrace || span.SpanContext().TraceID().String() == causeTraceID
					for _, link := range span.Links() {
						linked = linked || link.SpanContext.TraceID().String() == causeTraceID
					}
				}
				if wanted := want.inTrace && strings.HasPrefix(name, "on its") || want.inTrace && strings.HasPrefix(name, "on what"); inTrace != wanted {
					t.Errorf("spans in the trace of the annotation: %t, want %t", inTrace, wanted)
				}
				if linked != want.linked {
					t.Errorf("links to it: %t, want %t", linked, want.linked)
				}
				if name == "on its owner" && !want.inTrace && got[DefaultAnnotationKey] != causeText {
					t.Errorf("stored %v, want the owner's cause", got)
				}
			})
		}
	}
}

func TestAUIDThatIsNoneIsNotRemembered(t *testing.T) {
	made, now := newCreateSpans(), time.Now()
	if made.allow(types.UID(strings.Repeat("u", 3<<20)), 1, now) || made.owners.Len() != 0 {
		t.Errorf("%d owners are remembered", made.owners.Len())
	}
	if !made.allow("7f8e5a1c-0000-4000-8000-000000000000", 1, now) || made.owners.Len() != 1 {
		t.Error("a UID is not")
	}
}
