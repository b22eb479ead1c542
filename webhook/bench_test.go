package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// benchReview is the create of a Pod with four containers, as the API server sends it.
func benchReview(tb testing.TB) []byte {
	tb.Helper()
	body, err := os.ReadFile("testdata/bench/pod.json")
	if err != nil {
		tb.Fatal(err)
	}
	return body
}

// The larger documents say whether the cost is linear in the size.
func BenchmarkDecode(b *testing.B) {
	pod := benchReview(b)
	for _, containers := range []int{4, 40, 400} {
		body := grow(b, pod, containers)
		b.Run(strconv.Itoa(len(body)>>10)+"KiB", func(b *testing.B) {
			var decoder reviewDecoder
			var r Request
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				r = Request{}
				if err := decoder.decode(body, &r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// grow repeats the Pod's containers until there are so many.
func grow(tb testing.TB, review []byte, containers int) []byte {
	tb.Helper()
	const open, end = `"containers":[`, `],"restartPolicy"`
	before, rest, ok := strings.Cut(string(review), open)
	list, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		tb.Fatal("no list of containers in the review")
	}
	list = strings.TrimSuffix(strings.Repeat(list+",", containers/4), ",")
	return []byte(before + open + list + end + after)
}

func BenchmarkPatch(b *testing.B) {
	var decoder reviewDecoder
	var r Request
	if err := decoder.decode(benchReview(b), &r); err != nil {
		b.Fatal(err)
	}
	changes := []change{{key: DefaultAnnotationKey, value: testTraceparent}}
	var patch []byte
	b.ReportAllocs()
	for b.Loop() {
		patch, _ = appendPatch(patch[:0], &r.Object, changes)
	}
}

// The whole handler between net/http and the exporter: ours, and beside it what
// others do for the same Pod. "sampled" spans go through a batch processor to an
// exporter that throws them away; what sending costs is e2e/bench's business.
func BenchmarkHandler(b *testing.B) {
	body := benchReview(b)
	const sampled, unsampled = testTraceparent, "00-" + testTraceID + "-" + testParentID + "-00"
	for _, variant := range []struct {
		name        string
		traceparent string
		handler     http.Handler
	}{
		{"null", unsampled, nullHandler(b)},
		{"null with otelhttp, sampled", sampled, benchOTelHTTP(nullHandler(b), benchTracer(b))},
		{"tracehook without tracing", unsampled, benchHandler(b, nil)},
		{"tracehook, not sampled", unsampled, benchHandler(b, benchTracer(b))},
		{"tracehook, sampled", sampled, benchHandler(b, benchTracer(b))},
		{"controller-runtime", unsampled, usualWebhook(b)},
		{"controller-runtime with otelhttp, not sampled", unsampled, benchOTelHTTP(usualWebhook(b), benchTracer(b))},
		{"controller-runtime with otelhttp, sampled", sampled, benchOTelHTTP(usualWebhook(b), benchTracer(b))},
	} {
		b.Run(variant.name, func(b *testing.B) {
			mux := http.NewServeMux()
			mux.Handle("/mutate", variant.handler)
			reader := bytes.NewReader(body)
			r, err := http.NewRequest(http.MethodPost, "https://tracehook.tracehook-system.svc:443/mutate?timeout=10s", reader)
			if err != nil {
				b.Fatal(err)
			}
			r.RemoteAddr = "10.0.0.1:43210"
			r.Header = http.Header{
				"Accept": {"application/json"}, "Accept-Encoding": {"gzip"}, "Content-Type": {"application/json"},
				"Traceparent": {variant.traceparent}, "User-Agent": {"kube-apiserver-admission"},
			}
			w := benchWriter{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				reader.Reset(body)
				clear(w.header)
				w.status, w.length = http.StatusOK, 0
				mux.ServeHTTP(&w, r)
				if w.status != http.StatusOK || w.length < 100 {
					b.Fatalf("answered with status %d and %d bytes", w.status, w.length)
				}
			}
		})
	}
}

// benchWriter does what net/http's writer does for a handler, and no more.
type benchWriter struct {
	header         http.Header
	status, length int
}

func (w *benchWriter) Header() http.Header             { return w.header }
func (w *benchWriter) WriteHeader(status int)          { w.status = status }
func (w *benchWriter) SetReadDeadline(time.Time) error { return nil }
func (w *benchWriter) Write(p []byte) (int, error) {
	w.length += len(p)
	return len(p), nil
}

// benchTracer is set up as `tracehook serve` does it, but for the exporter.
func benchTracer(b *testing.B) trace.TracerProvider {
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(discardSpans{}))
	b.Cleanup(func() {
		if err := provider.Shutdown(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return provider
}

type discardSpans struct{}

func (discardSpans) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (discardSpans) Shutdown(context.Context) error                             { return nil }

// benchHandler stores the context whether or not it is sampled, so that every variant
// makes the same Pod.
func benchHandler(b *testing.B, tracers trace.TracerProvider) http.Handler {
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
	mutator, err := NewTraceContext(TraceContextOptions{Always: true, MeterProvider: meters})
	if err != nil {
		b.Fatal(err)
	}
	handler, err := New(Options{
		Mutators:       Chain{{Name: "trace-context", Mutator: mutator}},
		TracerProvider: tracers,
		MeterProvider:  meters,
	})
	if err != nil {
		b.Fatal(err)
	}
	return handler
}

// nullHandler is the least that a webhook can do: read, and say a constant.
func nullHandler(b *testing.B) http.Handler {
	buffer := make([]byte, 64<<10) // of the one caller that a benchmark has
	answer := result{ending: endUnchanged}.appendReview(nil, testUID, answer{})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := r.Body.Read(buffer); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
		w.Header()["Content-Type"] = jsonContentType
		_, _ = w.Write(answer)
	})
}

func benchOTelHTTP(next http.Handler, tracers trace.TracerProvider) http.Handler {
	return otelhttp.NewHandler(next, "admission", otelhttp.WithTracerProvider(tracers),
		otelhttp.WithMeterProvider(metricnoop.NewMeterProvider()), otelhttp.WithPropagators(propagation.TraceContext{}))
}

// usualWebhook is a mutating webhook as most are written: decode the Pod, set the
// annotation, let PatchResponseFromRaw find the difference.
func usualWebhook(b *testing.B) http.Handler {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		b.Fatal(err)
	}
	decoder := admission.NewDecoder(scheme)
	return &admission.Webhook{Handler: admission.HandlerFunc(func(_ context.Context, req admission.Request) admission.Response {
		var pod corev1.Pod
		if err := decoder.Decode(req, &pod); err != nil {
			return admission.Errored(http.StatusBadRequest, err)
		}
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[DefaultAnnotationKey] = testTraceparent
		marshaled, err := json.Marshal(&pod)
		if err != nil {
			return admission.Errored(http.StatusInternalServerError, err)
		}
		return admission.PatchResponseFromRaw(req.Object.Raw, marshaled)
	})}
}
