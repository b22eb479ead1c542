package webhook_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/log"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/controller-runtime/pkg/webhook/conversion"

	"github.com/tracehook/tracehook/webhook"
)

const (
	apiServerTrace = "0af7651916cd43dd8448eb211c80319c"
	apiServerSpan  = "b7ad6b7169203331"
	reviewUID      = "705ab4f5-6393-11e8-b7cc-42010a800002"
	configMap      = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"web","namespace":"shop"},"data":{"a":"secret"}}`
)

// review is what the API server asks, here about a ConfigMap of alice's.
func review(version string) string {
	return `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/` + version + `","request":{"uid":"` + reviewUID + `",
"kind":{"group":"","version":"v1","kind":"ConfigMap"},"resource":{"group":"","version":"v1","resource":"configmaps"},
"name":"web","namespace":"shop","operation":"CREATE","userInfo":{"username":"alice"},"dryRun":true,"object":` + configMap + `}}`
}

// instrumented records all that the instrumentation tells.
type instrumented struct {
	spans   *tracetest.SpanRecorder
	metrics *sdkmetric.ManualReader
	options webhook.InstrumentOptions
}

func newInstrumented() instrumented {
	in := instrumented{spans: tracetest.NewSpanRecorder(), metrics: sdkmetric.NewManualReader()}
	in.options.TracerProvider = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(in.spans))
	in.options.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(in.metrics))
	return in
}

// call posts body to h, which is registered at path, as the API server does.
func call(h http.Handler, path, body string) *httptest.ResponseRecorder {
	mux := http.NewServeMux()
	mux.Handle(path, h)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, asked(path, strings.NewReader(body)))
	return w
}

func asked(path string, body io.Reader) *http.Request {
	if s, ok := body.(*strings.Reader); ok && s.Len() == 0 {
		body = http.NoBody // as a server has it
	}
	r := httptest.NewRequest(http.MethodPost, path+"?timeout=5s", body)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Traceparent", "00-"+apiServerTrace+"-"+apiServerSpan+"-01")
	r.Header.Set("Baggage", "user=alice")
	return r
}

func answerOf(t *testing.T, w *httptest.ResponseRecorder) *admissionv1.AdmissionResponse {
	t.Helper()
	var got admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Response == nil {
		t.Fatalf("the answer is no review: %v: %s", err, w.Body)
	}
	return got.Response
}

// span returns the one SERVER span, after a look at what is the same for all.
func (in instrumented) span(t *testing.T, name string) sdktrace.ReadOnlySpan {
	t.Helper()
	spans := in.spans.Ended()
	if len(spans) != 1 {
		t.Fatalf("got spans %v, want one", spans)
	}
	span := spans[0]
	if span.Name() != name || span.SpanKind() != trace.SpanKindServer {
		t.Errorf("got %s span %q, want server span %q", span.SpanKind(), span.Name(), name)
	}
	if p := span.Parent(); p.TraceID().String() != apiServerTrace || p.SpanID().String() != apiServerSpan || !p.IsRemote() {
		t.Errorf("the parent is %s-%s, want the API server's span", p.TraceID(), p.SpanID())
	}
	for _, a := range span.Attributes() {
		if text := a.Value.String(); strings.Contains(text, "secret") || strings.Contains(text, "alice") {
			t.Errorf("attribute %s tells of the user or the object: %s", a.Key, text)
		}
	}
	return span
}

// wantAttributes compares the attributes that are about admission, and the error's.
func wantAttributes(t *testing.T, span sdktrace.ReadOnlySpan, want map[attribute.Key]any) {
	t.Helper()
	got := map[attribute.Key]any{}
	for _, a := range span.Attributes() {
		switch key := string(a.Key); {
		case strings.HasPrefix(key, "tracehook.budget."):
			if v := a.Value.AsFloat64(); key == "tracehook.budget.total" && v != 5 || v > 5 || v < 1 {
				t.Errorf("%s is %v, of a timeout of 5s", key, v)
			}
		case strings.HasPrefix(key, "admission."), strings.HasPrefix(key, "k8s."), strings.HasPrefix(key, "tracehook."), key == "error.type":
			got[a.Key] = a.Value.AsInterface()
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("attributes\ngot  %v\nwant %v", got, want)
	}
}

// aboutTheRequest is what every span of an understood request has, with more.
func aboutTheRequest(more map[attribute.Key]any) map[attribute.Key]any {
	all := map[attribute.Key]any{
		"admission.request.uid": reviewUID, "admission.request.operation": "CREATE", "admission.request.kind": "v1/ConfigMap",
		"admission.request.resource": "v1/configmaps", "admission.request.subresource": "", "admission.request.name": "web",
		"admission.request.dry_run": true, "k8s.namespace.name": "shop",
	}
	maps.Copy(all, more)
	return all
}

// wantMeasured checks that the histograms hold one call with these attributes, and
// patchBytes where there was a patch.
func (in instrumented) wantMeasured(t *testing.T, want map[attribute.Key]string, patchBytes int64) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := in.metrics.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, scope := range all.ScopeMetrics {
		if scope.Scope.Name != "github.com/tracehook/tracehook/webhook" {
			t.Errorf("metrics of scope %s", scope.Scope.Name)
		}
		for _, m := range scope.Metrics {
			seen[m.Name] = true
			switch data := m.Data.(type) {
			case metricdata.Histogram[float64]:
				if m.Name != "tracehook.admission.duration" || m.Unit != "s" || len(data.DataPoints) != 1 || data.DataPoints[0].Count != 1 {
					t.Fatalf("got %s (%s) %v, want one call", m.Name, m.Unit, data.DataPoints)
				}
				got := map[attribute.Key]string{}
				for _, a := range data.DataPoints[0].Attributes.ToSlice() {
					got[a.Key] = a.Value.AsString()
				}
				if !maps.Equal(got, want) {
					t.Errorf("attributes of the histogram\ngot  %v\nwant %v", got, want)
				}
			case metricdata.Histogram[int64]:
				if m.Name != "tracehook.admission.patch.size" || len(data.DataPoints) != 1 || data.DataPoints[0].Sum != patchBytes {
					t.Errorf("got %s %v, want one patch of %d bytes", m.Name, data.DataPoints, patchBytes)
				}
			}
		}
	}
	if !seen["tracehook.admission.duration"] || seen["tracehook.admission.patch.size"] != (patchBytes > 0) {
		t.Errorf("metrics %v, with a patch of %d bytes", slices.Sorted(maps.Keys(seen)), patchBytes)
	}
}

func configMaps() *runtime.Scheme {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		panic(err)
	}
	return scheme
}

// validator answers every question with err.
type validator struct{ err error }

func (v validator) ValidateCreate(context.Context, *corev1.ConfigMap) (admission.Warnings, error) {
	return admission.Warnings{"be warned"}, v.err
}

func (v validator) ValidateUpdate(context.Context, *corev1.ConfigMap, *corev1.ConfigMap) (admission.Warnings, error) {
	return nil, v.err
}

func (v validator) ValidateDelete(context.Context, *corev1.ConfigMap) (admission.Warnings, error) {
	return nil, v.err
}

// defaulter is in the older, untyped style.
type defaulter struct{ labels map[string]string }

func (d defaulter) Default(_ context.Context, obj runtime.Object) error {
	obj.(*corev1.ConfigMap).Labels = d.labels
	return nil
}

var invalid = apierrors.NewInvalid(schema.GroupKind{Kind: "ConfigMap"}, "web", nil)

// how is what comes of a call.
type how struct {
	outcome, errorType string
	status             codes.Code
	says               string                // the span's status, or part of it
	response           map[attribute.Key]any // attributes of the answer
	patch              string
}

// handlers are webhooks as their authors write them, and how calls of them end.
var handlers = map[string]struct {
	handler admission.Handler
	how
}{
	"allowed": {
		admission.WithValidator(configMaps(), validator{}),
		how{outcome: "unchanged", response: map[attribute.Key]any{"admission.response.allowed": true, "admission.response.code": int64(200)}},
	},
	"denied by the old kind of validator": {
		admission.WithCustomValidator(configMaps(), &corev1.ConfigMap{}, untyped{validator{errors.New("no")}}), //nolint:staticcheck // still in use
		how{outcome: "denied", response: map[attribute.Key]any{"admission.response.allowed": false, "admission.response.code": int64(403), "admission.response.reason": "Forbidden"}},
	},
	"denied with a status of its own": {
		admission.WithValidator(configMaps(), validator{invalid}),
		how{outcome: "denied", response: map[attribute.Key]any{"admission.response.allowed": false, "admission.response.code": int64(422), "admission.response.reason": "Invalid"}},
	},
	"denied without any status": {
		admission.HandlerFunc(func(context.Context, admission.Request) admission.Response { return admission.Response{} }),
		how{outcome: "denied", response: map[attribute.Key]any{"admission.response.allowed": false, "admission.response.code": int64(200)}},
	},
	"a request that does not make sense": {
		admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
			return admission.Errored(400, errors.New("secret of alice"))
		}),
		how{outcome: "denied", response: map[attribute.Key]any{"admission.response.allowed": false, "admission.response.code": int64(400)}},
	},
	"defaulted": {
		admission.WithCustomDefaulter(configMaps(), &corev1.ConfigMap{}, defaulter{map[string]string{"team": "shop"}}),
		how{outcome: "patched", response: map[attribute.Key]any{"admission.response.allowed": true, "admission.response.code": int64(200), "admission.response.patch.operations": int64(1)},
			patch: `[{"op":"add","path":"/metadata/labels","value":{"team":"shop"}}]`},
	},
	"nothing to default": {
		admission.WithCustomDefaulter(configMaps(), &corev1.ConfigMap{}, defaulter{}),
		how{outcome: "unchanged", response: map[attribute.Key]any{"admission.response.allowed": true, "admission.response.code": int64(200)}},
	},
	"a patch of its own making": {
		admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
			kind := admissionv1.PatchTypeJSONPatch
			return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Allowed: true, PatchType: &kind,
				Patch: []byte(`[{"op":"remove","path":"/data"},{"op":"remove","path":"/metadata/name"}]`)}}
		}),
		how{outcome: "patched", response: map[attribute.Key]any{"admission.response.allowed": true, "admission.response.code": int64(200), "admission.response.patch.operations": int64(2)},
			patch: `[{"op":"remove","path":"/data"},{"op":"remove","path":"/metadata/name"}]`},
	},
	"several handlers, nothing to patch": {
		admission.MultiMutatingHandler(admission.HandlerFunc(func(context.Context, admission.Request) admission.Response { return admission.Allowed("") })),
		how{outcome: "unchanged", response: map[attribute.Key]any{"admission.response.allowed": true, "admission.response.code": int64(200)}, patch: `[]`},
	},
	"an error": {
		admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
			return admission.Errored(503, errors.New("the database is away"))
		}),
		how{outcome: "failed", errorType: "503", status: codes.Error, says: "the database is away",
			response: map[attribute.Key]any{"admission.response.allowed": false, "admission.response.code": int64(503)}},
	},
	"a patch that cannot be written": {
		admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
			return admission.Patched("", jsonpatch.JsonPatchOperation{Operation: "add", Path: "/a", Value: func() {}})
		}),
		how{outcome: "failed", errorType: "500", status: codes.Error, says: "unable to encode response",
			response: map[attribute.Key]any{"admission.response.allowed": false, "admission.response.code": int64(500)}},
	},
	"an error of no known code": {
		admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
			return admission.Errored(1000, errors.New(strings.Repeat("ö", 1000)))
		}),
		how{outcome: "failed", errorType: "_OTHER", status: codes.Error, says: strings.Repeat("ö", 256) + "…",
			response: map[attribute.Key]any{"admission.response.allowed": false, "admission.response.code": int64(1000)}},
	},
}

// untyped is validator in the older, untyped style.
type untyped struct{ validator }

func (u untyped) ValidateCreate(ctx context.Context, obj runtime.Object) (admission.Warnings, error) {
	return u.validator.ValidateCreate(ctx, obj.(*corev1.ConfigMap))
}
func (u untyped) ValidateUpdate(context.Context, runtime.Object, runtime.Object) (admission.Warnings, error) {
	return nil, nil
}
func (u untyped) ValidateDelete(context.Context, runtime.Object) (admission.Warnings, error) {
	return nil, nil
}

// asHTTP is what an author without Instrument registers.
func asHTTP(h admission.Handler) http.Handler {
	if wh, ok := h.(*admission.Webhook); ok {
		return wh
	}
	return &admission.Webhook{Handler: h}
}

// Each webhook is called through both wrappers, and must answer what it answers bare.
func TestEveryWayToAnswerHasItsOutcome(t *testing.T) {
	for name, test := range handlers {
		bare := answerOf(t, call(asHTTP(test.handler), "/validate", review("v1")))
		for wrapper, wrap := range map[string]func(admission.Handler, webhook.InstrumentOptions) http.Handler{
			"Instrument": webhook.Instrument,
			"InstrumentHTTP": func(h admission.Handler, o webhook.InstrumentOptions) http.Handler {
				return webhook.InstrumentHTTP(asHTTP(h), o)
			},
		} {
			t.Run(name+" "+wrapper, func(t *testing.T) {
				in := newInstrumented()
				got := answerOf(t, call(wrap(test.handler, in.options), "/validate", review("v1")))

				wantAudit := map[string]string(nil)
				span := in.span(t, "POST /validate")
				if wrapper == "Instrument" && test.says != "unable to encode response" { // that is not the handler's answer
					wantAudit = map[string]string{"trace-id": apiServerTrace, "span-id": span.SpanContext().SpanID().String()}
				}
				if !maps.Equal(got.AuditAnnotations, wantAudit) {
					t.Errorf("audit annotations %v, want %v", got.AuditAnnotations, wantAudit)
				}
				got.AuditAnnotations = nil
				if !reflect.DeepEqual(got, bare) || string(got.Patch) != test.patch {
					t.Errorf("the answer is not the handler's\ngot  %+v\nwant %+v\npatch %s", got, bare, got.Patch)
				}

				want := aboutTheRequest(test.response)
				want["tracehook.outcome"], want["admission.webhook.type"] = test.outcome, "validating"
				if _, ok := want["admission.response.patch.operations"]; !ok {
					want["admission.response.patch.operations"] = int64(0)
				}
				measured := map[attribute.Key]string{"admission.request.operation": "CREATE", "admission.request.resource": "v1/configmaps", "tracehook.outcome": test.outcome, "http.route": "/validate"}
				if test.errorType != "" {
					want["error.type"], measured["error.type"] = test.errorType, test.errorType
				}
				wantAttributes(t, span, want)
				if s := span.Status(); s.Code != test.status || s.Description != test.says {
					t.Errorf("status %v, want %v %q", s, test.status, test.says)
				}
				patchBytes := int64(len(test.patch))
				if test.outcome != "patched" {
					patchBytes = 0
				}
				in.wantMeasured(t, measured, patchBytes)
			})
		}
	}
}

func TestAPanicIsAnErrorWhetherRecoveredOrNot(t *testing.T) {
	broken := admission.HandlerFunc(func(context.Context, admission.Request) admission.Response { panic("secret") })
	no := false
	for name, test := range map[string]struct {
		handler   func(webhook.InstrumentOptions) http.Handler
		recovered bool
	}{
		"recovered by controller-runtime": {func(o webhook.InstrumentOptions) http.Handler { return webhook.Instrument(broken, o) }, true},
		"not recovered": {func(o webhook.InstrumentOptions) http.Handler {
			return webhook.Instrument(&admission.Webhook{Handler: broken, RecoverPanic: &no}, o)
		}, false},
		"in a handler of another make": {func(o webhook.InstrumentOptions) http.Handler {
			return webhook.InstrumentHTTP(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				panic("secret")
			}), o)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInstrumented()
			func() {
				defer func() {
					if value := recover(); (value == nil) != test.recovered {
						t.Errorf("recovered %v", value)
					}
				}()
				resp := answerOf(t, call(test.handler(in.options), "/validate", review("v1")))
				if resp.Allowed || resp.UID != reviewUID || resp.Result.Code != 500 {
					t.Errorf("got %v, want the panic as an answer", resp)
				}
			}()
			span := in.span(t, "POST /validate")
			if s := span.Status(); s.Code != codes.Error || s.Description != "the handler panicked" {
				t.Errorf("status %v", s)
			}
			measured := map[attribute.Key]string{"admission.request.operation": "CREATE", "admission.request.resource": "v1/configmaps", "tracehook.outcome": "failed", "error.type": "panic", "http.route": "/validate"}
			attributes := aboutTheRequest(map[attribute.Key]any{"tracehook.outcome": "failed", "error.type": "panic", "admission.webhook.type": "validating"})
			if strings.HasPrefix(name, "in a handler") { // its request is looked at only once it has returned
				measured["admission.request.operation"], measured["admission.request.resource"] = "unknown", "other"
				attributes = map[attribute.Key]any{"tracehook.outcome": "failed", "error.type": "panic", "admission.webhook.type": "validating"}
			}
			wantAttributes(t, span, attributes)
			in.wantMeasured(t, measured, 0)
		})
	}
}

// raw answers with this status and body, having read the request or not.
func raw(status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		w.WriteHeader(http.StatusTeapot) // superfluous, as happens
	})
}

func answer(uid, more string) string {
	return `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"` + uid + `"` + more + `}}`
}

func TestWhatIsNoCallOrNoAnswerIsNotTakenForOne(t *testing.T) {
	allow := admission.HandlerFunc(func(context.Context, admission.Request) admission.Response { return admission.Allowed("") })
	instrument := func(o webhook.InstrumentOptions) http.Handler { return webhook.Instrument(allow, o) }
	instrumentHTTP := func(o webhook.InstrumentOptions) http.Handler { return webhook.InstrumentHTTP(asHTTP(allow), o) }
	rawly := func(status int, body string) func(webhook.InstrumentOptions) http.Handler {
		return func(o webhook.InstrumentOptions) http.Handler { return webhook.InstrumentHTTP(raw(status, body), o) }
	}
	const no = "" // no request was understood
	for name, test := range map[string]struct {
		handler            func(webhook.InstrumentOptions) http.Handler
		body               string
		operation          string
		outcome, errorType string
		status             codes.Code
	}{
		"garbage, Instrument":               {instrument, "{", no, "refused", "400", codes.Unset},
		"garbage, InstrumentHTTP":           {instrumentHTTP, "{", no, "refused", "400", codes.Unset},
		"nothing, Instrument":               {instrument, "", no, "refused", "400", codes.Unset},
		"nothing, InstrumentHTTP":           {instrumentHTTP, "", no, "refused", "400", codes.Unset},
		"too much, Instrument":              {instrument, strings.Repeat(" ", 8<<20), no, "refused", "413", codes.Unset},
		"too much, InstrumentHTTP":          {instrumentHTTP, strings.Repeat(" ", 8<<20), no, "refused", "413", codes.Unset},
		"garbage, by HTTP":                  {rawly(400, "no"), "{", no, "refused", "400", codes.Unset},
		"another method, by HTTP":           {rawly(405, "no"), "{", no, "refused", "405", codes.Unset},
		"a redirection is no answer either": {rawly(302, ""), "{", no, "refused", "_OTHER", codes.Unset},
		"an old review":                     {rawly(200, answer(reviewUID, `,"allowed":true`)), review("v1beta1"), "CREATE", "unchanged", "", codes.Unset},
		"a review that only they can read":  {rawly(200, answer("u", `,"allowed":true`)), "<review/>", no, "unchanged", "", codes.Unset},
		"a review, refused by HTTP":         {rawly(400, "no"), review("v1"), "CREATE", "failed", "400", codes.Error},
		"a review, an error by HTTP":        {rawly(500, "no"), review("v1"), "CREATE", "failed", "500", codes.Error},
		"garbage, an error by HTTP":         {rawly(503, "no"), "{", no, "failed", "503", codes.Error},
		"a page for an answer":              {rawly(200, "<html>"), review("v1"), "CREATE", "failed", "invalid_answer", codes.Error},
		"a review without response":         {rawly(200, `{"kind":"AdmissionReview"}`), review("v1"), "CREATE", "failed", "invalid_answer", codes.Error},
		"no answer at all":                  {rawly(200, ""), review("v1"), "CREATE", "failed", "invalid_answer", codes.Error},
		"the answer to another request":     {rawly(200, answer("u", `,"allowed":true`)), review("v1"), "CREATE", "failed", "wrong_uid", codes.Error},
		"an old answer has no UID":          {rawly(200, answer("", `,"allowed":true`)), review("v1beta1"), "CREATE", "unchanged", "", codes.Unset},
		"a status that client-go takes":     {rawly(201, answer(reviewUID, `,"allowed":true`)), review("v1"), "CREATE", "unchanged", "", codes.Unset},
		"a status without a body":           {rawly(204, ""), review("v1"), "CREATE", "failed", "invalid_answer", codes.Error},
		"a denial without status":           {rawly(200, answer(reviewUID, ``)), review("v1"), "CREATE", "denied", "", codes.Unset},
		"a patch that is none":              {rawly(200, answer(reviewUID, `,"allowed":true,"patch":"e30="`)), review("v1"), "CREATE", "unchanged", "", codes.Unset},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInstrumented()
			call(test.handler(in.options), "/mutate-v1-configmap", test.body)
			span := in.span(t, "POST /mutate-v1-configmap")
			measured := map[attribute.Key]string{"admission.request.operation": "unknown", "admission.request.resource": "other", "tracehook.outcome": test.outcome, "http.route": "/mutate-v1-configmap"}
			if test.operation != no {
				measured["admission.request.operation"], measured["admission.request.resource"] = test.operation, "v1/configmaps"
			}
			if test.errorType != "" {
				measured["error.type"] = test.errorType
			}
			in.wantMeasured(t, measured, 0)
			told := map[attribute.Key]string{}
			for _, a := range span.Attributes() {
				told[a.Key] = a.Value.String()
			}
			for key, want := range map[attribute.Key]string{
				"tracehook.outcome": test.outcome, "error.type": test.errorType, "admission.request.operation": test.operation, "admission.webhook.type": "mutating",
			} {
				if told[key] != want {
					t.Errorf("%s is %q, want %q", key, told[key], want)
				}
			}
			if span.Status().Code != test.status {
				t.Errorf("status %v, want %v", span.Status(), test.status)
			}
		})
	}
}

func TestABodyPassesThroughWhateverItsSizeAndItsEnd(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 1<<19) + "the end" // 8 MiB, more than is kept
	for name, test := range map[string]struct {
		body io.Reader
		want string
		err  error
	}{
		"long":       {strings.NewReader(long), long, nil},
		"broken off": {iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("{}"))), "{", iotest.ErrTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			var got []byte
			var err error
			h := webhook.InstrumentHTTP(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got, err = io.ReadAll(r.Body) }), newInstrumented().options)
			h.ServeHTTP(httptest.NewRecorder(), asked("/", test.body))
			if string(got) != test.want || !errors.Is(err, test.err) {
				t.Errorf("the handler read %d bytes and %v, want %d and %v", len(got), err, len(test.want), test.err)
			}
		})
	}
}

// deaf does not take the answer.
type deaf struct{ http.ResponseWriter }

func (deaf) Write([]byte) (int, error) { return 0, errors.New("the caller has gone") }

func TestAnAnswerThatNobodyTookIsAnError(t *testing.T) {
	in := newInstrumented()
	h := webhook.Instrument(admission.WithValidator(configMaps(), validator{}), in.options)
	h.ServeHTTP(deaf{httptest.NewRecorder()}, asked("/validate", strings.NewReader(review("v1"))))
	span := in.span(t, "POST")
	if s := span.Status(); s.Code != codes.Error || s.Description != "write the answer: the caller has gone" {
		t.Errorf("status %v", s)
	}
	in.wantMeasured(t, map[attribute.Key]string{"admission.request.operation": "CREATE", "admission.request.resource": "v1/configmaps", "tracehook.outcome": "unanswered", "error.type": "write_error"}, 0)
}

func TestAHandlersContextEndsBeforeTheAPIServerStopsWaiting(t *testing.T) {
	var left time.Duration
	h := admission.HandlerFunc(func(ctx context.Context, _ admission.Request) admission.Response {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return admission.Allowed("")
	})
	for name, wrapped := range map[string]http.Handler{
		"Instrument":     webhook.Instrument(h, newInstrumented().options),
		"InstrumentHTTP": webhook.InstrumentHTTP(asHTTP(h), newInstrumented().options),
	} {
		if call(wrapped, "/validate", review("v1")); left > 4950*time.Millisecond || left < time.Second {
			t.Errorf("%s: %s left, want just under 4.95s", name, left)
		}
	}
}

func TestAnErrorAfterTheDeadlineSaysSo(t *testing.T) {
	in := newInstrumented()
	h := webhook.Instrument(admission.HandlerFunc(func(ctx context.Context, _ admission.Request) admission.Response {
		<-ctx.Done()
		return admission.Errored(500, ctx.Err())
	}), in.options)
	r := asked("/validate", strings.NewReader(review("v1")))
	r.URL.RawQuery = "timeout=150ms"
	h.ServeHTTP(httptest.NewRecorder(), r)
	in.wantMeasured(t, map[attribute.Key]string{"admission.request.operation": "CREATE", "admission.request.resource": "v1/configmaps", "tracehook.outcome": "failed", "error.type": "deadline_exceeded"}, 0)
}

func TestAHandlerRunsInTheSpanAndItsLoggerKnowsTheTrace(t *testing.T) {
	in := newInstrumented()
	var lines []string
	var seen trace.SpanContext
	wh := &admission.Webhook{
		Handler: admission.HandlerFunc(func(ctx context.Context, _ admission.Request) admission.Response {
			seen = trace.SpanContextFromContext(ctx)
			log.FromContext(ctx).Info("at work")
			return admission.Allowed("")
		}),
		LogConstructor: func(logr.Logger, *admission.Request) logr.Logger {
			return funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{}).WithValues("mine", "kept")
		},
		WithContextFunc: func(ctx context.Context, r *http.Request) context.Context {
			return context.WithValue(ctx, http.ServerContextKey, r.Header.Get("Baggage"))
		},
	}
	call(webhook.Instrument(wh, in.options), "/validate", review("v1"))
	span := in.span(t, "POST /validate").SpanContext()
	if !seen.Equal(span) {
		t.Errorf("the handler ran in span %v, want %v", seen.SpanID(), span.SpanID())
	}
	all := strings.Join(lines, "\n")
	for _, part := range []string{`"mine"="kept"`, span.TraceID().String(), span.SpanID().String()} {
		if !strings.Contains(all, part) {
			t.Errorf("logged %s, want in it %s", all, part)
		}
	}
}

// A webhook that builds its context anew is served as before; only the outcome is known.
func TestAContextThatIsThrownAwayTakesTheRequestsAttributesAlong(t *testing.T) {
	in := newInstrumented()
	wh := admission.WithValidator(configMaps(), validator{errors.New("no")})
	wh.WithContextFunc = func(context.Context, *http.Request) context.Context { return context.Background() }
	if resp := answerOf(t, call(webhook.Instrument(wh, in.options), "/validate", review("v1"))); resp.Allowed || resp.UID != reviewUID {
		t.Errorf("got %v", resp)
	}
	in.wantMeasured(t, map[attribute.Key]string{"admission.request.operation": "unknown", "admission.request.resource": "other", "tracehook.outcome": "denied", "http.route": "/validate"}, 0)
}

func TestAuditAnnotationsAreAddedToSampledAnswersAndNeverReplaced(t *testing.T) {
	mine := map[string]string{"trace-id": "mine", "checked": "yes"} // the same for every answer
	h := admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
		resp := admission.Allowed("")
		resp.AuditAnnotations = mine
		return resp
	})
	in := newInstrumented()
	got := answerOf(t, call(webhook.Instrument(h, in.options), "/validate", review("v1"))).AuditAnnotations
	want := map[string]string{"trace-id": "mine", "checked": "yes", "span-id": in.span(t, "POST /validate").SpanContext().SpanID().String()}
	if !maps.Equal(got, want) {
		t.Errorf("sampled: got %v, want %v", got, want)
	}
	never := webhook.InstrumentOptions{TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))}
	got = answerOf(t, call(webhook.Instrument(h, never), "/validate", review("v1"))).AuditAnnotations
	if want := map[string]string{"trace-id": "mine", "checked": "yes"}; !maps.Equal(got, want) {
		t.Errorf("not sampled: got %v, want %v", got, want)
	}
}

func TestTheTypeIsTheOptionElseWhatThePathSays(t *testing.T) {
	for _, test := range []struct {
		path         string
		option, want webhook.WebhookType
	}{
		{"/mutate-apps-v1-deployment", "", webhook.Mutating},
		{"/validate-apps-v1-deployment", "", webhook.Validating},
		{"/guard", "", ""},
		{"/guard", webhook.Validating, webhook.Validating},
		{"/mutate", webhook.Validating, webhook.Validating},
	} {
		in := newInstrumented()
		in.options.Type = test.option
		call(webhook.Instrument(admission.WithValidator(configMaps(), validator{}), in.options), test.path, review("v1"))
		got := ""
		for _, a := range in.span(t, "POST "+test.path).Attributes() {
			if a.Key == "admission.webhook.type" {
				got = a.Value.AsString()
			}
		}
		if got != string(test.want) {
			t.Errorf("%s, option %q: got %q, want %q", test.path, test.option, got, test.want)
		}
	}
}

func TestACallerThatIsNotTrustedIsLinkedToOrIgnored(t *testing.T) {
	for trust, links := range map[webhook.Trust]int{webhook.TrustLink: 1, webhook.TrustNone: 0} {
		in := newInstrumented()
		in.options.Trust = trust
		call(webhook.Instrument(admission.WithValidator(configMaps(), validator{}), in.options), "/validate", review("v1"))
		span := in.spans.Ended()[0]
		if span.Parent().IsValid() || len(span.Links()) != links {
			t.Errorf("%s: parent %v, links %v", trust, span.Parent(), span.Links())
		}
		if links == 1 && span.Links()[0].SpanContext.SpanID().String() != apiServerSpan {
			t.Errorf("%s: linked to %v", trust, span.Links())
		}
	}
}

func TestWithoutProvidersTheGlobalOnesAreUsed(t *testing.T) {
	in := newInstrumented()
	tracers, meters := otel.GetTracerProvider(), otel.GetMeterProvider()
	t.Cleanup(func() { otel.SetTracerProvider(tracers); otel.SetMeterProvider(meters) })
	otel.SetTracerProvider(in.options.TracerProvider)
	otel.SetMeterProvider(in.options.MeterProvider)
	call(webhook.Instrument(admission.WithValidator(configMaps(), validator{}), webhook.InstrumentOptions{}), "/validate", review("v1"))
	in.span(t, "POST /validate")
	in.wantMeasured(t, map[attribute.Key]string{"admission.request.operation": "CREATE", "admission.request.resource": "v1/configmaps", "tracehook.outcome": "unchanged", "http.route": "/validate"}, 0)
}

// registry is a webhook server that only remembers.
type registry struct {
	ctrlwebhook.Server
	hooks map[string]http.Handler
}

func (r *registry) Register(path string, hook http.Handler) { r.hooks[path] = hook }

func TestAServerInstrumentsTheAdmissionWebhooksThatAreRegisteredWithIt(t *testing.T) {
	in := newInstrumented()
	r := &registry{hooks: map[string]http.Handler{}}
	server := webhook.InstrumentServer(r, in.options)

	convert := conversion.NewWebhookHandler(configMaps(), conversion.NewRegistry())
	server.Register("/convert", convert)
	if r.hooks["/convert"] != convert {
		t.Error("the conversion webhook was wrapped")
	}
	server.Register("/validate", admission.WithValidator(configMaps(), validator{errors.New("no")}))
	server.Register("/guard", webhook.Instrument(admission.WithValidator(configMaps(), validator{}), in.options))
	call(r.hooks["/validate"], "/validate", review("v1"))
	in.span(t, "POST /validate")
	call(r.hooks["/guard"], "/guard", review("v1"))
	if spans := in.spans.Ended(); len(spans) != 2 || spans[1].Name() != "POST /guard" {
		t.Errorf("got spans %v: the handler that was instrumented already must not be so twice", spans)
	}
}

// outOfInstruments makes meters that make no histogram.
type outOfInstruments struct{ noop.MeterProvider }

func (outOfInstruments) Meter(string, ...metric.MeterOption) metric.Meter { return emptyMeter{} }

type emptyMeter struct{ noop.Meter }

func (emptyMeter) Float64Histogram(string, ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	return nil, errors.New("out of instruments")
}

func TestWithoutMetricsAWebhookServesAllTheSame(t *testing.T) {
	in := newInstrumented()
	in.options.MeterProvider = outOfInstruments{}
	var reported error
	before := otel.GetErrorHandler()
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { reported = err }))
	t.Cleanup(func() { otel.SetErrorHandler(before) })
	h := webhook.Instrument(admission.WithValidator(configMaps(), validator{}), in.options)
	if reported == nil || !strings.Contains(reported.Error(), "out of instruments") {
		t.Errorf("OpenTelemetry's error handler got %v", reported)
	}
	if !answerOf(t, call(h, "/validate", review("v1"))).Allowed {
		t.Error("the webhook does not answer")
	}
	in.span(t, "POST /validate")
}

func TestAHandlerReachesTheServersWriter(t *testing.T) {
	w := call(webhook.InstrumentHTTP(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
	}), newInstrumented().options), "/validate", review("v1"))
	if !w.Flushed {
		t.Error("nothing was flushed")
	}
}

func TestMistakesOfTheProgramPanicAtOnce(t *testing.T) {
	h := admission.WithValidator(configMaps(), validator{})
	for name, call := range map[string]func(){
		"no handler":       func() { webhook.Instrument(nil, webhook.InstrumentOptions{}) },
		"no HTTP handler":  func() { webhook.InstrumentHTTP(nil, webhook.InstrumentOptions{}) },
		"no known trust":   func() { webhook.Instrument(h, webhook.InstrumentOptions{Trust: "everybody"}) },
		"no known type":    func() { webhook.Instrument(h, webhook.InstrumentOptions{Type: "Mutating"}) },
		"an empty webhook": func() { webhook.Instrument(&admission.Webhook{}, webhook.InstrumentOptions{}) },
		"a nil webhook":    func() { webhook.Instrument((*admission.Webhook)(nil), webhook.InstrumentOptions{}) },
		"no server":        func() { webhook.InstrumentServer(nil, webhook.InstrumentOptions{}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			call()
		}()
	}
}
