package traced_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/tracehook/tracehook/webhook/cause"
	"github.com/tracehook/tracehook/webhook/cause/traced"
)

const (
	causeTraceID = "0af7651916cd43dd8448eb211c80319c"
	causeSpanID  = "b7ad6b7169203331"
)

var request = reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "shop", Name: "web"}}

func source() *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u-1",
		Annotations: map[string]string{cause.DefaultKey: "00-" + causeTraceID + "-" + causeSpanID + "-01"}}}
}

// reader answers every Get with obj or err.
type reader struct {
	client.Reader
	obj *corev1.ConfigMap
	err error
}

func (r reader) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	if r.err != nil {
		return r.err
	}
	if key != client.ObjectKeyFromObject(r.obj) {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, key.Name)
	}
	r.obj.DeepCopyInto(into.(*corev1.ConfigMap))
	return nil
}

func record() (*tracetest.SpanRecorder, trace.TracerProvider) {
	recorder := tracetest.NewSpanRecorder()
	return recorder, sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
}

// reconciled calls the reconciler once, through the wrapper, and returns the span.
func reconciled(t *testing.T, r reader, next reconcile.Func, o cause.Options) (sdktrace.ReadOnlySpan, reconcile.Result, error) {
	t.Helper()
	recorder, provider := record()
	wrapped := traced.Reconciler(next, traced.Read(r, &corev1.ConfigMap{}), traced.Options{Name: "copier", Cause: o, TracerProvider: provider})
	result, err := wrapped.Reconcile(t.Context(), request)
	spans := recorder.Ended()
	if len(spans) != 1 || spans[0].Name() != "reconcile copier" || spans[0].SpanKind() != trace.SpanKindInternal {
		t.Fatalf("got spans %v, want one internal span `reconcile copier`", spans)
	}
	return spans[0], result, err
}

func nothing(context.Context, reconcile.Request) (reconcile.Result, error) {
	return reconcile.Result{}, nil
}

func wantAttributes(t *testing.T, span sdktrace.ReadOnlySpan, want map[attribute.Key]any) {
	t.Helper()
	got := map[attribute.Key]any{}
	for _, a := range span.Attributes() {
		got[a.Key] = a.Value.AsInterface()
	}
	if !maps.Equal(got, want) {
		t.Errorf("attributes\ngot  %v\nwant %v", got, want)
	}
}

func linksToCause(span sdktrace.ReadOnlySpan) bool {
	return len(span.Links()) == 1 && span.Links()[0].SpanContext.TraceID().String() == causeTraceID && span.Links()[0].SpanContext.SpanID().String() == causeSpanID
}

func TestEveryReconcileIsASpanThatLinksToTheCauseOfItsObject(t *testing.T) {
	var seen trace.SpanContext
	span, result, err := reconciled(t, reader{obj: source()}, func(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
		seen = trace.SpanContextFromContext(ctx)
		if r != request {
			t.Errorf("the reconciler got request %v", r)
		}
		return reconcile.Result{RequeueAfter: 90 * time.Second}, nil
	}, cause.Options{})
	if err != nil || result.RequeueAfter != 90*time.Second {
		t.Errorf("got %v, %v: the result is not the reconciler's", result, err)
	}
	if !linksToCause(span) || span.Parent().IsValid() {
		t.Errorf("links %v, parent %v", span.Links(), span.Parent())
	}
	if !seen.Equal(span.SpanContext()) {
		t.Error("the reconciler does not run in the span")
	}
	wantAttributes(t, span, map[attribute.Key]any{
		"tracehook.cause": "link", "k8s.namespace.name": "shop", "tracehook.object.name": "web", "tracehook.object.uid": "u-1",
		"tracehook.reconcile.requeue_after": 90.0,
	})
	if span.Status().Code != codes.Unset {
		t.Errorf("status %v", span.Status())
	}
}

func TestByOptionTheReconcileIsAChildOfTheCause(t *testing.T) {
	span, _, _ := reconciled(t, reader{obj: source()}, nothing, cause.Options{Parent: true})
	if p := span.Parent(); p.TraceID().String() != causeTraceID || p.SpanID().String() != causeSpanID || len(span.Links()) != 0 {
		t.Errorf("parent %v, links %v", p, span.Links())
	}
}

func TestAnErrorIsTheSpansStatusAndPassesOn(t *testing.T) {
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: "configmaps"}, "web", errors.New("out of date"))
	for name, test := range map[string]struct {
		err       error
		errorType string
	}{
		"an API server's":               {conflict, "Conflict"},
		"any other":                     {errors.New("out of luck"), "_OTHER"},
		"a terminal":                    {reconcile.TerminalError(errors.New("out of luck for good")), "_OTHER"},
		"one without end":               {errors.New(strings.Repeat("ö", 4000)), "_OTHER"},
		"a terminal of an API server's": {reconcile.TerminalError(conflict), "Conflict"},
	} {
		t.Run(name, func(t *testing.T) {
			span, _, err := reconciled(t, reader{obj: source()}, func(context.Context, reconcile.Request) (reconcile.Result, error) {
				return reconcile.Result{RequeueAfter: time.Second}, test.err // which is ignored
			}, cause.Options{})
			if !errors.Is(err, test.err) {
				t.Errorf("got error %v, want the reconciler's", err)
			}
			wantAttributes(t, span, map[attribute.Key]any{
				"tracehook.cause": "link", "k8s.namespace.name": "shop", "tracehook.object.name": "web", "tracehook.object.uid": "u-1",
				"error.type": test.errorType,
			})
			says := span.Status().Description
			if span.Status().Code != codes.Error || len(says) > 520 || !strings.HasPrefix(test.err.Error(), strings.TrimSuffix(says, "…")) || says == "" {
				t.Errorf("status %v, want the error", span.Status())
			}
		})
	}
}

func TestAPanicEndsTheSpanAndPassesOn(t *testing.T) {
	recorder, provider := record()
	wrapped := traced.Reconciler(reconcile.Func(func(context.Context, reconcile.Request) (reconcile.Result, error) { panic("out of luck") }),
		traced.Read(reader{obj: source()}, &corev1.ConfigMap{}), traced.Options{TracerProvider: provider})
	func() {
		defer func() {
			if value := recover(); value != "out of luck" {
				t.Errorf("recovered %v, want the reconciler's panic", value)
			}
		}()
		_, _ = wrapped.Reconcile(t.Context(), request)
	}()
	spans := recorder.Ended()
	if len(spans) != 1 || spans[0].Name() != "reconcile" || spans[0].Status().Code != codes.Error {
		t.Fatalf("got spans %v, want one `reconcile` with an error", spans)
	}
}

func TestAnObjectThatIsGoneOrCannotBeReadIsReconciledAllTheSame(t *testing.T) {
	for name, test := range map[string]struct {
		reader reader
		cause  string
	}{
		"gone":           {reader{obj: &corev1.ConfigMap{}}, "none"},
		"cannot be read": {reader{err: errors.New("the cache has not started")}, "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			called := false
			span, _, err := reconciled(t, test.reader, func(context.Context, reconcile.Request) (reconcile.Result, error) {
				called = true
				return reconcile.Result{}, nil
			}, cause.Options{})
			if !called || err != nil {
				t.Errorf("called %v, error %v", called, err)
			}
			wantAttributes(t, span, map[attribute.Key]any{"tracehook.cause": test.cause, "k8s.namespace.name": "shop", "tracehook.object.name": "web"})
		})
	}
}

// What authors write to find the object, and what Go makes of it when the object is gone.
func TestAWayToTheObjectThatFindsNoneOrPanicsIsNothingToTheReconciler(t *testing.T) {
	empty := corelisters.NewConfigMapLister(cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}))
	var gone *corev1.ConfigMap
	for name, test := range map[string]struct {
		object traced.Object[reconcile.Request]
		cause  string
		logged bool
	}{
		"a lister's answer as it is": {func(_ context.Context, r reconcile.Request) (metav1.Object, error) {
			return empty.ConfigMaps(r.Namespace).Get(r.Name)
		}, "none", false},
		"a lister's answer without its error": {func(_ context.Context, r reconcile.Request) (metav1.Object, error) {
			obj, err := empty.ConfigMaps(r.Namespace).Get(r.Name)
			return obj, client.IgnoreNotFound(err)
		}, "none", false},
		"a copy of it": {func(_ context.Context, r reconcile.Request) (metav1.Object, error) {
			obj, _ := empty.ConfigMaps(r.Namespace).Get(r.Name)
			return obj.DeepCopy(), nil
		}, "none", false},
		"a nil pointer and another error": {func(context.Context, reconcile.Request) (metav1.Object, error) {
			return gone, errors.New("the cache has not started")
		}, "unknown", false},
		"a lister of any kind": {func(context.Context, reconcile.Request) (metav1.Object, error) {
			var found runtime.Object
			return found.(metav1.Object), nil
		}, "unknown", true},
		"a field of what is not there": {func(context.Context, reconcile.Request) (metav1.Object, error) {
			return &metav1.PartialObjectMetadata{ObjectMeta: gone.ObjectMeta}, nil
		}, "unknown", true},
		"no way at all":           {nil, "unknown", true},
		"a reader that is none":   {traced.Read(nil, &corev1.ConfigMap{}), "unknown", true},
		"a prototype that is nil": {traced.Read(reader{obj: source()}, nil), "unknown", true},
	} {
		t.Run(name, func(t *testing.T) {
			recorder, provider := record()
			var logged []string
			logger := funcr.New(func(_, args string) { logged = append(logged, args) }, funcr.Options{})
			called := false
			wrapped := traced.Reconciler(reconcile.Func(func(context.Context, reconcile.Request) (reconcile.Result, error) {
				called = true
				return reconcile.Result{}, nil
			}), test.object, traced.Options{TracerProvider: provider})
			if _, err := wrapped.Reconcile(log.IntoContext(t.Context(), logger), request); err != nil || !called {
				t.Errorf("called %v, error %v", called, err)
			}
			wantAttributes(t, recorder.Ended()[0], map[attribute.Key]any{"tracehook.cause": test.cause, "k8s.namespace.name": "shop", "tracehook.object.name": "web"})
			if test.logged != (len(logged) == 1 && strings.Contains(logged[0], "panic")) {
				t.Errorf("logged %q", logged)
			}
		})
	}
}

func TestAReconcilerThatGetsNoObjectIsCalledAllTheSame(t *testing.T) {
	recorder, provider := record()
	called := false
	wrapped := traced.ObjectReconciler(objectReconciler(func(_ context.Context, obj *corev1.ConfigMap) (reconcile.Result, error) {
		called = obj == nil
		return reconcile.Result{}, nil
	}), traced.Options{TracerProvider: provider})
	if _, err := wrapped.Reconcile(t.Context(), nil); err != nil || !called {
		t.Errorf("called %v, error %v", called, err)
	}
	wantAttributes(t, recorder.Ended()[0], map[attribute.Key]any{"tracehook.cause": "none"})
}

// The keys are an author's slice, which many options may share.
func TestOptionsThatChangeLaterChangeNothing(t *testing.T) {
	keys := []string{cause.DefaultKey}
	recorder, provider := record()
	wrapped := traced.Reconciler(reconcile.Func(nothing), traced.Read(reader{obj: source()}, &corev1.ConfigMap{}),
		traced.Options{TracerProvider: provider, Cause: cause.Options{Keys: keys}})
	var group sync.WaitGroup
	group.Go(func() { _, _ = wrapped.Reconcile(t.Context(), request) })
	keys[0] = "shop.example/cause"
	group.Wait()
	if span := recorder.Ended()[0]; !linksToCause(span) {
		t.Errorf("links %v", span.Links())
	}
}

func TestTheLoggerKnowsTheTrace(t *testing.T) {
	var lines []string
	logger := funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{})
	recorder, provider := record()
	wrapped := traced.Reconciler(reconcile.Func(func(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
		log.FromContext(ctx).Info("at work")
		return reconcile.Result{}, nil
	}), traced.Read(reader{obj: source()}, &corev1.ConfigMap{}), traced.Options{TracerProvider: provider})
	if _, err := wrapped.Reconcile(log.IntoContext(t.Context(), logger), request); err != nil {
		t.Fatal(err)
	}
	span := recorder.Ended()[0].SpanContext()
	if len(lines) != 1 || !strings.Contains(lines[0], span.TraceID().String()) || !strings.Contains(lines[0], span.SpanID().String()) {
		t.Errorf("logged %q, want in it trace %s and span %s", lines, span.TraceID(), span.SpanID())
	}
}

// A controller may have requests of its own type, and a way of its own to the object.
func TestAReconcilerOfOtherRequestsIsTracedToo(t *testing.T) {
	type shard struct{ number int }
	recorder, provider := record()
	wrapped := traced.Reconciler(
		reconcile.TypedFunc[shard](func(context.Context, shard) (reconcile.Result, error) { return reconcile.Result{}, nil }),
		func(_ context.Context, s shard) (metav1.Object, error) {
			if s.number != 7 {
				t.Errorf("asked for the object of %v", s)
			}
			return source(), nil
		},
		traced.Options{TracerProvider: provider})
	if _, err := wrapped.Reconcile(t.Context(), shard{7}); err != nil {
		t.Fatal(err)
	}
	if span := recorder.Ended()[0]; !linksToCause(span) {
		t.Errorf("links %v", span.Links())
	}
}

type objectReconciler func(context.Context, *corev1.ConfigMap) (reconcile.Result, error)

func (f objectReconciler) Reconcile(ctx context.Context, obj *corev1.ConfigMap) (reconcile.Result, error) {
	return f(ctx, obj)
}

func TestAReconcilerThatGetsItsObjectIsTracedWithoutReadingIt(t *testing.T) {
	recorder, provider := record()
	failure := errors.New("out of luck")
	wrapped := traced.ObjectReconciler(objectReconciler(func(_ context.Context, obj *corev1.ConfigMap) (reconcile.Result, error) {
		if obj.Name != "web" {
			t.Errorf("got object %v", obj)
		}
		return reconcile.Result{}, failure
	}), traced.Options{Name: "copier", TracerProvider: provider})
	if _, err := wrapped.Reconcile(t.Context(), source()); !errors.Is(err, failure) {
		t.Errorf("got error %v", err)
	}
	span := recorder.Ended()[0]
	if span.Name() != "reconcile copier" || !linksToCause(span) || span.Status().Code != codes.Error {
		t.Errorf("span %q, links %v, status %v", span.Name(), span.Links(), span.Status())
	}
}

func TestRequestsOfAReconcilerAreClientSpansBelowItAndOthersAreLeftAlone(t *testing.T) {
	var headers []http.Header
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { headers = append(headers, r.Header) }))
	defer server.Close()
	recorder, provider := record()
	caller := http.Client{Transport: traced.Transport(provider)(http.DefaultTransport)}
	get := func(ctx context.Context) {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := caller.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}

	get(t.Context()) // a watch of the cache's
	if len(recorder.Ended()) != 0 || headers[0].Get("Traceparent") != "" {
		t.Fatalf("a request out of any span made spans %v, traceparent %q", recorder.Ended(), headers[0].Get("Traceparent"))
	}

	wrapped := traced.Reconciler(reconcile.Func(func(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
		get(ctx)
		return reconcile.Result{}, nil
	}), traced.Read(reader{obj: source()}, &corev1.ConfigMap{}), traced.Options{TracerProvider: provider})
	if _, err := wrapped.Reconcile(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	spans := recorder.Ended()
	if len(spans) != 2 {
		t.Fatalf("got spans %v, want the request's and the reconciler's", spans)
	}
	call, reconcile := spans[0], spans[1]
	if call.Name() != "HTTP GET" || call.SpanKind() != trace.SpanKindClient || call.Parent().SpanID() != reconcile.SpanContext().SpanID() {
		t.Errorf("got %s span %q, want client span `HTTP GET` below `reconcile`", call.SpanKind(), call.Name())
	}
	if want := "00-" + call.SpanContext().TraceID().String() + "-" + call.SpanContext().SpanID().String() + "-01"; headers[1].Get("Traceparent") != want {
		t.Errorf("traceparent %q, want %q", headers[1].Get("Traceparent"), want)
	}
}
