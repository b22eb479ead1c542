package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/pflag"

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
func startServe(t *testing.T, dir string, change ...func(*serveConfig)) served {
	t.Helper()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1") // a Collector that is not there
	s := served{log: new(lockedBuffer), ended: make(chan error, 1), config: serveConfig{
		WebhookAddress: freeAddress(t),
		processConfig: processConfig{HealthAddress: freeAddress(t), MetricsAddress: freeAddress(t), FlushTimeout: 500 * time.Millisecond,
			LogLevel: "info", LogFormat: "json"},
		CertPath: dir, CertName: "tls.crt", CertKey: "tls.key", MaxBodyBytes: 1 << 20,
		ShutdownDelay: 500 * time.Millisecond,
		AnnotationKey: "example.org/cause", Stamp: "always", Lineage: "off", Trust: "parent",
	}}
	for _, c := range change {
		c(&s.config)
	}
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
func (s served) admit(pool *x509.CertPool) (string, error) { return s.post(pool, review) }

func (s served) post(pool *x509.CertPool, review string) (string, error) {
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
	s.eventually(t, "unready", func() bool { return strings.HasPrefix(s.get(t, s.config.HealthAddress, "/readyz"), "503") })
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

// What the manual lists is what is exported, by name and type. The Collector is dead
// and so is the API server: failures have metrics, too. Those of the certificates' authority need a living one:
// e2e/mtls compares them, and e2e/lifecycle those of `lifecycle`.
func TestTheMetricsAreThoseOfTheManual(t *testing.T) {
	manual, err := os.ReadFile("../../deploy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_0-9]+)` \\| (\\w+) \\|").FindAllSubmatch(manual, -1) {
		if name := string(row[1]); !strings.HasPrefix(name, "tracehook_certs_") && !strings.HasPrefix(name, "tracehook_lifecycle_") {
			want[string(row[1])] = string(row[2])
		}
	}

	dir := t.TempDir()
	pool := issuePair(t, dir)
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{"current-context":"dead","contexts":[{"name":"dead","context":{"cluster":"dead"}}],"clusters":[{"name":"dead","cluster":{"server":"https://127.0.0.1:1"}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", kubeconfig)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	ca := filepath.Join(dir, "tls.crt") // any certificate will do
	s := startServe(t, dir, func(c *serveConfig) { c.Lineage, c.ClientCAFile, c.ClientAuth = "link", ca, "observe" })
	const owned = `"object":{"metadata":{"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"r","uid":"u","controller":true}]}}`
	if answer, err := s.post(pool, strings.Replace(review, `"object":{"metadata":{}}`, owned, 1)); err != nil || !strings.Contains(answer, `"patchType":"JSONPatch"`) {
		t.Fatalf("got %q, %v; want a patch", answer, err)
	}
	got := map[string]string{}
	s.eventually(t, "exporting the metrics of the manual", func() bool {
		clear(got)
		for _, m := range regexp.MustCompile(`(?m)^# TYPE ((?:tracehook|otel_sdk)_\w+) (\w+)$`).FindAllStringSubmatch(s.get(t, s.config.MetricsAddress, "/metrics"), -1) {
			got[m[1]] = m[2]
		}
		return len(got) >= len(want)
	})
	if !maps.Equal(got, want) {
		t.Errorf("exported %v\nin deploy/README.md %v", got, want)
	}

	// From a bucket to the trace of a call in it: in the format that has exemplars.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.config.MetricsAddress+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^tracehook_admission_duration_seconds_bucket\{.*# \{.*trace_id="[0-9a-f]{32}"`).Match(page) {
		t.Error("no bucket of the duration has an exemplar with a trace id")
	}

	s.stop()
	if err := <-s.ended; err != nil {
		t.Error(err)
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
	err = serve(t.Context(), serveConfig{WebhookAddress: freeAddress(t),
		processConfig: processConfig{HealthAddress: taken.Addr().String(), MetricsAddress: "0", FlushTimeout: time.Second, LogLevel: "error"},
		CertPath:      dir, CertName: "tls.crt", CertKey: "tls.key", AnnotationKey: "a/b", Lineage: "off"}, io.Discard)
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

// Whether the API server answers is not known at the start; kubelet must not restart a server for it.
func TestServeWithoutAnAPIServerComesUpUnreadyAndStops(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{"current-context":"dead","contexts":[{"name":"dead","context":{"cluster":"dead"}}],"clusters":[{"name":"dead","cluster":{"server":"https://127.0.0.1:1"}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", kubeconfig)
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	for _, mode := range []string{certsManaged, certsSecret} {
		t.Run(mode, func(t *testing.T) {
			s := served{log: new(lockedBuffer), ended: make(chan error, 1)}
			flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
			s.config.bind(flags)
			if err := flags.Parse([]string{"--certs", mode, "--lineage", "off", "--shutdown-delay", "0s",
				"--webhook-bind-address", freeAddress(t), "--health-probe-bind-address", freeAddress(t), "--metrics-bind-address", freeAddress(t)}); err != nil {
				t.Fatal(err)
			}
			if err := s.config.validate(); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			go func() { s.ended <- serve(ctx, s.config, s.log) }()
			s.eventually(t, "up and unready", func() bool {
				return strings.HasPrefix(s.get(t, s.config.HealthAddress, "/readyz"), "503 not ready: certificate: there is no certificate yet")
			})
			if got := s.get(t, s.config.HealthAddress, "/healthz"); got != "200 ok" {
				t.Errorf("/healthz: %s", got)
			}
			if connection, err := net.Dial("tcp", s.config.WebhookAddress); err == nil {
				connection.Close()
				t.Error("it listens without a certificate: every caller would get a TLS error")
			}
			var waitsFor bytes.Buffer
			var err error
			for patience := 100 * time.Millisecond; patience < time.Minute && waitsFor.Len() == 0; patience *= 4 {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				err = probe(ctx, s.config.HealthAddress, &waitsFor)
				cancel()
			}
			if err != nil || !strings.HasPrefix(waitsFor.String(), "not ready: certificate: there is no certificate yet") {
				t.Errorf("the startup probe says %q, %v; the server has started, and waits", &waitsFor, err)
			}
			stop()
			if err := <-s.ended; err != nil {
				t.Errorf("ended with %v, want nil; log:\n%s", err, s.log)
			}
		})
	}
}
