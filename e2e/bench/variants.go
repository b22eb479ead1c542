package main

// What is measured. In: a variant's name and where its spans go. Out: its handler.
// Every variant but the null handler makes the same Pod.

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/tracehook/tracehook/webhook"
)

// variant is one server that is measured.
type variant struct {
	name    string
	batch   int // spans that are sent to the Collector at once; 0: it makes no spans
	sampled int // of 100 requests
	handler func(trace.TracerProvider, metric.MeterProvider) (http.Handler, error)
}

// The first is what the others' CPU time is a multiple of.
var variants = []variant{
	{name: nullName, handler: nullHandler},
	{name: "tracehook, no tracing", handler: tracehook},
	{name: "tracehook, 1 % sampled", handler: tracehook, batch: exportBatch, sampled: 1},
	{name: sampledName, handler: tracehook, batch: exportBatch, sampled: 100},
	{name: usualName, handler: usualWebhook},
	{name: "controller-runtime + otelhttp, 100 % sampled", handler: usualWithOTelHTTP, batch: sdktrace.DefaultMaxExportBatchSize, sampled: 100},
}

// exportBatch is that of `tracehook serve`. The SDK's 512 take one processor several
// milliseconds to encode, in which no call is answered.
const exportBatch = 128

const (
	nullName    = "null handler"
	sampledName = "tracehook, 100 % sampled"
	usualName   = "controller-runtime"
)

func variantNamed(name string) (variant, error) {
	for _, v := range variants {
		if v.name == name {
			return v, nil
		}
	}
	return variant{}, fmt.Errorf("no variant is called %q", name)
}

// nullHandler is the least that a webhook can do: read the review, allow it.
func nullHandler(trace.TracerProvider, metric.MeterProvider) (http.Handler, error) {
	const answer = `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"uid":"` + reviewUID + `","allowed":true}}`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answer)
	}), nil
}

// tracehook is what `tracehook serve --stamp always` puts together. Always, because
// else a request that is not sampled would get no annotation, and cost less.
func tracehook(tracers trace.TracerProvider, meters metric.MeterProvider) (http.Handler, error) {
	mutator, err := webhook.NewTraceContext(webhook.TraceContextOptions{Always: true, MeterProvider: meters})
	if err != nil {
		return nil, err
	}
	return webhook.New(webhook.Options{
		Mutators:       webhook.Chain{{Name: "trace-context", Mutator: mutator}},
		TracerProvider: tracers,
		MeterProvider:  meters,
	})
}

// usualWebhook decodes the Pod, sets the annotation, and lets PatchResponseFromRaw find
// out what has changed: the webhook that kubebuilder's book teaches.
func usualWebhook(trace.TracerProvider, metric.MeterProvider) (http.Handler, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	decoder := admission.NewDecoder(scheme)
	return &admission.Webhook{Handler: admission.HandlerFunc(func(ctx context.Context, req admission.Request) admission.Response {
		var pod corev1.Pod
		if err := decoder.Decode(req, &pod); err != nil {
			return admission.Errored(http.StatusBadRequest, err)
		}
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		span := trace.SpanContextFromContext(ctx)
		pod.Annotations[webhook.DefaultAnnotationKey] = "00-" + span.TraceID().String() + "-" + span.SpanID().String() + "-" + span.TraceFlags().String()
		marshaled, err := json.Marshal(&pod)
		if err != nil {
			return admission.Errored(http.StatusInternalServerError, err)
		}
		return admission.PatchResponseFromRaw(req.Object.Raw, marshaled)
	})}, nil
}

func usualWithOTelHTTP(tracers trace.TracerProvider, meters metric.MeterProvider) (http.Handler, error) {
	next, err := usualWebhook(tracers, meters)
	if err != nil {
		return nil, err
	}
	return otelhttp.NewHandler(next, "admission", otelhttp.WithTracerProvider(tracers),
		otelhttp.WithMeterProvider(metricnoop.NewMeterProvider()), otelhttp.WithPropagators(propagation.TraceContext{})), nil
}
