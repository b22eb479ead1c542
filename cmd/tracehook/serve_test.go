package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tracehook/tracehook/certs"
)

const review = `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u-1","operation":"CREATE","object":{"metadata":{}}}}`

// issuePair writes a serving pair to dir and returns the pool that trusts it.
func issuePair(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	ca, err := certs.NewCA(certs.CAOptions{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := certs.Issue(ca, certs.LeafOptions{Now: time.Now(), Names: []string{"tracehook.tracehook-system.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := leaf.CertificatePEM()
	if err != nil {
		t.Fatal(err)
	}
	key, err := leaf.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"tls.crt": certificate, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate)
	return pool
}

type served struct {
	config serveConfig
	log    *lockedBuffer
	stop   context.CancelFunc
	ended  chan error
}

// startServe runs `serve` on free ports until the test ends.
func startServe(t *testing.T, dir string) served {
	t.Helper()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1") // a Collector that is not there
	s := served{log: new(lockedBuffer), ended: make(chan error, 1), config: serveConfig{
		WebhookAddress: freeAddress(t), HealthAddress: freeAddress(t), MetricsAddress: freeAddress(t),
		CertPath: dir, CertName: "tls.crt", CertKey: "tls.key", MaxBodyBytes: 1 << 20,
		ShutdownDelay: 500 * time.Millisecond, FlushTimeout: 500 * time.Millisecond,
		AnnotationKey: "example.org/cause", LogLevel: "info",
	}}
	ctx, stop := context.WithCancel(t.Context())
	s.stop = stop
	go func() { s.ended <- serve(ctx, s.config, s.log) }()
	s.eventually(t, "ready", func() bool { return s.get(t, s.config.HealthAddress, "/readyz") == "200 ok" })
	return s
}

func (s served) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not %s after 20s; log:\n%s", what, s.log)
		}
	}
}

func (s served) get(t *testing.T, address, path string) string {
	t.Helper()
	resp, err := http.Get("http://" + address + path)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, body)
}

// admit sends the review over a new connection and verifies the name as an API server does.
func (s served) admit(pool *x509.CertPool) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "tracehook.tracehook-system.svc"}}}
	resp, err := client.Post("https://"+s.config.WebhookAddress+"/mutate?timeout=5s", "application/json", strings.NewReader(review))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, body), err
}

func TestServeAnswersTakesANewCertificateUpAndStopsInOrder(t *testing.T) {
	dir := t.TempDir()
	first := issuePair(t, dir)
	s := startServe(t, dir)

	answer, err := s.admit(first)
	if err != nil || !strings.Contains(answer, `"patchType":"JSONPatch"`) {
		t.Fatalf("got %q, %v; want a patch", answer, err)
	}
	if got := s.get(t, s.config.HealthAddress, "/healthz"); got != "200 ok" {
		t.Errorf("/healthz: %s", got)
	}
	metrics := s.get(t, s.config.MetricsAddress, "/metrics")
	if want := `tracehook_admission_duration_seconds_count{`; !strings.Contains(metrics, want) {
		t.Errorf("/metrics lacks %s:\n%s", want, metrics)
	}

	second := issuePair(t, dir)
	s.eventually(t, "serving the new certificate", func() bool {
		_, err := s.admit(second)
		return err == nil
	})
	if err := os.WriteFile(filepath.Join(dir, "tls.crt"), []byte("half a pai"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // for the watcher to see it
	if _, err := s.admit(second); err != nil {
		t.Errorf("a broken file must leave the last good pair in place: %v", err)
	}

	s.stop()
	s.eventually(t, "unready", func() bool { return strings.HasPrefix(s.get(t, s.config.HealthAddress, "/readyz"), "500") })
	if _, err := s.admit(second); err != nil {
		t.Errorf("during the shutdown delay: %v", err)
	}
	if err := <-s.ended; err != nil {
		t.Errorf("ended with %v, want nil", err)
	}
	if log := s.log.String(); !strings.Contains(log, `"msg":"draining"`) || !strings.Contains(log, `"msg":"stopped"`) {
		t.Errorf("log:\n%s", log)
	}
}

func TestServeDoesNotGoOnWithoutItsProbes(t *testing.T) {
	dir := t.TempDir()
	issuePair(t, dir)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	err = serve(t.Context(), serveConfig{WebhookAddress: freeAddress(t), HealthAddress: taken.Addr().String(), MetricsAddress: "0",
		CertPath: dir, CertName: "tls.crt", CertKey: "tls.key", FlushTimeout: time.Second, AnnotationKey: "a/b", LogLevel: "error"}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "serve probes") {
		t.Errorf("got %v, want an error of the probes", err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
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
