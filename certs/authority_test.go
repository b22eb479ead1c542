package certs_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tracehook/tracehook/certs"
)

func TestAnAuthorityRefusesOptionsThatNothingCanBeMadeOf(t *testing.T) {
	good := certs.AuthorityOptions{Clients: fake.NewClientset(), Namespace: "a", Identity: "b", Names: []string{"c"}}
	if _, err := certs.NewAuthority(good); err != nil {
		t.Fatal(err)
	}
	for reason, change := range map[string]func(*certs.AuthorityOptions){
		"client is missing":    func(o *certs.AuthorityOptions) { o.Clients = nil },
		"namespace":            func(o *certs.AuthorityOptions) { o.Namespace = "" },
		"identity":             func(o *certs.AuthorityOptions) { o.Identity = "" },
		"serve no name":        func(o *certs.AuthorityOptions) { o.Names = nil },
		"who publishes":        func(o *certs.AuthorityOptions) { o.Targets = []certs.Ref{{}} },
		"duration is negative": func(o *certs.AuthorityOptions) { o.Soak = -1 },
	} {
		o := good
		change(&o)
		if _, err := certs.NewAuthority(o); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%v, want an error about %q", err, reason)
		}
	}
}

// What it tells about itself; how it behaves towards a real API server is e2e/authority's story.
func TestEveryStepIsASpanAndIsCounted(t *testing.T) {
	spans, reader := tracetest.NewSpanRecorder(), metric.NewManualReader()
	ctx, stop := context.WithCancel(t.Context())
	a, err := certs.NewAuthority(certs.AuthorityOptions{
		Clients: fake.NewClientset(), Namespace: "a", Identity: "b", Names: []string{"c"},
		Now: func() time.Time { return now },
		OnStep: func(s certs.Status) {
			if s.Settled {
				stop()
			}
		},
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)),
		MeterProvider:  metric.NewMeterProvider(metric.WithReader(reader)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(ctx); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range spans.Ended() {
		names = append(names, s.Name())
	}
	if got := strings.Join(names, ", "); got != "certs bootstrap, certs issue_leaf, certs prove" {
		t.Errorf("spans %s", got)
	}
	var collected metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &collected); err != nil {
		t.Fatal(err)
	}
	counted := map[string]int64{}
	for _, scope := range collected.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					step, _ := p.Attributes.Value("tracehook.certs.step")
					outcome, _ := p.Attributes.Value("tracehook.certs.outcome")
					counted[step.AsString()+" "+outcome.AsString()] = p.Value
				}
			case metricdata.Gauge[int64]:
				// It leads no longer, so that is all it says.
				if m.Name != "tracehook.certs.leader" || data.DataPoints[0].Value != 0 {
					t.Errorf("%s after the end: %+v", m.Name, data.DataPoints)
				}
			}
		}
	}
	if len(counted) != 3 || counted["bootstrap done"] != 1 || counted["issue_leaf done"] != 1 || counted["prove done"] != 1 {
		t.Errorf("counted %v", counted)
	}
}
