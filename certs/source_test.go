package certs_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tracehook/tracehook/certs"
)

// points are all data points as "name{attributes} value", sorted.
func points(t *testing.T, reader metric.Reader) (list []string) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			var data []metricdata.DataPoint[int64]
			switch d := m.Data.(type) {
			case metricdata.Gauge[int64]:
				data = d.DataPoints
			case metricdata.Sum[int64]:
				data = d.DataPoints
			}
			for _, p := range data {
				var attributes []string
				for _, a := range p.Attributes.ToSlice() {
					attributes = append(attributes, string(a.Key)+"="+a.Value.AsString())
				}
				list = append(list, fmt.Sprintf("%s{%s} %d", m.Name, strings.Join(attributes, ","), p.Value))
			}
		}
	}
	slices.Sort(list)
	return list
}

// What is seen of Secrets and configurations in a cluster is e2e/trust's; here is what is told about it.
func TestSourceAndReadinessTellWhatTheyKnowInMetrics(t *testing.T) {
	ca := forge(t, nil, asCA("CA"))
	leaf := forge(t, &ca)
	key, err := leaf.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	clients := fake.NewClientset(
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "tracehook-certs"}, Data: map[string][]byte{
			certs.ServingCertificate: bundle(leaf), certs.ServingKey: key, certs.ServingNextCertificate: bundle(leaf)}},
		&admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "hook"}, Webhooks: []admissionv1.ValidatingWebhook{
			{Name: "hook.example.org", ClientConfig: toService("hook", 443, nil)}}},
	)
	reader := metric.NewManualReader()
	meters := metric.NewMeterProvider(metric.WithReader(reader))
	source, err := certs.NewSecretSource(certs.SourceOptions{Clients: clients, Namespace: "team-a", ProofName: "proof.team-a.svc",
		MeterProvider: meters, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	readiness, err := certs.NewReadiness(certs.ReadinessOptions{Clients: clients, GetCertificate: source.GetCertificate,
		Configurations: []certs.Ref{{Kind: certs.KindValidating, Name: "hook"}}, MeterProvider: meters, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	sameLines(t, points(t, reader), []string{
		`tracehook.certs.bundle.findings{tracehook.certs.code=configuration-unknown,tracehook.certs.severity=warning} 1`,
		`tracehook.certs.ready{} 1`,
		`tracehook.certs.secret.findings{tracehook.certs.code=secret-unknown,tracehook.certs.severity=error} 1`,
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { _ = source.Start(ctx) }()
	go func() { _ = readiness.Start(ctx) }()
	want := []string{
		`tracehook.certs.bundle.findings{tracehook.certs.code=bundle-empty,tracehook.certs.severity=info} 1`,
		`tracehook.certs.bundle.findings{tracehook.certs.code=untrusted,tracehook.certs.severity=error} 1`,
		`tracehook.certs.ready{} 0`,
		`tracehook.certs.secret.changes{tracehook.certs.outcome=served} 1`,
		`tracehook.certs.secret.findings{tracehook.certs.code=secret-unusable,tracehook.certs.severity=warning} 1`,
		fmt.Sprintf(`tracehook.certs.serving.expiration{tracehook.certs.slot=current} %d`, leaf.Certificate.NotAfter.Unix()),
	}
	for !slices.Equal(points(t, reader), want) && ctx.Err() == nil { // watches take their time
		time.Sleep(time.Millisecond)
	}
	sameLines(t, points(t, reader), want)
}
