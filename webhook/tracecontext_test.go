package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const ownedReview = `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u-1","operation":"CREATE","namespace":"shop",` +
	`"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},` +
	`"object":{"metadata":{ANNOTATIONS"generateName":"web-","ownerReferences":[` +
	`{"apiVersion":"v1","kind":"ConfigMap","name":"other","uid":"u-8"},` +
	`{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"web-1","uid":"u-9","controller":true}]}}}}`

// causesFunc stands in for the API server; Owners has tests of its own.
type causesFunc func(ctx context.Context, namespace string, owner metav1.OwnerReference) (Cause, error)

func (f causesFunc) Cause(ctx context.Context, namespace string, owner metav1.OwnerReference) (Cause, error) {
	return f(ctx, namespace, owner)
}

const (
	causeTraceID = "0af7651916cd43dd8448eb211c80319c"
	causeSpanID  = "b7ad6b7169203331"
	causeText    = "00-" + causeTraceID + "-" + causeSpanID + "-01"
)

// annotationsAfter sends a review with these headers and returns the object's annotations as patched.
func annotationsAfter(t *testing.T, handler http.Handler, review string, headers map[string]string) map[string]string {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/mutate", strings.NewReader(review))
	r.Header.Set("Content-Type", "application/json")
	for name, value := range headers {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	var answer struct {
		Response struct {
			Allowed bool
			Patch   []byte
		}
	}
	var asked struct {
		Request struct{ Object json.RawMessage }
	}
	if err := errors.Join(json.Unmarshal(w.Body.Bytes(), &answer), json.Unmarshal([]byte(review), &asked)); err != nil || !answer.Response.Allowed {
		t.Fatalf("answer %d %s: %v", w.Code, w.Body, err)
	}
	object := []byte(asked.Request.Object)
	if answer.Response.Patch != nil {
		patch, err := jsonpatch.DecodePatch(answer.Response.Patch)
		if err == nil {
			object, err = patch.Apply(object)
		}
		if err != nil {
			t.Fatalf("patch %s: %v", answer.Response.Patch, err)
		}
	}
	var patched struct {
		Metadata struct{ Annotations map[string]string }
	}
	if err := json.Unmarshal(object, &patched); err != nil {
		t.Fatal(err)
	}
	return patched.Metadata.Annotations
}

func handlerOf(t *testing.T, o TraceContextOptions) (http.Handler, recorded) {
	t.Helper()
	return newTestHandler(t, Options{Mutators: Chain{{Name: "trace-context", Mutator: newTraceContext(t, o)}}})
}

func TestTracestateIsStoredBesideTheTraceparentWithinItsLimit(t *testing.T) {
	// 31 members of 30 characters: more than 512 in all, each one legal.
	var members []string
	for i := range 31 {
		members = append(members, string(rune('a'+i%26))+strings.Repeat("k", 9+i/26)+"="+strings.Repeat("v", 18))
	}
	for name, test := range map[string]struct{ header, want string }{
		"none":     {"", ""},
		"short":    {"vendor=1,other=2", "vendor=1,other=2"},
		"too long": {strings.Join(members, ","), strings.Join(members[:17], ",")},
		"broken":   {"=;", ""},
	} {
		t.Run(name, func(t *testing.T) {
			handler, _ := handlerOf(t, TraceContextOptions{Key: "example.org/cause"})
			got := annotationsAfter(t, handler, testReview, map[string]string{"Traceparent": testTraceparent, "Tracestate": test.header})
			if got["example.org/tracestate"] != test.want {
				t.Errorf("tracestate %q (%d), want %q (%d)", got["example.org/tracestate"], len(got["example.org/tracestate"]), test.want, len(test.want))
			}
			if !strings.HasPrefix(got["example.org/cause"], "00-"+testTraceID) || got["a"] != "secret-value" {
				t.Errorf("annotations %v", got)
			}
		})
	}
}

func TestAContextThatIsNotSampledIsStoredOnCreateOnlyWhenAskedFor(t *testing.T) {
	for _, always := range []bool{false, true} {
		handler, _ := handlerOf(t, TraceContextOptions{Always: always})
		created := annotationsAfter(t, handler, testReview, map[string]string{"Traceparent": unsampledTraceparent})
		stamp := created[DefaultAnnotationKey]
		if stored := strings.HasPrefix(stamp, "00-"+testTraceID) && strings.HasSuffix(stamp, "-00"); stored != always || !always && len(created) != 1 {
			t.Errorf("always %t: a created object has %v", always, created)
		}
	}
}

func TestAnOwnedObjectStoresItsOwnersCauseAndTheCallLinksToIt(t *testing.T) {
	var asked metav1.OwnerReference
	handler, rec := handlerOf(t, TraceContextOptions{Causes: causesFunc(func(ctx context.Context, namespace string, owner metav1.OwnerReference) (Cause, error) {
		asked = owner
		if _, bounded := ctx.Deadline(); !bounded || namespace != "shop" {
			t.Errorf("asked without a deadline, or in namespace %q", namespace)
		}
		return Cause{Traceparent: causeText, Tracestate: "a=b"}, nil
	})})
	got := annotationsAfter(t, handler, strings.Replace(ownedReview, "ANNOTATIONS", "", 1), map[string]string{"Traceparent": testTraceparent})
	if got[DefaultAnnotationKey] != causeText || got["tracehook.dev/tracestate"] != "a=b" {
		t.Errorf("stored %v, want the owner's cause", got)
	}
	if want := (metav1.OwnerReference{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-1", UID: "u-9"}); asked.Name != want.Name || asked.UID != want.UID || asked.Kind != want.Kind || asked.APIVersion != want.APIVersion {
		t.Errorf("asked for %v, want %v", asked, want)
	}
	rec.wantLink(t, "POST /mutate", causeTraceID, causeSpanID)
}

func TestAnOwnerWithoutAKnownCauseLeavesThisRequestAsTheCause(t *testing.T) {
	for name, causes := range map[string]Causes{
		"no lineage":  nil,
		"none stored": causesFunc(func(context.Context, string, metav1.OwnerReference) (Cause, error) { return Cause{}, nil }),
		"not found": causesFunc(func(context.Context, string, metav1.OwnerReference) (Cause, error) {
			return Cause{}, errors.New("not found")
		}),
		"a broken one": causesFunc(func(context.Context, string, metav1.OwnerReference) (Cause, error) {
			return Cause{Traceparent: "x"}, nil
		}),
		"an endless one": causesFunc(func(context.Context, string, metav1.OwnerReference) (Cause, error) {
			return Cause{Traceparent: causeText + strings.Repeat("-", 1000)}, nil
		}),
	} {
		t.Run(name, func(t *testing.T) {
			handler, _ := handlerOf(t, TraceContextOptions{Causes: causes})
			got := annotationsAfter(t, handler, strings.Replace(ownedReview, "ANNOTATIONS", "", 1), map[string]string{"Traceparent": testTraceparent})
			if !strings.HasPrefix(got[DefaultAnnotationKey], "00-"+testTraceID) {
				t.Errorf("stored %v, want this request", got)
			}
		})
	}
}

// With CreateSpans the object has a span of its own in the cause's trace: where a
// controller does not write the annotation, there; else beside it.
func TestACreateSpanHangsBelowTheCauseAndLinksToTheCall(t *testing.T) {
	causes := causesFunc(func(context.Context, string, metav1.OwnerReference) (Cause, error) {
		return Cause{Traceparent: causeText}, nil
	})
	for name, test := range map[string]struct {
		annotations string
		keys        []string
	}{
		"absent": {"", []string{DefaultAnnotationKey, "tracehook.dev/create-traceparent"}},
		"copied": {`"annotations":{"tracehook.dev/traceparent":"` + causeText + `"},`, []string{"tracehook.dev/create-traceparent"}},
	} {
		t.Run(name, func(t *testing.T) {
			handler, rec := handlerOf(t, TraceContextOptions{Causes: causes, CreateSpans: true})
			got := annotationsAfter(t, handler, strings.Replace(ownedReview, "ANNOTATIONS", test.annotations, 1), map[string]string{"Traceparent": testTraceparent})
			rec.wantLink(t, "POST /mutate", causeTraceID, causeSpanID)
			create := rec.span(t, "create Pod")
			if create.Parent().TraceID().String() != causeTraceID || create.Parent().SpanID().String() != causeSpanID {
				t.Errorf("the span's parent is %s-%s, want the cause", create.Parent().TraceID(), create.Parent().SpanID())
			}
			rec.wantLink(t, "create Pod", testTraceID, rec.span(t, "POST /mutate").SpanContext().SpanID().String())
			for _, key := range test.keys {
				if want := formatTraceparent(create.SpanContext()); got[key] != want {
					t.Errorf("%s is %q, want the span %s", key, got[key], want)
				}
			}
			if test.annotations != "" && got[DefaultAnnotationKey] != causeText {
				t.Errorf("the controller's annotation was changed to %q", got[DefaultAnnotationKey])
			}

			// Called again in the same request, it finds its span and makes no other.
			now, err := json.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			again := annotationsAfter(t, handler, strings.Replace(ownedReview, "ANNOTATIONS", `"annotations":`+string(now)+`,`, 1), map[string]string{"Traceparent": testTraceparent})
			if !maps.Equal(again, got) {
				t.Errorf("the second call changed %v to %v", got, again)
			}
			if n := rec.count("create Pod"); n != 1 {
				t.Errorf("%d spans `create Pod` after the second call, want 1", n)
			}
		})
	}
}

func TestTrustDecidesWhatTheIncomingContextIs(t *testing.T) {
	for trust, test := range map[Trust]struct{ child, linked bool }{
		TrustParent: {child: true}, "": {child: true}, TrustLink: {linked: true}, TrustNone: {},
	} {
		t.Run(string(trust), func(t *testing.T) {
			handler, rec := newTestHandler(t, Options{Trust: trust})
			post(handler, []byte(testReview))
			server := rec.span(t, "POST /mutate")
			if child := server.SpanContext().TraceID().String() == testTraceID; child != test.child {
				t.Errorf("in the incoming trace: %t, want %t", child, test.child)
			}
			if linked := len(server.Links()) == 1 && server.Links()[0].SpanContext.TraceID().String() == testTraceID; linked != test.linked {
				t.Errorf("linked: %t, want %t", linked, test.linked)
			}
		})
	}
	if _, err := New(Options{Trust: "blindly"}); err == nil {
		t.Error("an unknown trust is no error")
	}
}

func TestATraceContextThatCannotWorkIsRefused(t *testing.T) {
	for _, o := range []TraceContextOptions{
		{Key: "a/b/c"}, {Key: "tracehook.dev/tracestate"}, {Key: "x/create-traceparent"}, {Key: "x/caused-at"}, {Key: "x/previous-traceparent"}, {CreateSpans: true},
	} {
		if _, err := NewTraceContext(o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

func (r recorded) count(name string) (n int) {
	for _, span := range r.spans.Ended() {
		if span.Name() == name {
			n++
		}
	}
	return n
}

func (r recorded) span(t *testing.T, name string) sdktrace.ReadOnlySpan {
	t.Helper()
	var names []string
	for _, span := range r.spans.Ended() {
		if span.Name() == name {
			return span
		}
		names = append(names, span.Name())
	}
	t.Fatalf("no span %q among %q", name, names)
	return nil
}

func (r recorded) wantLink(t *testing.T, name, traceID, spanID string) {
	t.Helper()
	for _, link := range r.span(t, name).Links() {
		if link.SpanContext.TraceID().String() == traceID && link.SpanContext.SpanID().String() == spanID {
			return
		}
	}
	t.Errorf("span %q has links %v, want one to %s-%s", name, r.span(t, name).Links(), traceID, spanID)
}
