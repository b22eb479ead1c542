package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	}
	for !slices.Equal(points(t, reader), want) && ctx.Err() == nil { // watches take their time
		time.Sleep(time.Millisecond)
	}
	sameLines(t, points(t, reader), want)
}

// The Authority makes the Secret empty and fills it a moment later.
func TestASecretThatIsStillEmptyIsAPartOfAFirstStart(t *testing.T) {
	clients := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "tracehook-certs"}})
	log := &lockedBuffer{}
	source, err := certs.NewSecretSource(certs.SourceOptions{Clients: clients, Namespace: "team-a", Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { _ = source.Start(ctx) }()
	for !strings.Contains(log.String(), "holds no certificate yet") && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if text := log.String(); !strings.Contains(text, "code=secret-missing") || strings.Contains(text, "level=ERROR") || strings.Contains(text, "level=WARN") {
		t.Errorf("log:\n%s", text)
	}
}

// A clock that jumps takes no certificate away: the pair is served, and what is wrong with it is told everywhere.
func TestAPairIsServedWhateverTheClockSays(t *testing.T) {
	ca := forge(t, nil, asCA("CA"))
	leaf := forge(t, &ca)
	key, err := leaf.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "tracehook-certs"},
		Data: map[string][]byte{certs.ServingCertificate: bundle(leaf), certs.ServingKey: key}}
	clients := fake.NewClientset(secret,
		&admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "hook"}, Webhooks: []admissionv1.ValidatingWebhook{
			{Name: "hook.example.org", ClientConfig: toService("hook", 443, bundle(ca))}}},
	)
	var moved atomic.Int64
	clock := func() time.Time { return now.Add(time.Duration(moved.Load())) }
	reader := metric.NewManualReader()
	meters := metric.NewMeterProvider(metric.WithReader(reader))
	log := &lockedBuffer{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	source, err := certs.NewSecretSource(certs.SourceOptions{Clients: clients, Namespace: "team-a", Logger: logger, MeterProvider: meters, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	readiness, err := certs.NewReadiness(certs.ReadinessOptions{Clients: clients, GetCertificate: source.GetCertificate,
		Configurations: []certs.Ref{{Kind: certs.KindValidating, Name: "hook"}}, Logger: logger, MeterProvider: meters, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { _ = source.Start(ctx) }()
	go func() { _ = readiness.Start(ctx) }()
	await := func(what string, is func() bool) {
		t.Helper()
		for !is() {
			if ctx.Err() != nil {
				t.Fatalf("%s: it did not come to that; log:\n%s", what, log)
			}
			time.Sleep(time.Millisecond) // watches take their time
		}
	}
	await("ready", func() bool {
		_, err := source.GetCertificate(&tls.ClientHelloInfo{})
		return err == nil && len(readiness.Findings()) == 0
	})
	for _, jump := range []struct {
		to   time.Time
		code certs.Code
	}{
		{leaf.Certificate.NotAfter.Add(time.Hour), certs.Expired},
		{leaf.Certificate.NotBefore.Add(-time.Hour), certs.NotYetValid},
	} {
		moved.Store(int64(jump.to.Sub(now)))
		if served, err := source.GetCertificate(&tls.ClientHelloInfo{}); err != nil || !served.Leaf.Equal(leaf.Certificate) {
			t.Errorf("%s: the pair is not served: %v", jump.code, err)
		}
		if err := readiness.Ready(nil); err == nil || !strings.Contains(err.Error(), "("+string(jump.code)+")") {
			t.Errorf("%s is not the reason of being unready, but %v", jump.code, err)
		}
		told := strings.Join(points(t, reader), "\n")
		for _, metric := range []string{"secret", "bundle"} {
			if line := fmt.Sprintf("tracehook.certs.%s.findings{tracehook.certs.code=%s,tracehook.certs.severity=error} 1", metric, jump.code); !strings.Contains(told, line) {
				t.Errorf("no %s in\n%s", line, told)
			}
		}
		// Findings are looked at once a minute, and when something changes.
		secret.Annotations = map[string]string{"seen": string(jump.code)}
		if _, err := clients.CoreV1().Secrets("team-a").Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		await(string(jump.code)+" in the log", func() bool { return strings.Contains(log.String(), "code="+string(jump.code)) })
		moved.Store(0)
		if err := readiness.Ready(nil); err != nil {
			t.Errorf("the clock is right again: %v", err)
		}
	}
}

// A pair that whoever can tell the time has just made looks an hour early to a clock that is an hour behind.
func TestAClockThatIsBehindRefusesNoNewPair(t *testing.T) {
	ca := forge(t, nil, asCA("CA"))
	secretOf := func(leaf certs.KeyPair) *corev1.Secret {
		key, err := leaf.KeyPEM()
		if err != nil {
			t.Fatal(err)
		}
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "tracehook-certs"},
			Data: map[string][]byte{certs.ServingCertificate: bundle(leaf), certs.ServingKey: key}}
	}
	from := func(begin time.Duration) certs.KeyPair {
		return forge(t, &ca, func(c *x509.Certificate) { c.NotBefore = now.Add(begin) })
	}
	clients := fake.NewClientset(secretOf(from(-2 * time.Hour)))
	source, err := certs.NewSecretSource(certs.SourceOptions{Clients: clients, Namespace: "team-a", Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { _ = source.Start(ctx) }()
	serves := func(leaf certs.KeyPair) bool {
		served, err := source.GetCertificate(&tls.ClientHelloInfo{})
		return err == nil && served.Leaf.Equal(leaf.Certificate)
	}
	await := func(what string, is func() bool) {
		t.Helper()
		for !is() {
			if ctx.Err() != nil {
				t.Fatalf("%s: it did not come to that", what)
			}
			time.Sleep(time.Millisecond)
		}
	}
	await("a first pair", func() bool {
		_, err := source.GetCertificate(&tls.ClientHelloInfo{})
		return err == nil
	})
	early := from(time.Hour)
	if _, err := clients.CoreV1().Secrets("team-a").Update(ctx, secretOf(early), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await("the pair that is an hour early is served", func() bool { return serves(early) })
	late := from(-2 * time.Hour)
	if _, err := clients.CoreV1().Secrets("team-a").Update(ctx, secretOf(late), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await("another valid one", func() bool { return serves(late) })
	if _, err := clients.CoreV1().Secrets("team-a").Update(ctx, secretOf(from(3*time.Hour)), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await("a finding", func() bool { return len(source.Findings()) > 0 })
	if !serves(late) {
		t.Error("a pair that is three hours early took a valid one's place")
	}
}

// lockedBuffer is written by many.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
