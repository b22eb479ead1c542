package webhook_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	admissionv1 "k8s.io/api/admission/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/tracehook/tracehook/webhook"
)

// A question as the API server asks it, below its span 00f067aa0ba902b7.
func question() *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/validate?timeout=5s", strings.NewReader(`{
		"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {
			"uid": "705ab4f5", "operation": "CREATE", "name": "web", "namespace": "shop",
			"kind": {"group": "", "version": "v1", "kind": "Pod"}, "resource": {"group": "", "version": "v1", "resource": "pods"},
			"object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "annotations": {"a": "b"}}}
		}}`))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	return r
}

// A webhook that somebody has written with controller-runtime. One line makes it a
// part of the API server's trace; that it denies is an answer, and no error.
func ExampleInstrument() {
	noPods := admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
		return admission.Denied("no pods on Sundays")
	})
	recorder := tracetest.NewSpanRecorder()
	options := webhook.InstrumentOptions{TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))}

	mux := http.NewServeMux() // or manager.GetWebhookServer().Register
	mux.Handle("/validate", webhook.Instrument(noPods, options))
	mux.ServeHTTP(httptest.NewRecorder(), question())

	span := recorder.Ended()[0]
	fmt.Println(span.SpanKind(), span.Name(), "below", span.Parent().SpanID())
	fmt.Println("status:", span.Status().Code)
	for _, attribute := range span.Attributes() {
		switch attribute.Key {
		case "admission.webhook.type", "admission.request.resource", "admission.response.allowed", "admission.response.code", "tracehook.outcome":
			fmt.Printf("%s: %s\n", attribute.Key, attribute.Value.String())
		}
	}
	// Output:
	// server POST /validate below 00f067aa0ba902b7
	// status: Unset
	// admission.request.resource: v1/pods
	// tracehook.outcome: denied
	// admission.webhook.type: validating
	// admission.response.allowed: false
	// admission.response.code: 403
}

// A mutating webhook written for speed: it looks at the parts of the raw object that
// it needs, and says which annotation it wants.
func ExampleNew() {
	owner := webhook.MutatorFunc(func(_ context.Context, req *webhook.Request, resp *webhook.Response) error {
		if _, ok := req.Object.Annotation("shop.example/team"); !ok {
			resp.SetAnnotation("shop.example/team", "team-of-"+req.Namespace)
		}
		return nil
	})
	stamp, err := webhook.NewTraceContext(webhook.TraceContextOptions{Now: func() time.Time { return time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC) }})
	if err != nil {
		fmt.Println(err)
		return
	}
	handler, err := webhook.New(webhook.Options{
		// Each in a span of its own: `mutate team`, `mutate trace-context`.
		Mutators: webhook.Chain{{Name: "team", Mutator: owner}, {Name: "trace-context", Mutator: stamp}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	w := httptest.NewRecorder()
	handler.ServeHTTP(w, question())
	fmt.Println(strings.ReplaceAll(patchOf(w), "},", "},\n"))
	// Output:
	// [{"op":"add","path":"/metadata/annotations/shop.example~1team","value":"team-of-shop"},
	// {"op":"add","path":"/metadata/annotations/tracehook.dev~1traceparent","value":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
	// {"op":"add","path":"/metadata/annotations/tracehook.dev~1caused-at","value":"2026-11-28T10:00:00.000Z 6259d2519505fd9f"}]
}

// A unit test of a Mutator needs no server and no review: an object in, the patch out.
func ExampleMutator() {
	owner := webhook.MutatorFunc(func(_ context.Context, req *webhook.Request, resp *webhook.Response) error {
		if _, ok := req.Object.Annotation("shop.example/team"); !ok {
			resp.SetAnnotation("shop.example/team", "team-of-"+req.Namespace)
			resp.Warn("say whose it is: annotation shop.example/team")
		}
		return nil
	})

	req := &webhook.Request{
		Operation: admissionv1.Create, Namespace: "shop",
		Object: webhook.Object{Raw: []byte(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}}`)},
	}
	resp, err := webhook.NewResponse(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	err = owner.Mutate(context.Background(), req, resp)

	fmt.Println(err)
	fmt.Println(string(resp.Patch()))
	fmt.Println(resp.Warnings()[0])
	// Output:
	// <nil>
	// [{"op":"add","path":"/metadata/annotations","value":{"shop.example/team":"team-of-shop"}}]
	// say whose it is: annotation shop.example/team
}

// patchOf returns the JSON Patch of an answer.
func patchOf(w *httptest.ResponseRecorder) string {
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &review); err != nil {
		return err.Error()
	}
	return string(review.Response.Patch)
}
