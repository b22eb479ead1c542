package report

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore/recorded"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// demo is a report as the demo makes it: a request that worked, one whose
// webhook could not be called, and the counters of both.
func demo(t testing.TB) Report {
	worked, refused := recorded.Trace(t, "configmap"), recorded.Trace(t, "refused")
	return Report{
		Title:     "One kubectl create, one trace",
		Summary:   "Every step of a request, from the client through the API server and the webhook to etcd, and what the API server counted meanwhile.",
		Generated: time.Date(2026, 11, 22, 10, 34, 12, 0, time.UTC),
		Facts:     []Fact{{"Kubernetes", "v1.36.3"}, {"etcd", "3.6.8"}, {"tracehook", "v0.1.0"}},
		Sections: []Section{
			{
				Heading: "A ConfigMap",
				Text:    "The API server calls the webhook after authorization and before storage.",
				Command: "tracehook trace -- kubectl create configmap hello --from-literal=greeting=world",
				Output:  "configmap/hello created",
				Facts:   []Fact{{"tracehook.dev/traceparent", "00-0af7651916cd43dd8448eb211c80319c-b8707941719c7449-01"}},
				Trace:   &worked,
			},
			{
				Heading: "The same with a certificate without SAN",
				Text: "The certificate names its host in the common name only, and the API server refuses it.\n\n" +
					"The webhook fails open, so that the ConfigMap is stored all the same, without the annotation.",
				Command: "tracehook trace -- kubectl create configmap hello-again",
				Output:  `failed calling webhook "trace-context.tracehook.dev": tls: failed to verify certificate: x509: certificate relies on legacy Common Name field, use SANs instead`,
				Failed:  true,
				Facts:   []Fact{{"missing-san.invalid-cert.webhook.admission.k8s.io/trace-context.tracehook.dev", "tracehook.tracehook-system.svc"}},
				Trace:   &refused,
			},
			{
				Heading: "What the API server counted",
				Counters: []Counter{
					{Name: "apiserver_webhooks_x509_missing_san_total", Before: 0, After: 1, Meaning: "Calls to a webhook whose certificate has no subject alternative name."},
					{Name: `apiserver_admission_webhook_request_total{name="trace-context.tracehook.dev"}`, Before: 4, After: 6},
					{Name: "apiserver_admission_webhook_rejection_count", Before: 0, After: 0},
				},
			},
		},
	}
}

// made builds a trace from "id<parent id<parent …". Each span starts a
// millisecond after the one before and takes three; its name is its id.
func made(spans string) tracestore.Trace {
	trace := tracestore.Trace{ID: "0123456789abcdef0123456789abcdef"}
	for i, text := range strings.Fields(spans) {
		id, parent, _ := strings.Cut(text, "<")
		trace.Spans = append(trace.Spans, tracestore.Span{
			ID: id, ParentID: parent, Name: id, Service: "s",
			Start: time.UnixMilli(1795000000000 + int64(i)).UTC(), Duration: 3 * time.Millisecond,
		})
	}
	return trace
}

// golden compares got with a file under testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(gotLines), len(wantLines)) {
		g, w := "(end)", "(end)"
		if i < len(gotLines) {
			g = gotLines[i]
		}
		if i < len(wantLines) {
			w = wantLines[i]
		}
		if g != w {
			t.Fatalf("%s differs in line %d (run the test with -update if that is right)\ngot   %s\nwant  %s", path, i+1, g, w)
		}
	}
}
