package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// The words of net/http and crypto/tls are no promise of theirs, so they are the real ones here: every failure really happens.
func TestFailedHandshakesAreCountedByReason(t *testing.T) {
	var out lockedBuffer
	reader := sdkmetric.NewManualReader()
	lines, err := newStandardLog(slog.New(slog.NewJSONHandler(&out, nil)), sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	if err != nil {
		t.Fatal(err)
	}
	var missing error
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(lines, "", 0)
	server.Config.ReadHeaderTimeout = 2 * time.Second // for the handshake too
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if missing == nil {
			return nil, nil
		}
		return &tls.Config{GetCertificate: withReason(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, missing })}, nil
	}}
	server.StartTLS()
	defer server.Close()
	address := server.Listener.Addr().String()

	counts := func() map[string]int64 {
		var data metricdata.ResourceMetrics
		if err := reader.Collect(context.Background(), &data); err != nil {
			t.Fatal(err)
		}
		counts := map[string]int64{}
		for _, p := range data.ScopeMetrics[0].Metrics[0].Data.(metricdata.Sum[int64]).DataPoints {
			reason, _ := p.Attributes.Value(semconv.ErrorTypeKey)
			counts[reason.AsString()] = p.Value
		}
		return counts
	}
	shake := func(c *tls.Config) error {
		conn, err := tls.Dial("tcp", address, c)
		if err == nil {
			conn.Close()
		}
		return err
	}
	raw := func(text string, wait bool) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write([]byte(text))
		if wait {
			_, _ = conn.Read(make([]byte, 1))
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	want := counts()
	for _, test := range []struct {
		reason string
		fail   func()
	}{
		{"bad_certificate", func() { _ = shake(&tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"}) }},
		{"bad_certificate", func() { _ = shake(&tls.Config{RootCAs: pool, ServerName: "another.name"}) }},
		{"bad_certificate", func() {
			_ = shake(&tls.Config{RootCAs: pool, ServerName: "example.com", MaxVersion: tls.VersionTLS12, Time: func() time.Time { return time.Now().AddDate(500, 0, 0) }})
		}},
		{"no_certificate", func() {
			missing = errors.New("the Secret is not there yet")
			_ = shake(&tls.Config{InsecureSkipVerify: true})
			missing = nil
		}},
		{"timeout", func() { raw("", true) }},
		{"eof", func() { raw("", false) }},
		{"protocol", func() { raw("no handshake at all, that is for sure", true) }},
		{"protocol", func() { raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n", true) }},
		{"protocol", func() {
			_ = shake(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
		}},
	} {
		want[test.reason]++
		test.fail()
		for deadline := time.Now().Add(5 * time.Second); !maps.Equal(counts(), want); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: counted %v, want %v; log:\n%s", test.reason, counts(), want, &out)
			}
		}
	}
	if err := shake(&tls.Config{RootCAs: pool, ServerName: "example.com"}); err != nil {
		t.Fatal(err)
	}
	if got := counts(); !maps.Equal(got, want) {
		t.Errorf("a handshake that works counts: %v, want %v", got, want)
	}
	if text := out.String(); strings.Count(text, `"reason":"bad_certificate"`) != 1 || !strings.Contains(text, "certs audit") || !strings.Contains(text, "the Secret is not there yet") {
		t.Errorf("log:\n%s", text)
	}

	// OpenSSL's and others' words for it, which no Go client says.
	for problem, reason := range map[string]string{
		"remote error: tls: unknown certificate authority":                   "unknown_authority",
		"remote error: tls: expired certificate":                             "bad_certificate",
		"remote error: tls: unknown certificate":                             "bad_certificate",
		"read tcp 10.0.0.1:9443->10.0.0.2:1: read: connection reset by peer": "eof",
		"something new": "other",
	} {
		if got := handshakeReasons[handshakeReason(problem)].reason; got != reason {
			t.Errorf("%q: %s, want %s", problem, got, reason)
		}
	}
	if _, err := lines.Write([]byte("http: superfluous response.WriteHeader call\n")); err != nil || !strings.Contains(out.String(), "superfluous") {
		t.Errorf("another line of the standard logger is lost: %v\n%s", err, &out)
	}
}
